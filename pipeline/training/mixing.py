"""Mixup and CutMix of whole steps, drawn from (seed, epoch, step)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from distilledge.pipeline.recipe import Augment


class Batch(NamedTuple):
    """What an objective is given."""

    inputs: Tensor
    """Pictures: uint8 (N, 3, V, V). Texts: int64 ids (N, L), padded."""
    targets: Tensor
    """Of one label: float32 (N, C), class probabilities; a row sums to the share that is labelled (0: unlabelled). Of
    other tasks as ``models.tasks`` says."""
    guide_inputs: Tensor | None = None
    """Ids (N, M) for a teacher with another tokenizer."""
    answers: Tensor | None = None
    """The teacher's logits (N, C), where it was asked beforehand."""
    progress: float = 0.0
    """Share of the training's steps that are done, where a loss depends on it."""

    def part(self, rows: slice) -> Batch:
        theirs, answers = (None if tensor is None else tensor[rows] for tensor in (self.guide_inputs, self.answers))
        return Batch(self.inputs[rows], self.targets[rows], theirs, answers, self.progress)


def mix(batch: Batch, augment: Augment, random: np.random.Generator) -> Batch:
    """Each picture with another of the batch: blended (mixup) or pasted in a box (CutMix); with both on, either."""
    chosen = [name for name in ("mixup", "cutmix") if getattr(augment, name) > 0]
    if not chosen or len(batch.inputs) == 1:
        return batch
    name = chosen[int(random.integers(len(chosen)))]
    alpha = getattr(augment, name)
    keep = float(random.beta(alpha, alpha))
    partner = torch.from_numpy(random.permutation(len(batch.inputs))).to(batch.inputs.device)
    if name == "mixup":
        pictures = _blend(batch.inputs, batch.inputs[partner], keep)
    else:
        pictures, keep = _paste(batch.inputs, batch.inputs[partner], keep, random)
    return Batch(pictures, keep * batch.targets + (1 - keep) * batch.targets[partner])


def _blend(pictures: Tensor, others: Tensor, keep: float) -> Tensor:
    return torch.lerp(others.float(), pictures.float(), keep).round_().to(torch.uint8)


def _paste(pictures: Tensor, others: Tensor, keep: float, random: np.random.Generator) -> tuple[Tensor, float]:
    """Boxes of (1 - keep) of the area around a random centre, cut at the border; returns the share that was kept."""
    height, width = pictures.shape[-2:]
    half_height, half_width = (int(side * (1 - keep) ** 0.5) // 2 for side in (height, width))
    row, column = int(random.integers(height)), int(random.integers(width))
    rows = slice(max(row - half_height, 0), min(row + half_height, height))
    columns = slice(max(column - half_width, 0), min(column + half_width, width))
    mixed = pictures.clone(memory_format=torch.preserve_format)
    mixed[..., rows, columns] = others[..., rows, columns]
    return mixed, 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
