"""What training and the reports need to know of a text model: parameter groups, frozen parts, size and cost."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from distilledge.models.text_net import TextNet
from distilledge.models.vision_training import Profile

HEAD = "head."
ADAPTER = "lora_"


def parameter_groups(
    model: nn.Module, *, lr: float, weight_decay: float, layer_decay: float = 1.0, freeze_backbone: bool = False
) -> list[dict[str, Any]]:
    """Optimizer groups ``{"params", "lr", "weight_decay"}`` in a stable order, one for each pair of values.

    Biases and 1-D parameters get no decay. The learning rate of a layer is ``layer_decay`` times that of the layer
    above it, embeddings lowest; the head has ``lr``. ``requires_grad`` is set: with ``freeze_backbone`` the head alone
    is trained, with adapters (``text_lora.add``) they and the head.
    """
    assert isinstance(model, TextNet)
    adapted = any(ADAPTER in name for name, _ in model.named_parameters())
    top = int(model.config.num_hidden_layers) + 1
    merged: dict[tuple[int, float], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(HEAD) or (not freeze_backbone and (not adapted or ADAPTER in name)))
        if parameter.requires_grad:
            decay = weight_decay if parameter.ndim > 1 and not name.endswith("bias") else 0.0
            merged.setdefault((depth(model, name), decay), []).append(parameter)
    return [{"params": p, "lr": lr * layer_decay ** (top - d), "weight_decay": w} for (d, w), p in merged.items()]


def depth(model: TextNet, name: str) -> int:
    """0 for embeddings, i + 1 for layer i and, with the last, the final norm, one more for the head."""
    layers = int(model.config.num_hidden_layers)
    if name.startswith(HEAD):
        return layers + 1
    prefix = f"backbone.{model.layout.layers}."
    if name.startswith(prefix):
        return int(name.removeprefix(prefix).partition(".")[0]) + 1
    final = ("backbone.ln_f.", "backbone.norm.", "backbone.final_norm.", "backbone.final_layer_norm.")
    return layers if name.startswith(final) else 0


def train_mode(model: nn.Module, *, freeze_backbone: bool = False) -> None:
    """``model.train()``; with a frozen backbone its dropout stays in eval mode."""
    model.train(not freeze_backbone)
    if freeze_backbone:
        model.get_submodule("head").train()


def profile(model: TextNet, length: int) -> Profile:
    """Parameters, and multiply-accumulates of one text of ``length`` tokens; counted on the meta device.

    There attention decomposes into matrix products, which torch's counter sees; looking up embeddings costs nothing.
    """
    memo: dict[int, Any] = {id(b): torch.empty_like(b, device="meta") for b in model.buffers()}
    for p in model.parameters():
        memo[id(p)] = nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=False)
    ghost = copy.deepcopy(model, memo).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        ghost(torch.empty(1, length, dtype=torch.int32, device="meta"))
    return Profile(sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2)


def set_dropout(model: TextNet, rate: float) -> None:
    """Of every dropout layer: after embeddings, in attention and feed-forward layers, and before the head."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate
