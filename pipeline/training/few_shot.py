"""Heads of class means and of a cache, made of cached features."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import product

import torch
from torch import Tensor, nn

from distilledge.models.clip_net import ClipNet
from distilledge.models.errors import RejectedError
from distilledge.models.few_shot import Prototypes, TipAdapter
from distilledge.pipeline.recipe_strategy import FeatureExtraction
from distilledge.pipeline.training.feature_cache import FloatArray

log = logging.getLogger("distilledge.training")
FewShot = Prototypes | TipAdapter
GRID = ((0.1, 0.3, 1.0, 3.0, 10.0), (1.0, 3.0, 5.5, 10.0, 20.0, 50.0))
"""Alphas and betas that are tried."""


def few_shot_head(
    arguments: FeatureExtraction, features: Tensor, targets: Tensor, own: nn.Module | None, classes: Sequence[str]
) -> FewShot:
    """Of ``features`` (M, D), one-hot ``targets`` (M, C). ``own``: the head that Tip-Adapter stands upon; None: means.

    Raises ``RejectedError`` for a class without samples.
    """
    missing = [name for name, count in zip(classes, targets.sum(0), strict=True) if not count]
    if missing:
        raise RejectedError("E3550", f"no training samples of {missing[0]!r}", "choose head: knn, or add some")
    (samples, width), count = features.shape, len(classes)
    means = Prototypes(width, count, distance=arguments.distance, temperature=arguments.temperature)
    means.fill(features, targets)
    if arguments.head == "prototypes":
        return means
    base = means if own is None else own.eval()
    return TipAdapter(base, samples, width, count, alpha=arguments.alpha, beta=arguments.beta).fill(features, targets)


def base_head(arguments: FeatureExtraction, model: nn.Module, head: nn.Module) -> nn.Module | None:
    """The head whose logits Tip-Adapter adds to: CLIP's class names, or the one the recipe says fits; None: means."""
    zero_shot = arguments.base == "auto" and isinstance(model, ClipNet)
    return head if zero_shot or arguments.base == "head" else None


@torch.no_grad()
def searched(head: TipAdapter, held: Tensor, score: Callable[[FloatArray], dict[str, float]]) -> None:
    """Set alpha and beta, in place, to those of ``GRID`` with the best accuracy on ``held`` (M, D), then least loss.

    What the recipe gives is tried first, and kept where nothing is better.
    """
    tried = []
    for alpha, beta in ((head.alpha, head.beta), *product(*GRID)):
        head.alpha, head.beta = alpha, beta
        found = score(head(held).numpy())
        tried.append((found["accuracy"], -found["loss"], alpha, beta))
    best = max(tried, key=lambda row: row[:2])
    head.alpha, head.beta = best[2:]
    log.info("tip-adapter: alpha %g, beta %g, validation accuracy %.3f, before %.3f", *best[2:], best[0], tried[0][0])


@torch.no_grad()
def training_loss(head: FewShot, features: Tensor, targets: Tensor) -> float:
    """Cross-entropy in nats; see ``left_out``."""
    return float(-(targets * head.left_out(features).log_softmax(1)).sum(1).mean())
