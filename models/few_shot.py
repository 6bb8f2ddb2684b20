"""Heads that a few samples make: class means (Snell et al. 2017), a cache beside a head (Zhang et al. 2022)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from distilledge.models.neighbours import NearestNeighbours
from distilledge.models.transfer import head_module

Distance = Literal["cosine", "euclidean"]


class Prototypes(nn.Module):
    """Features (N, D) -> logits (N, C) by how near each class's mean is.

    ``euclidean``: minus the squared distance (Snell et al. 2017, eq. 2), which is linear in the features but for terms
    that all classes share (their eq. 8); those are left out, so logits differ from -d^2 by a number for each sample.
    ``cosine``: of features and means of unit length, over ``temperature``.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, width: int, classes: int, *, distance: Distance, temperature: float) -> None:
        super().__init__()
        self.distance, self.temperature = distance, temperature
        self.register_buffer("weight", torch.zeros(classes, width))
        self.register_buffer("bias", torch.zeros(classes))

    def fill(self, features: Tensor, targets: Tensor) -> Prototypes:
        """``features`` (M, D) and one-hot targets (M, C), each class at least once."""
        means = class_means(self._seen(features.float()), targets)
        if self.distance == "cosine":
            self.weight.copy_(functional.normalize(means, dim=1) / self.temperature)
            return self
        lengths = means.square().sum(1)
        self.weight.copy_(2 * (means - means.mean(0)))
        self.bias.copy_(lengths.mean() - lengths)
        return self

    def forward(self, features: Tensor) -> Tensor:
        return functional.linear(self._seen(features), self.weight, self.bias)

    def left_out(self, features: Tensor) -> Tensor:
        """Logits of the samples that it is made of; each has its part in its own class's mean."""
        return self.forward(features)

    def settings(self) -> dict[str, Any]:
        """JSON; ``Prototypes(**settings)`` has the same shapes."""
        classes, width = self.weight.shape
        return {"width": width, "classes": classes, "distance": self.distance, "temperature": self.temperature}

    def _seen(self, features: Tensor) -> Tensor:
        return functional.normalize(features, dim=1) if self.distance == "cosine" else features


def class_means(features: Tensor, targets: Tensor) -> Tensor:
    """(C, D) of ``features`` (M, D) and one-hot ``targets`` (M, C), each class at least once."""
    return (targets.T @ features) / targets.sum(0).unsqueeze(1)


class TipAdapter(nn.Module):
    """Features f (N, D) -> base(f) + alpha * exp(-beta * (1 - f keys^T)) values (Zhang et al. 2022, eq. 5 and 6).

    The keys (M, D) are features of unit length, f is brought to it; the values (M, C) are one-hot labels. Tip-Adapter-F
    trains the keys alone, and does not bring them back to unit length.
    """

    values: Tensor

    def __init__(self, base: nn.Module, samples: int, width: int, classes: int, *, alpha: float, beta: float) -> None:
        super().__init__()
        self.base, self.alpha, self.beta = base, alpha, beta
        self.keys = nn.Parameter(torch.zeros(samples, width))
        self.register_buffer("values", torch.zeros(samples, classes))

    @torch.no_grad()
    def fill(self, features: Tensor, targets: Tensor) -> TipAdapter:
        self.keys.copy_(functional.normalize(features.float(), dim=1))
        self.values.copy_(targets)
        return self

    def forward(self, features: Tensor) -> Tensor:
        answer: Tensor = self.base(features)
        return answer + self._cached(functional.normalize(features, dim=1) @ self.keys.T)

    def left_out(self, features: Tensor) -> Tensor:
        """Logits of the samples of the cache themselves, none finding itself in it."""
        answer: Tensor = self.base(features)
        near = functional.normalize(features, dim=1) @ self.keys.T
        return answer + self._cached(near.fill_diagonal_(-torch.inf))

    def settings(self) -> dict[str, Any]:
        """JSON; see ``with_head``."""
        samples, width = self.keys.shape
        base = self.base.settings() if isinstance(self.base, Prototypes) else None
        return {
            "samples": samples,
            "width": width,
            "classes": self.values.shape[1],
            "alpha": self.alpha,
            "beta": self.beta,
            "prototypes": base,
        }

    def _cached(self, cosines: Tensor) -> Tensor:
        return self.alpha * (torch.exp(-self.beta * (1 - cosines)) @ self.values)


def _neighbours(_own: nn.Module, settings: dict[str, Any]) -> nn.Module:
    return NearestNeighbours(**settings)


def _prototypes(_own: nn.Module, settings: dict[str, Any]) -> nn.Module:
    return Prototypes(**settings)


def _tip_adapter(own: nn.Module, settings: dict[str, Any]) -> nn.Module:
    """``own``: the network's head, which is the base where it is not of prototypes."""
    fields = {name: value for name, value in settings.items() if name != "prototypes"}
    base = own if settings["prototypes"] is None else Prototypes(**settings["prototypes"])
    return TipAdapter(base, **fields)


HEADS = {"knn": _neighbours, "prototypes": _prototypes, "tip-adapter": _tip_adapter}
"""Key of a checkpoint's architecture -> (the network's own head, settings) -> the head that stands in its place."""


def with_head(model: nn.Module, architecture: dict[str, Any]) -> nn.Module:
    """The network, in place, with the head that its architecture names, if any; weights are still to be loaded."""
    for kind in HEADS.keys() & architecture.keys():
        place = head_module(model)
        model.set_submodule(place, HEADS[kind](model.get_submodule(place), architecture[kind]))
    return model
