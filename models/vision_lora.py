"""Low-rank adapters in the attention of an image transformer (Hu et al. 2021), through peft; merging of any."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

from distilledge.models.errors import UsageError

Net = TypeVar("Net", bound=nn.Module)
PROJECTIONS = ("attn.qkv", "attn.q", "attn.k", "attn.v", "attn.q_proj", "attn.k_proj", "attn.v_proj")
"""What timm calls the projections of queries, keys and values."""


def add(model: nn.Module, rank: int, alpha: float, dropout: float = 0.0) -> nn.Module:
    """A copy with adapters on the projections of every attention; W x becomes W x + alpha/rank * B A x, B = 0 at first.

    Raises ``UsageError`` for a model without attention.
    """
    from peft import LoraConfig, inject_adapter_in_model

    names = target_names(model)
    if not names:
        raise UsageError(
            "E2465", "lora adapts attention, and this teacher has none", "choose a transformer, or strategy: fine-tune"
        )
    settings = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=names,
    )
    return inject_adapter_in_model(settings, copy.deepcopy(model))


def target_names(model: nn.Module) -> list[str]:
    """Full names of the linear layers that get an adapter."""
    endings = tuple(f".{name}" for name in PROJECTIONS)
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name.endswith(endings)]


def merge(model: Net) -> Net:
    """A copy without adapters that gives the same logits: W + alpha/rank * B A. All its parameters can be trained."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    merged = copy.deepcopy(model)
    for name, module in list(merged.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge(safe_merge=True)
            parent, _, own = name.rpartition(".")
            setattr(merged.get_submodule(parent), own, module.get_base_layer())
    return merged.requires_grad_()
