"""Heads on frozen features: k nearest neighbours as a module that is exported like any other; the features alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from distilledge.models.errors import UsageError
from distilledge.models.transfer import head_module

FLOOR = 1e-4
"""Smallest share of the votes that a class is given, so that its logit is finite."""


class NearestNeighbours(nn.Module):
    """Features (N, D) -> log of each class's share of the votes (N, C), at least log(1e-4).

    The ``k`` nearest of the bank by cosine vote with weight exp(cosine / temperature) (Wu et al. 2018, eq. of section
    3.4); all of those as near as the k-th do.
    """

    bank: Tensor
    votes: Tensor

    def __init__(self, samples: int, width: int, classes: int, *, k: int, temperature: float) -> None:
        super().__init__()
        self.k, self.temperature = min(k, samples), temperature
        self.register_buffer("bank", torch.zeros(samples, width))
        self.register_buffer("votes", torch.zeros(samples, classes))

    def fill(self, features: Tensor, votes: Tensor) -> NearestNeighbours:
        """``features`` (M, D) of the bank and class probabilities (M, C)."""
        self.bank.copy_(functional.normalize(features.float(), dim=1))
        self.votes.copy_(votes)
        return self

    def forward(self, features: Tensor) -> Tensor:
        return self.shares(functional.normalize(features, dim=1) @ self.bank.T).clamp(min=FLOOR).log()

    def shares(self, cosines: Tensor) -> Tensor:
        """Cosines (N, M) to the bank -> shares (N, C)."""
        nearest = torch.topk(cosines, self.k, dim=1).values
        weights = torch.exp((cosines - nearest[:, :1]) / self.temperature)
        weights = torch.where(cosines >= nearest[:, -1:], weights, 0.0)
        return (weights / weights.sum(1, keepdim=True)) @ self.votes

    def left_out(self) -> Tensor:
        """Logits (M, C) of the bank itself, no sample voting for itself."""
        cosines = self.bank @ self.bank.T
        return self.shares(cosines.fill_diagonal_(-torch.inf)).clamp(min=FLOOR).log()

    def settings(self) -> dict[str, Any]:
        """JSON; ``NearestNeighbours(**settings)`` has the same shapes."""
        samples, width = self.bank.shape
        return {
            "samples": samples,
            "width": width,
            "classes": self.votes.shape[1],
            "k": self.k,
            "temperature": self.temperature,
        }


class Features(nn.Module):
    """A model's input -> what its head would see (N, D). Raises ``UsageError`` where the head is not its last part."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.head = model, head_module(model)

    def forward(self, inputs: Tensor) -> Tensor:
        seen: list[Tensor] = []
        head = self.model.get_submodule(self.head)
        hook = head.register_forward_pre_hook(lambda _module, given: seen.append(given[0]))
        try:
            logits = self.model(inputs)
        finally:
            hook.remove()
        if len(seen) != 1 or seen[0].ndim != 2 or not torch.equal(head(seen[0]), logits):
            raise UsageError(
                "E2464", "the head does not see one row of features for each sample", "use strategy: fine-tune"
            )
        return seen[0]
