"""Optimizers, and the learning rate as a function of the step alone."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from distilledge.models import training
from distilledge.models.transfer import Tuning
from distilledge.pipeline.recipe import Training


def make_optimizer(
    model: nn.Module, extra: list[nn.Parameter], settings: Training, tuning: Tuning | None = None
) -> torch.optim.Optimizer:
    """``extra``: parameters of the losses, such as projections, at the peak learning rate and without decay."""
    groups: list[dict[str, Any]]
    if tuning is not None:
        groups = tuning.parameter_groups(model, lr=settings.lr, weight_decay=settings.weight_decay)
    else:
        groups = training.parameter_groups(
            model,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            layer_decay=settings.layer_decay,
            freeze_backbone=settings.freeze_backbone,
        )
    if extra:
        groups.append({"params": extra, "lr": settings.lr, "weight_decay": 0.0})
    for group in groups:
        group["peak_lr"] = group["lr"]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.momentum > 0, fused=True
        )
    return torch.optim.AdamW(groups, lr=settings.lr, fused=True)


def lr_factor(step: int, steps: int, warmup_steps: int, last: float) -> float:
    """Share of the peak learning rate at ``step`` (from 0) of ``steps``: a line up, then a cosine down to ``last``."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    done = (step - warmup_steps) / max(1, steps - 1 - warmup_steps)
    return last + (1 - last) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Scale every group; returns the largest learning rate in use."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    return max(float(group["lr"]) for group in optimizer.param_groups)
