"""Language models: the head, and the masking of tokens that it learns from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from distilledge.models.tasks import IGNORED


class LanguageHead(nn.Module):
    """Hidden states (..., D) -> logits (..., rows), the output weights being the word embeddings themselves.

    ``masked``: behind a dense layer, GELU and LayerNorm, with a bias for each row (Devlin et al. 2019); causal: bare.
    """

    def __init__(self, config: Any, width: int, *, masked: bool) -> None:
        super().__init__()
        self.transform: nn.Module = nn.Identity()
        self.bias: nn.Parameter | None = None
        if masked:
            dense = nn.Linear(config.hidden_size, width)
            nn.init.normal_(dense.weight, std=0.02)
            nn.init.zeros_(dense.bias)
            self.transform = nn.Sequential(dense, nn.GELU(), nn.LayerNorm(width, eps=norm_eps(config)))
            self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden: Tensor, embeddings: Tensor) -> Tensor:
        return functional.linear(self.transform(hidden), embeddings, self.bias)


def norm_eps(config: Any) -> float:
    """That of the architecture's own norms; DistilBERT's stands in no configuration."""
    return float(getattr(config, "layer_norm_eps", None) or getattr(config, "norm_eps", None) or 1e-12)


def mask_tokens(
    ids: Tensor, special: Tensor, mask_id: int, vocabulary_size: int, probability: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Ids (N, L) -> changed ids, and targets: the id where one was chosen, else ``IGNORED`` (Devlin et al. 2019, 3.1).

    Of the tokens that are not ``special`` (N, L), each is chosen with ``probability``; of those 80 % become the mask,
    10 % any id of ``0..vocabulary_size - 1``, 10 % stay. The same generator state gives the same answer.
    """
    chance, kind = (torch.rand(ids.shape, generator=generator).to(ids.device) for _ in range(2))
    others = torch.randint(vocabulary_size, ids.shape, generator=generator, dtype=ids.dtype).to(ids.device)
    chosen = (chance < probability) & ~special
    changed = torch.where(chosen & (kind < 0.8), mask_id, ids)
    changed = torch.where(chosen & (kind >= 0.9), others, changed)
    return changed, torch.where(chosen, ids, IGNORED).long()


def next_tokens(ids: Tensor, pad_id: int) -> Tensor:
    """Targets (N, L) of a causal model: the id that follows, ``IGNORED`` at the end and before padding."""
    following = functional.pad(ids[:, 1:], (0, 1), value=pad_id)
    return torch.where((following != pad_id) & (ids != pad_id), following, IGNORED).long()
