"""Low-rank adapters on a frozen base of 4-bit numbers (QLoRA, Dettmers et al. 2023), through peft and bitsandbytes."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import logging
import sys
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from distilledge.models import text_lora, vision_lora
from distilledge.models.errors import MissingPackageError, UsageError
from distilledge.models.text_net import TextNet
from distilledge.models.transfer import head_module

Net = TypeVar("Net", bound=nn.Module)
COMPUTE = {"fp32": torch.float32, "bf16": torch.bfloat16}
KEPT = (".wo",)
"""T5 asks this layer's weight for its type, which a packed one does not have."""


def add(
    model: Net,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    *,
    quant_type: str = "nf4",
    double_quant: bool = True,
    compute: str = "fp32",
    adapters: str = "all",
) -> Net:
    """A copy whose blocks' linear layers are 4-bit and frozen, with adapters on all of them or on the attention's.

    W x becomes W4 x + alpha/rank * B A x, W4 being W rounded to 16 levels for each 64 numbers, B = 0 at first. Raises
    ``MissingPackageError`` where bitsandbytes is not there, ``UsageError`` for a model without attention.
    """
    require()
    from peft import LoraConfig, inject_adapter_in_model

    attention = text_lora.target_names(model) if isinstance(model, TextNet) else vision_lora.target_names(model)
    if not attention:
        raise UsageError("E2560", "qlora is of transformers, and this teacher is none", "use strategy: fine-tune")
    adapted: Any = copy.deepcopy(model)
    chosen = quantised_names(adapted)
    for name in chosen:
        layer = four_bit_layer()(adapted.get_submodule(name), quant_type, double_quant, COMPUTE[compute])
        adapted.set_submodule(name, layer)
    settings = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=chosen if adapters == "all" else attention,
    )
    adapted.is_loaded_in_4bit = True  # what peft asks for
    made: Any = inject_adapter_in_model(settings, adapted)
    del made.is_loaded_in_4bit
    result: Net = made
    return result


def require() -> None:
    """Raises ``MissingPackageError`` where there is no bitsandbytes, or one that does not load here."""
    if importlib.util.find_spec("bitsandbytes") is None:
        what = "qlora keeps its base in 4 bits through bitsandbytes, which is not installed"
        raise MissingPackageError("E4550", what, 'pip install "distilledge[qlora]"')
    try:
        layer = imported().nn.Linear4bit(64, 1, bias=False, quant_type="nf4").to("cpu")
        layer(torch.ones(1, 64))
    except (ImportError, OSError, RuntimeError, AttributeError, NotImplementedError) as error:
        reason = str(error).strip().partition("\n")[0]
        what = f"bitsandbytes cannot compute 4-bit layers here: {reason}"
        raise MissingPackageError("E4551", what, "set teacher.strategy: lora") from error


def imported() -> Any:
    """bitsandbytes, without the package ``kernels``, through which it would fetch code from the hub when imported."""
    if "bitsandbytes" in sys.modules:
        return sys.modules["bitsandbytes"]
    log, other = logging.getLogger("bitsandbytes"), sys.modules.get("kernels")
    level = log.level
    sys.modules["kernels"] = None  # type: ignore[assignment]  # its import fails, which is provided for
    log.setLevel(logging.ERROR)
    try:
        return importlib.import_module("bitsandbytes")
    finally:
        log.setLevel(level)
        del sys.modules["kernels"]
        if other is not None:
            sys.modules["kernels"] = other


def quantised_names(model: nn.Module) -> list[str]:
    """Of the linear layers inside of lists of blocks; embeddings, norms and the head stay as they are."""
    from transformers.pytorch_utils import Conv1D

    head = f"{head_module(model)}."
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and any(part.isdigit() for part in name.split("."))
        and not f"{name}.".startswith(head)
        and not name.endswith(KEPT)
    ]


@lru_cache
def four_bit_layer() -> Any:
    """The class of the base's layers: bitsandbytes' own, without what would change numbers or states behind our back.

    Its state dict is empty: the base does not change in training and is made again from the weights it started from.
    On CPUs with AVX512 bitsandbytes repacks weights in eval mode and computes in bf16 from then on; this one does not.
    """
    bitsandbytes = imported()

    class FourBit(bitsandbytes.nn.Linear4bit):  # type: ignore[misc, name-defined]
        def __init__(self, layer: nn.Module, quant_type: str, double_quant: bool, compute: torch.dtype) -> None:
            weight, self_transposed = plain_weight(layer)
            super().__init__(
                weight.shape[1],
                weight.shape[0],
                bias=False,
                compute_dtype=compute,
                compress_statistics=double_quant,
                quant_type=quant_type,
            )
            self.transposed = self_transposed
            self.support_avx512bf16_for_cpu = False
            self.weight = bitsandbytes.nn.Params4bit(
                weight.detach().clone(),
                requires_grad=False,
                compress_statistics=double_quant,
                quant_type=quant_type,
                module=self,
            ).to(weight.device)
            bias: Any = layer.bias
            self.register_buffer("added", None if bias is None else bias.detach().clone(), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = super().forward(x)
            return found if self.added is None else found + self.added.to(found.dtype)

        def dequantised(self) -> Tensor:
            """float32 (out, in)"""
            state = self.weight.quant_state
            found: Tensor = bitsandbytes.functional.dequantize_4bit(self.weight.data, state)
            return found.float()

        def _save_to_state_dict(self, *_: Any) -> None:
            return

        def _load_from_state_dict(self, *_: Any) -> None:
            return

    return FourBit


def plain_weight(layer: nn.Module) -> tuple[Tensor, bool]:
    """(out, in), and whether the layer keeps it transposed (GPT-2's Conv1D)."""
    weight: Any = layer.weight
    return (weight, False) if isinstance(layer, nn.Linear) else (weight.T.contiguous(), True)


def merge(model: Net) -> Net:
    """A copy in float32 with the layers it once had: dequantised W4 + alpha/rank * B A. All its parameters are trained.

    It gives the same logits (with ``compute: bf16``, up to that), not those that the weights gave before rounding.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    merged = copy.deepcopy(model)
    for name, module in list(merged.named_modules()):
        if isinstance(module, BaseTunerLayer):
            base: Any = module.get_base_layer()
            (adapter,) = module.active_adapters
            tuned: Any = module
            merged.set_submodule(name, _restored(base, tuned.get_delta_weight(adapter).float()))
    for name, module in list(merged.named_modules()):
        if isinstance(module, four_bit_layer()):
            merged.set_submodule(name, _restored(module, None))
    return merged.requires_grad_()


@torch.no_grad()
def _restored(base: Any, delta: Tensor | None) -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    transposed: Any = Conv1D
    weight = base.dequantised() if delta is None else base.dequantised() + delta
    rows, columns = weight.shape
    made: Any = transposed(rows, columns) if base.transposed else nn.Linear(columns, rows, bias=base.added is not None)
    made.weight.copy_(weight.T if base.transposed else weight)
    if base.added is not None:
        made.bias.copy_(base.added)
    return made  # type: ignore[no-any-return]
