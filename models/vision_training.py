"""What training and the reports need to know of an image model: parameter groups, frozen parts, size and cost."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from distilledge.models.vision_names import head_names


def parameter_groups(
    model: nn.Module, *, lr: float, weight_decay: float, layer_decay: float = 1.0, freeze_backbone: bool = False
) -> list[dict[str, Any]]:
    """Optimizer groups ``{"params", "lr", "weight_decay"}`` in a stable order, one for each pair of values.

    Biases, 1-D parameters and what timm's ``no_weight_decay()`` names get no decay. The learning rate of a layer is
    ``layer_decay`` times that of the layer above it (timm's ``group_matcher``); the head has ``lr``.
    ``freeze_backbone`` sets ``requires_grad`` of every parameter: the head alone is trained.
    """
    from timm.optim import param_groups_layer_decay

    prefixes = tuple(f"{name}." for name in head_names(model))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not freeze_backbone or name.startswith(prefixes))
    undecayed: Any = getattr(model, "no_weight_decay", set)
    layers = param_groups_layer_decay(
        model, weight_decay=weight_decay, no_weight_decay_list=undecayed(), layer_decay=layer_decay
    )
    merged: dict[tuple[float, float], list[Tensor]] = {}
    for group in layers:
        merged.setdefault((group["lr_scale"], group["weight_decay"]), []).extend(group["params"])
    return [{"params": p, "lr": lr * scale, "weight_decay": decay} for (scale, decay), p in merged.items()]


def train_mode(model: nn.Module, *, freeze_backbone: bool = False) -> None:
    """``model.train()``; with a frozen backbone its BatchNorm statistics and dropout stay in eval mode too."""
    model.train(not freeze_backbone)
    if freeze_backbone:
        for name in head_names(model):
            model.get_submodule(name).train()


class Profile(NamedTuple):
    """Size and cost of a model."""

    parameters: int
    macs: int
    """Multiply-accumulates of one picture: convolutions, linear layers and attention."""


def profile(model: nn.Module, size: int) -> Profile:
    """Count on the meta device, so nothing is computed and the model is left as it is.

    There attention decomposes into matrix products, which torch's counter sees; on a CPU it would miss the fused one.
    """
    memo: dict[int, Any] = {id(b): torch.empty_like(b, device="meta") for b in model.buffers()}
    for p in model.parameters():
        memo[id(p)] = nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=False)
    ghost = copy.deepcopy(model, memo).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        ghost(torch.empty(1, 3, size, size, device="meta"))
    return Profile(sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2)
