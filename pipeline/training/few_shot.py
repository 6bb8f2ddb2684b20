"""Heads of class means and of a cache, made of cached features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from distilledge.models.clip_net import ClipNet
from distilledge.models.errors import RejectedError
from distilledge.models.few_shot import Prototypes, TipAdapter
from distilledge.pipeline.recipe_strategy import FeatureExtraction

FewShot = Prototypes | TipAdapter


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
def training_loss(head: FewShot, features: Tensor, targets: Tensor) -> float:
    """Cross-entropy in nats; see ``left_out``."""
    return float(-(targets * head.left_out(features).log_softmax(1)).sum(1).mean())
