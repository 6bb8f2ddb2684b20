"""From a labelled source to an unlabelled target: what is added to the loss, and BatchNorm statistics of the target.

A loss here sees the head's input (B, D) of a batch of both domains; rows without a label are of the target.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from distilledge.models.errors import UsageError

Batches = Callable[[], Iterable[Tensor]]
"""A model's inputs, the same each time it is called."""


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.scale * gradients[0], None


def reverse_gradient(features: Tensor, scale: float) -> Tensor:
    """The features; their gradient is that of what follows times -scale (Ganin et al. 2016, eq. 16 and 17)."""
    reversed_features: Tensor = _Reversal.apply(features, scale)
    return reversed_features


def dann_lambda(progress: float, gamma: float = 10.0) -> float:
    """2 / (1 + exp(-gamma p)) - 1 of the share p of the training that is done: from 0 to nearly 1 (section 5.2.2)."""
    return 2 / (1 + math.exp(-gamma * progress)) - 1


class Dann(nn.Module):
    """A classifier of domains behind a reversed gradient: its mean cross-entropy, over the rows of both domains.

    The gradient that reaches the features is ``-weight * dann_lambda`` times the classifier's own; the classifier
    learns at the full rate.
    """

    def __init__(self, width: int, *, hidden: int, weight: float, gamma: float) -> None:
        super().__init__()
        self.weight, self.gamma = weight, gamma
        self.classifier = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1)
        )

    def forward(self, embedding: Tensor, targets: Tensor, progress: float) -> Tensor:
        scale = self.weight * dann_lambda(progress, self.gamma)
        of_target = is_target(targets).to(embedding.dtype)
        logits = self.classifier(reverse_gradient(embedding, scale)).squeeze(1)
        return functional.binary_cross_entropy_with_logits(logits, of_target)


class Distance(nn.Module):
    """``weight`` times a distance of the two domains' rows; 0 where either has fewer than two."""

    def __init__(self, distance: Callable[[Tensor, Tensor], Tensor], weight: float) -> None:
        super().__init__()
        self.distance, self.weight = distance, weight

    def forward(self, embedding: Tensor, targets: Tensor, progress: float) -> Tensor:  # noqa: ARG002 (as ``Dann``)
        other = is_target(targets)
        if int(other.sum()) < 2 or int((~other).sum()) < 2:
            return embedding.sum() * 0
        return self.weight * self.distance(embedding[~other], embedding[other])


def is_target(targets: Tensor) -> Tensor:
    """(B,), True where a row of class probabilities (B, C) holds none."""
    return targets.sum(1) == 0


def coral(source: Tensor, target: Tensor) -> Tensor:
    """||C_s - C_t||_F^2 / (4 d^2) of the unbiased covariances of rows (N, d) and (M, d).

    Deep CORAL, Sun & Saenko 2016, eq. 1 to 3.
    """
    difference = _covariance(source) - _covariance(target)
    return difference.square().sum() / (4 * source.shape[1] ** 2)


def _covariance(rows: Tensor) -> Tensor:
    centred = rows - rows.mean(0, keepdim=True)
    return centred.T @ centred / (len(rows) - 1)


def mmd(source: Tensor, target: Tensor, kernels: int = 5, factor: float = 2.0) -> Tensor:
    """Squared maximum mean discrepancy under the mean of ``kernels`` Gaussians exp(-||x - y||^2 / b).

    The b are the mean squared distance of two different rows of both domains together, which gets no gradient, times
    ``factor`` to the powers around 0 (Long et al. 2015, section 4.1: factors from 1/4 to 4). The biased estimate
    (Gretton et al. 2012, eq. 5): never below 0, and 0 for equal rows. DAN's own is the linear-time one; batches here
    are small enough for all pairs.
    """
    rows = torch.cat([source, target])
    squares = (rows.unsqueeze(0) - rows.unsqueeze(1)).square().sum(2)
    count, n = len(rows), len(source)
    mean = (squares.detach().sum() / (count * (count - 1))).clamp_min(1e-12)
    widths = [mean * factor ** (power - kernels // 2) for power in range(kernels)]
    values = torch.stack([torch.exp(-squares / width) for width in widths]).mean(0)
    return values[:n, :n].mean() + values[n:, n:].mean() - 2 * values[:n, n:].mean()


# --- BatchNorm --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def adapt_batch_norm(model: nn.Module, batches: Batches) -> int:
    """Replace the running statistics of each BatchNorm by those of its inputs over ``batches``; returns how many.

    AdaBN (Li et al. 2016, algorithm 1), exact: a layer's statistics are taken when those of all layers before it are
    the new ones, so the size of the batches says nothing, and each layer costs a pass up to it. The variance is the
    unbiased one, as torch's. The model is in eval mode, and stays so. Raises ``UsageError`` where it has no BatchNorm.
    """
    check_batch_norm(model)
    model.eval()
    layers = _in_order(model, next(iter(batches())))
    for layer in layers:
        count, mean, squares = 0, torch.zeros(()), torch.zeros(())
        for batch in batches():
            rows = _input_of(layer, model, batch).transpose(0, 1).flatten(1).double()  # (C, N H W)
            here, size = rows.mean(1), rows.shape[1]
            spread = (rows - here[:, None]).square().sum(1)
            if count == 0:
                count, mean, squares = size, here, spread
                continue
            total = count + size
            squares = squares + spread + (here - mean).square() * count * size / total
            mean = mean + (here - mean) * size / total
            count = total
        assert layer.running_mean is not None
        assert layer.running_var is not None
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(squares / max(1, count - 1))
    return len(layers)


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """Those that keep statistics."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


def check_batch_norm(model: nn.Module) -> None:
    """Raise ``UsageError`` where there is none."""
    if not batch_norms(model):
        raise UsageError(
            "E2530", "the model has no BatchNorm whose statistics could be the target's", "use strategy coral or dann"
        )


class _Reached(Exception):  # noqa: N818 (no error: the layer whose input was wanted)
    pass


def _in_order(model: nn.Module, batch: Tensor) -> list[_BatchNorm]:
    """As they are computed."""
    seen: list[_BatchNorm] = []

    def note(module: nn.Module, _given: tuple[Tensor, ...]) -> None:
        assert isinstance(module, _BatchNorm)
        if module not in seen:
            seen.append(module)

    handles = [layer.register_forward_pre_hook(note) for layer in batch_norms(model)]
    try:
        model(batch[:2])
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _input_of(layer: _BatchNorm, model: nn.Module, batch: Tensor) -> Tensor:
    """What the layer is given; nothing behind it is computed."""
    found: list[Tensor] = []

    def take(_module: nn.Module, given: tuple[Tensor, ...]) -> None:
        found.append(given[0])
        raise _Reached

    handle = layer.register_forward_pre_hook(take)
    try:
        model(batch)
    except _Reached:
        return found[0]
    finally:
        handle.remove()
    raise AssertionError("a layer that was reached before")


@contextmanager
def batch_statistics(*models: nn.Module) -> Iterator[None]:
    """Inside, eval mode, but BatchNorm goes by the batch, as in training; its running statistics stay as they are.

    After a few steps the running ones say little yet of what a network has learned.
    """
    modules = [m for model in models for m in model.modules()]
    was_training = [m for m in modules if m.training]
    norms = [m for m in modules if isinstance(m, _BatchNorm) and m.track_running_stats]
    momenta = [(m, m.momentum, m.num_batches_tracked) for m in norms]
    for model in models:
        model.eval()
    for norm in norms:
        norm.training, norm.momentum = True, 0.0
        norm.num_batches_tracked = None
    try:
        yield
    finally:
        for norm, momentum, tracked in momenta:
            norm.training, norm.momentum = False, momentum
            norm.num_batches_tracked = tracked
        for module in was_training:
            module.training = True


# --- two views of one picture -----------------------------------------------------------------------------------------


class SimSiam(nn.Module):
    """Negative cosine of one view's prediction and the other's projection, which gets no gradient, both ways.

    Chen & He 2021, algorithm 1 and section 4.4: a projector of three layers, a predictor with a narrow middle. Rows 2i
    and 2i + 1 are two views of one sample.
    """

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.projector = nn.Sequential(
            nn.Linear(width, size, bias=False), nn.BatchNorm1d(size), nn.ReLU(),
            nn.Linear(size, size, bias=False), nn.BatchNorm1d(size), nn.ReLU(),
            nn.Linear(size, size, bias=False), nn.BatchNorm1d(size, affine=False),
        )  # fmt: skip
        self.predictor = nn.Sequential(
            nn.Linear(size, size // 4, bias=False), nn.BatchNorm1d(size // 4), nn.ReLU(), nn.Linear(size // 4, size)
        )

    def forward(self, embedding: Tensor, targets: Tensor, progress: float) -> Tensor:  # noqa: ARG002 (as ``Dann``)
        projected = self.projector(embedding)
        return simsiam(self.predictor(projected), projected)


def simsiam(predicted: Tensor, projected: Tensor) -> Tensor:
    """-(cos(p_1, z_2) + cos(p_2, z_1)) / 2, mean over pairs of rows, z without gradient (eq. 3 and 4)."""
    p, z = functional.normalize(predicted, dim=1), functional.normalize(projected.detach(), dim=1)
    return -((p[0::2] * z[1::2]).sum(1) + (p[1::2] * z[0::2]).sum(1)).mean() / 2


def spread(rows: Tensor) -> float:
    """Standard deviation of the normalised rows (N, d), mean over columns, times sqrt(d) (Chen & He 2021, section 4.1).

    1 where they point everywhere; 0 where all point one way: the network has collapsed.
    """
    normal = functional.normalize(rows.float(), dim=1)
    mean: float = normal.std(0).mean().item()
    return mean * float(rows.shape[1] ** 0.5)
