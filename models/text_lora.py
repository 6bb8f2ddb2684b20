"""Low-rank adapters in a text model's attention (Hu et al. 2021), through peft."""

from __future__ import annotations

import copy

from torch import nn

from distilledge.models import vision_lora
from distilledge.models.text_names import layers_of
from distilledge.models.text_net import TextNet


def add(model: TextNet, rank: int, alpha: float, dropout: float = 0.0) -> TextNet:
    """A copy in which only adapters of every query, key and value projection, and the head, are trained.

    W x becomes W x + alpha/rank * B A x, with A (rank, in) random and B (out, rank) zero, so nothing changes at first.
    """
    from peft import LoraConfig, inject_adapter_in_model

    adapted = copy.deepcopy(model)
    fused = bool(model.layout.fused) and type(_projection(model)) is not nn.Linear
    settings = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=target_names(model),
        fan_in_fan_out=fused,  # GPT-2 keeps its weights transposed
    )
    made = inject_adapter_in_model(settings, adapted)
    assert isinstance(made, TextNet)
    made.head.requires_grad_()
    return made


def target_names(model: TextNet) -> list[str]:
    """Full names of the projections that get an adapter."""
    parts = model.layout
    names = [parts.fused] if parts.fused else [parts.query, parts.key, parts.value]
    count = len(layers_of(model.backbone, model.model_type))
    return [f"backbone.{parts.layers}.{i}.{name}" for i in range(count) for name in names]


def _projection(model: TextNet) -> nn.Module:
    return model.get_submodule(target_names(model)[0])


def merge(model: TextNet) -> TextNet:
    """See ``vision_lora.merge``."""
    return vision_lora.merge(model)
