"""How the losses of several tasks become one: fixed weights, uncertainty, GradNorm."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

LEAST = 1e-3
"""A weight of GradNorm never falls below it: a task with weight 0 would have no gradient to balance."""
Norms = Callable[[Tensor], Tensor]
"""Losses (T,) -> for each the length of its gradient by the last shared layer's weight, (T,), no graph kept of it."""


class Weighting(nn.Module, ABC):
    """Losses of the tasks (T,) -> the scalar that is minimised. ``present`` (T,): tasks the batch says something of."""

    watches_gradients = False
    """Whether ``norms`` is called: then the last shared layer must be trained."""

    def __init__(self, given: Sequence[float], *, alpha: float, rate: float) -> None:  # noqa: ARG002
        """``given``: the factors at the start, one for each task; the others are GradNorm's."""
        super().__init__()
        self.alpha, self.rate = alpha, rate

    @abstractmethod
    def forward(self, losses: Tensor, present: Tensor, norms: Norms) -> Tensor: ...

    @abstractmethod
    def weights(self) -> Tensor:
        """(T,) the factors of the losses now."""


class Fixed(Weighting):
    """sum_t w_t L_t."""

    def __init__(self, given: Sequence[float], *, alpha: float = 0.0, rate: float = 0.0) -> None:
        super().__init__(given, alpha=alpha, rate=rate)
        self.register_buffer("given", torch.tensor(given, dtype=torch.float32))

    def forward(self, losses: Tensor, present: Tensor, norms: Norms) -> Tensor:  # noqa: ARG002
        return (self.get_buffer("given") * losses).sum()

    def weights(self) -> Tensor:
        return self.get_buffer("given")


class Uncertainty(Weighting):
    """sum_t exp(-s_t) L_t + s_t / 2, s_t = log sigma_t^2 learnt with the network (Kendall et al. 2018, eq. 10).

    That is the form of a classification (a softmax divided by sigma^2). ``given`` are the factors at the start,
    exp(-s_t). A task that the batch says nothing of leaves its s_t alone.
    """

    def __init__(self, given: Sequence[float], *, alpha: float = 0.0, rate: float = 0.0) -> None:
        super().__init__(given, alpha=alpha, rate=rate)
        self.log_variances = nn.Parameter(-torch.tensor(given, dtype=torch.float32).log())

    def forward(self, losses: Tensor, present: Tensor, norms: Norms) -> Tensor:  # noqa: ARG002
        each = torch.exp(-self.log_variances) * losses + self.log_variances / 2
        return torch.where(present, each, torch.zeros_like(each)).sum()

    def weights(self) -> Tensor:
        return torch.exp(-self.log_variances.detach())


class GradNorm(Weighting):
    """sum_t w_t L_t; after each step w is moved so that the tasks train at like rates (Chen et al. 2018, algorithm 1).

    With g_t the gradient's length of L_t at the last shared layer, G_t = w_t g_t, and r_t the task's L_t / L_t(0) over
    the mean of all: sum_t |G_t - mean(G) r_t^alpha| is made smaller by one step of ``rate`` on w, mean(G) r_t^alpha
    held constant, so dw_t = g_t sign(G_t - mean(G) r_t^alpha). Then w is scaled to its sum at the start. L_t(0) is the
    first loss that is seen. The weights are buffers: a resumed training has the same bits. A batch without some task
    changes nothing.
    """

    watches_gradients = True

    def __init__(self, given: Sequence[float], *, alpha: float = 1.5, rate: float = 0.025) -> None:
        super().__init__(given, alpha=alpha, rate=rate)
        start = torch.tensor(given, dtype=torch.float32)
        self.register_buffer("balanced", start.clone())
        self.register_buffer("first", torch.zeros_like(start))
        self.total = float(start.sum())

    def forward(self, losses: Tensor, present: Tensor, norms: Norms) -> Tensor:
        weights = self.get_buffer("balanced").clone()
        if self.training and bool(present.all()) and bool(torch.isfinite(losses).all()):
            self._balance(losses.detach(), norms(losses))
        return (weights * losses).sum()

    @torch.no_grad()
    def _balance(self, losses: Tensor, lengths: Tensor) -> None:
        weights, first = self.get_buffer("balanced"), self.get_buffer("first")
        first.copy_(torch.where(first == 0, losses, first))
        if not bool(torch.isfinite(lengths).all()) or bool((first <= 0).any()):
            return
        ratios = losses / first
        rates = ratios / ratios.mean().clamp_min(1e-12)
        sizes = weights * lengths
        towards = sizes.mean() * rates**self.alpha
        moved = (weights - self.rate * lengths * torch.sign(sizes - towards)).clamp_min(LEAST)
        weights.copy_(moved * (self.total / moved.sum()))

    def weights(self) -> Tensor:
        return self.get_buffer("balanced")


WEIGHTINGS: dict[str, type[Weighting]] = {"fixed": Fixed, "uncertainty": Uncertainty, "gradnorm": GradNorm}
"""Name in a recipe -> what it makes of the losses."""


def gradient_lengths(losses: Tensor, weight: Tensor) -> Tensor:
    """(T,) ||d L_t / d weight||_2; 0 where a loss does not depend on it."""
    lengths = []
    for loss in losses:
        (gradient,) = torch.autograd.grad(loss, weight, retain_graph=True, allow_unused=True)
        lengths.append(torch.zeros_like(loss) if gradient is None else gradient.detach().float().norm())
    return torch.stack(lengths)
