"""Changed copies of texts for distillation: words masked, or replaced by a language model (Jiao et al. 2020).

The teacher answers for the changed text, so that no label is needed. Everything is drawn from (seed, epoch, index).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from distilledge.models.text import TextNet
from distilledge.pipeline.recipe import TextAugment
from distilledge.pipeline.training.counters import Purpose, generator
from distilledge.pipeline.training.text_tokenizer import Special

CANDIDATES = 15
"""Likeliest words that a replacement is drawn from (Jiao et al. 2020, algorithm 1)."""


@dataclass(frozen=True)
class Changed:
    """``copies`` of each of ``count`` texts stand behind the texts, by index; see ``TextFeed.changed``."""

    settings: TextAugment
    special: Special
    count: int
    seed: int
    language: TextNet | None
    """Masked language model; None: what would be replaced is masked."""

    @property
    def copies(self) -> int:
        return self.settings.copies

    def __call__(self, ids: Tensor, epoch: int, indices: Sequence[int]) -> Tensor:
        """Ids (N, L) with those of copies changed."""
        assert self.special.mask is not None
        changed = ids.clone()
        replaced = torch.zeros_like(ids, dtype=torch.bool)
        for row, index in enumerate(indices):
            if index >= self.count:
                chance = generator(Purpose.VIEW, self.seed, epoch, index).random(ids.shape[1])
                masked, other = self._choose(ids[row], chance)
                changed[row, masked | other] = self.special.mask
                replaced[row] = other
        if self.language is not None and bool(replaced.any()):
            draws = generator(Purpose.MIX, self.seed, epoch, *indices[:1])
            changed[replaced] = self._predicted(self.language, changed, replaced, draws)
        return changed

    def _choose(self, ids: Tensor, chance: npt.NDArray[np.float64]) -> tuple[Tensor, Tensor]:
        """Which tokens of one text become the mask, and which another word."""
        word = ~torch.isin(ids, torch.tensor((self.special.pad, *self.special.others)))
        drawn = torch.from_numpy(chance)
        masked = word & (drawn < self.settings.mask)
        return masked, word & ~masked & (drawn < self.settings.mask + self.settings.replace)

    @torch.no_grad()
    def _predicted(self, language: TextNet, ids: Tensor, where: Tensor, draws: np.random.Generator) -> Tensor:
        logits = language.language_model(ids, where)
        logits[:, list({self.special.pad, *self.special.others})] = -torch.inf  # words only
        best = logits.topk(CANDIDATES, dim=1)
        weights = best.values.double().softmax(1).cumsum(1).numpy()
        picks = (weights < draws.random(len(weights))[:, None]).sum(1).clip(max=CANDIDATES - 1)
        return best.indices[torch.arange(len(picks)), torch.from_numpy(picks)]
