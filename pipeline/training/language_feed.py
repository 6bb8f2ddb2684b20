"""Unlabelled texts for a language model: masked anew in each epoch, or with the next token as target."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional

from distilledge.models.tasks import IGNORED
from distilledge.models.text import mask_tokens, next_tokens
from distilledge.pipeline.recipe import Training
from distilledge.pipeline.training.counters import IntArray, Purpose, torch_seed
from distilledge.pipeline.training.evaluate import finite
from distilledge.pipeline.training.loaded import Loaded
from distilledge.pipeline.training.mixing import Batch
from distilledge.pipeline.training.text_feed import BATCH, Padded, collate_ids, length_steps
from distilledge.pipeline.training.text_tokenizer import Special
from distilledge.pipeline.training.views import Steps
from distilledge.targets.ondevice.text import Int32Array

VALIDATION_SHARE, MOST_VALIDATED = 0.05, 1000
"""Texts kept from training to say how far the language model has come."""


@dataclass(frozen=True)
class LanguageFeed:
    """See ``Feed``. The rows of a trimmed vocabulary are targets as they are inputs: ``rows``."""

    ids: list[Int32Array]
    names: tuple[str, ...]
    held_out: list[Int32Array]
    special: Special
    vocabulary: int
    mask: float | None
    """Share of the tokens that are masked; None: each token's target is the next."""
    rows: Callable[[Tensor], Tensor]
    seed: int

    @property
    def labels(self) -> IntArray:
        return np.zeros(len(self.ids), np.int64)

    def steps(self, settings: Training, seed: int, accelerator: Accelerator) -> Steps:
        lengths = np.array([len(ids) for ids in self.ids], np.int64)
        return length_steps(lengths, self.labels, settings, seed, accelerator)

    def loader(self, steps: Steps, *, pin: bool) -> Iterable[Loaded]:
        return Padded(self.ids, steps, self.special.pad, pin=pin)

    def batch(self, loaded: Loaded, counters: tuple[int, ...], accelerator: Accelerator) -> Batch:
        ids, targets = self.changed(loaded.inputs, torch_seed(Purpose.VIEW, self.seed, *counters))
        return Batch(ids.to(accelerator.device), targets.to(accelerator.device))

    def changed(self, ids: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Ids (N, L) as they are shown, and the rows that are to be found in them; ``IGNORED`` elsewhere."""
        if self.mask is None:
            changed, targets = ids, next_tokens(ids, self.special.pad)
        else:
            assert self.special.mask is not None
            fixed = torch.isin(ids, torch.tensor(self.special.others)) | (ids == self.special.pad)
            draws = torch.Generator().manual_seed(seed)
            changed, targets = mask_tokens(ids, fixed, self.special.mask, self.vocabulary, self.mask, draws)
        if not bool((targets != IGNORED).any()):  # a batch of the shortest texts: learn its first token
            targets[:, 0] = ids[:, 0]
        rows = self.rows(targets.clamp_min(0)).long()
        return changed, torch.where(targets == IGNORED, IGNORED, rows)

    @torch.inference_mode()
    def validate(
        self, model: nn.Module, to_input: nn.Module, accelerator: Accelerator, poll: Callable[[], None]
    ) -> dict[str, float]:
        """``accuracy`` and ``loss`` (nats) of the masked or next tokens of held-out texts, masked the same each time.

        Every process looks at all of them: they are few.
        """
        was_training = [module for module in model.modules() if module.training]
        model.eval()
        order = sorted(self.held_out, key=len)
        right = loss = count = 0.0
        for start in range(0, len(order), BATCH):
            poll()
            batch = collate_ids(order[start : start + BATCH], self.special.pad)
            ids, targets = (t.to(accelerator.device) for t in self.changed(batch, start))
            where = targets != IGNORED
            with accelerator.autocast():
                logits = model.language_model(to_input(ids), where).float()  # type: ignore[operator]
            chosen = targets[where]
            right += float((logits.argmax(1) == chosen).sum())
            loss += float(functional.cross_entropy(logits, chosen, reduction="sum"))
            count += len(chosen)
        for module in was_training:
            module.training = True
        return finite({"accuracy": right / count, "loss": loss / count})


def hold_out(ids: list[Int32Array]) -> tuple[list[int], list[int]]:
    """Indices learned from, and those kept to validate on: every n-th."""
    most = max(1, min(MOST_VALIDATED, round(VALIDATION_SHARE * len(ids))))
    kept = set(range(0, len(ids), max(1, len(ids) // most)))
    return [i for i in range(len(ids)) if i not in kept] or list(range(len(ids))), sorted(kept)
