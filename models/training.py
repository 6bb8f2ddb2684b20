"""Parameter groups and modes of any model: of texts (``TextNet``) or pictures."""

from __future__ import annotations

from typing import Any

from torch import nn

from distilledge.models import text_training, vision_training
from distilledge.models.text_net import TextNet


def parameter_groups(
    model: nn.Module, *, lr: float, weight_decay: float, layer_decay: float = 1.0, freeze_backbone: bool = False
) -> list[dict[str, Any]]:
    """See ``vision_training.parameter_groups``; the contract of both is the same."""
    text = isinstance(model, TextNet)
    of = text_training.parameter_groups if text else vision_training.parameter_groups
    return of(model, lr=lr, weight_decay=weight_decay, layer_decay=layer_decay, freeze_backbone=freeze_backbone)


def learning_rates(model: nn.Module, layer_decay: float) -> dict[str, float]:
    """Of each parameter, as a share of the head's: what ``parameter_groups`` gives it."""
    groups = parameter_groups(model, lr=1.0, weight_decay=0.0, layer_decay=layer_decay)
    shares = {id(parameter): float(group["lr"]) for group in groups for parameter in group["params"]}
    return {name: shares[id(parameter)] for name, parameter in model.named_parameters()}


def train_mode(model: nn.Module, *, freeze_backbone: bool = False) -> None:
    """``model.train()``; with a frozen backbone, of the head alone."""
    mode = text_training.train_mode if isinstance(model, TextNet) else vision_training.train_mode
    mode(model, freeze_backbone=freeze_backbone)


def freeze_norms(model: nn.Module) -> None:
    """Every BatchNorm in eval mode: its statistics stay, its weights are trained as before."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
