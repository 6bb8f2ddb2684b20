"""Fake quantisation with learnt ranges: int8 arithmetic in float, with gradients for the ends of each range."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from distilledge.models.rounding import rounded

STEPS = 255
"""Between the smallest and the largest of 256 values."""
SIGMOID = (0.0, STEPS / 256)
"""LiteRT stores the result of a sigmoid in steps of 1/256, whatever it is calibrated on."""


class FakeQuantise(torch.autograd.Function):
    """Clipped to ``[low, high]`` and rounded to its 255 steps, 0 being one of them.

    Gradients of Learned Step Size Quantization (Esser et al. 2020, equation 3) with an offset (LSQ+, Bhalgat et al.
    2020, equations 4 to 6), written for the ends low = offset, high = offset + 255 step: with v = x / step,
    d out / d high is (round(v) - v) / 255 inside and 1 above; d out / d low is its negative inside and 1 below;
    d out / d x is 1 inside, else 0. Those of the ends are scaled by 1 / sqrt(255 n), n values of one picture
    (section 2.2), so that ranges do not outweigh the weights where the norm of all gradients is clipped.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, low: Tensor, high: Tensor) -> Tensor:
        step, zero = grid(low, high)
        ctx.save_for_backward(values, step, zero)
        return (torch.clamp(torch.round(values / step) + zero, 0, STEPS) - zero) * step

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gradient = gradients[0]
        values, step, zero = ctx.saved_tensors
        steps = values / step
        nearest = torch.round(steps)
        below, above = nearest + zero < 0, nearest + zero > STEPS
        inside = gradient.masked_fill(below | above, 0.0)
        rounding = (inside * (nearest - steps)).sum() / STEPS
        scale = 1 / (STEPS * max(1, values[0].numel())) ** 0.5
        low = ((gradient * below).sum() - rounding) * scale
        high = ((gradient * above).sum() + rounding) * scale
        return inside, low, high


def grid(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Step and zero point, a whole number of 0..255, as every runtime finds them from a range that holds 0."""
    step = (high - low) / STEPS
    return step, torch.round(-low / step)


class Range(nn.Module):
    """Fake quantisation of one tensor; both ends are learnt as factors of where they started, on a logarithmic scale.

    So a step of an optimizer means the same for every tensor, and an end never changes its sign: 0 stays inside.
    """

    low: Tensor
    high: Tensor

    def __init__(self, ends: tuple[float, float] | None = None) -> None:
        """``ends``: fixed, not learnt."""
        super().__init__()
        self.fixed = ends is not None
        self.on = True
        for name, value in zip(("low", "high"), ends or (0.0, 1.0), strict=True):
            self.register_buffer(name, torch.tensor(value))
        self.log_low, self.log_high = (nn.Parameter(torch.zeros(()), requires_grad=ends is None) for _ in range(2))

    @torch.no_grad()
    def start(self, low: float, high: float) -> None:
        """Begin at these ends, which hold 0. A tensor that is always 0 gets a range all the same."""
        if self.fixed:
            return
        self.low.fill_(min(0.0, low))
        self.high.fill_(max(0.0, high) if high > 0 or low < 0 else 1.0)
        for factor in (self.log_low, self.log_high):
            factor.zero_()

    def ends(self) -> tuple[Tensor, Tensor]:
        return self.low * self.log_low.exp(), self.high * self.log_high.exp()

    @torch.no_grad()
    def on_grid(self) -> tuple[float, float]:
        """The smallest and the largest of the 256 values."""
        step, zero = (float(x) for x in grid(*self.ends()))
        return -zero * step, (STEPS - zero) * step

    def forward(self, values: Tensor) -> Tensor:
        if not self.on:
            return values
        made: Tensor = FakeQuantise.apply(values, *self.ends())
        return made


class RoundedWeight(nn.Module):
    """int8 weights (O, ...), one scale for each output channel, symmetric; the gradient passes as it is.

    A scale of each channel's own makes folding exact: rounding W and multiplying channels by gamma / sigma gives the
    same integers as rounding the product, so batch normalisation needs no folding while it is trained.
    """

    def __init__(self) -> None:
        super().__init__()
        self.on = True

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (rounded(weight) - weight).detach() if self.on else weight


class Normalisation(nn.Module):
    """Batch normalisation; ``frozen``: by its running statistics in training too, which then stay."""

    def __init__(self, momentum: float, eps: float) -> None:
        super().__init__()
        self.momentum, self.eps, self.frozen = momentum, eps, False

    def forward(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor) -> Tensor:
        batch = self.training and not self.frozen
        return functional.batch_norm(x, mean, variance, weight, bias, batch, self.momentum, self.eps)
