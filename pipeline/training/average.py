"""Exponential moving average of a model's weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class Average:
    """A copy of the model whose floating-point state follows it; ``model`` is in eval mode.

    The decay grows from 0.1 to its value as (1 + step) / (10 + step), so that short trainings forget their start.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        follow = 1 - min(self._decay, (1 + step) / (10 + step))
        pairs = list(zip(_state(self.model), _state(model), strict=True))
        floating = [(mine, other) for mine, other in pairs if mine.is_floating_point()]
        torch._foreach_lerp_([mine for mine, _ in floating], [other for _, other in floating], follow)
        for mine, other in pairs:
            if not mine.is_floating_point():
                mine.copy_(other)


def _state(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
