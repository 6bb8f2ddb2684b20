"""Where two runs of the same network part: the first tensor, the wrong input, the range that does not fit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from distilledge.targets.base import FloatArray, Uint8Array
from distilledge.targets.ondevice.preprocess import InputSpec

Pixels = npt.NDArray[np.floating[Any]]
Mistake = Callable[[Pixels, Pixels, Pixels], Pixels]
"""(N, H, W, 3) of 0..255, mean and std of 0..1 -> what a wrong graph would feed to the model, NHWC."""

MISTAKES: dict[str, Mistake] = {
    "normalised twice": lambda x, m, s: ((x / 255 - m) / s / 255 - m) / s,
    "not normalised (0..255)": lambda x, _m, _s: x,
    "scaled to 0..1 only": lambda x, _m, _s: x / 255,
    "mean and std applied to 0..255": lambda x, m, s: (x - m) / s,
    "channels reversed (BGR)": lambda x, m, s: (x[..., ::-1] / 255 - m) / s,
    "height and width swapped": lambda x, m, s: (x.transpose(0, 2, 1, 3) / 255 - m) / s,
}


def logits_of(tensors: Mapping[str, FloatArray], tasks: Sequence[str] = ()) -> FloatArray:
    """The output among the tensors of a graph, one row after another: the one named ``logits``, else the last.

    Of several tasks: theirs side by side.
    """
    if tasks:
        return np.concatenate([tensors[task] for task in tasks], axis=-1)
    return tensors["logits"] if "logits" in tensors else list(tensors.values())[-1]


@torch.inference_mode()
def preprocess_mistake(model: nn.Module, images: Uint8Array, spec: InputSpec, got: FloatArray) -> str | None:
    """The mistake of ``MISTAKES`` that explains the file's logits (relative difference below 2 %), or None."""
    mean, std = np.array(spec.mean, np.float32), np.array(spec.std, np.float32)
    pixels = images.astype(np.float32)
    for name, mistake in MISTAKES.items():
        wrong = mistake(pixels, mean, std).astype(np.float32)
        if wrong.shape != pixels.shape:
            continue
        logits = model(torch.from_numpy(np.ascontiguousarray(wrong.transpose(0, 3, 1, 2)))).float().numpy()
        if np.abs(logits - got).max() <= 0.02 * np.abs(logits).max():
            return name
    return None


def sqnr_db(reference: Pixels, other: Pixels) -> float:
    """Signal to noise of ``other`` against ``reference`` in dB; 200 where they are equal."""
    noise = float(np.square(reference.astype(np.float64) - other).sum())
    signal = float(np.square(reference.astype(np.float64)).sum())
    return 200.0 if noise == 0 else 10 * float(np.log10(max(signal, 1e-30) / noise))


def first_tensor(
    reference: Mapping[str, FloatArray], other: Mapping[str, FloatArray], *, min_sqnr_db: float
) -> str | None:
    """The first tensor, in the reference's graph order and present in both, whose SQNR falls below the bound."""
    for name, tensor in reference.items():
        twin = other.get(name)
        if twin is None or twin.shape != tensor.shape or not np.abs(tensor).any():
            continue
        ratio = sqnr_db(tensor, twin)
        if ratio < min_sqnr_db or not np.isfinite(twin).all():
            return f"{name} (SQNR {ratio:.1f} dB)"
    return None


@torch.inference_mode()
def first_module(model: nn.Module, inputs: torch.Tensor, graph: Mapping[str, FloatArray]) -> str | None:
    """The torch module after the last one whose output is found, in any layout, among the exported graph's tensors.

    Tensors are matched by a summary of their values (size, mean, deviation, extremes): names and layouts do not matter.
    """
    outputs = _module_outputs(model, inputs)
    found = [_summary(t) for t in graph.values()]
    matched = [any(_close(_summary(value), other) for other in found) for _, value in outputs]
    last = max((i for i, hit in enumerate(matched) if hit), default=-1)
    later = [name for (name, _), hit in zip(outputs[last + 1 :], matched[last + 1 :], strict=True) if not hit]
    return later[0] if later else None


def _module_outputs(model: nn.Module, inputs: torch.Tensor) -> list[tuple[str, FloatArray]]:
    outputs: list[tuple[str, FloatArray]] = []

    def keep(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...], object], None]:
        def hook(_module: nn.Module, _inputs: tuple[torch.Tensor, ...], output: object) -> None:
            if isinstance(output, torch.Tensor):
                outputs.append((name, output.float().numpy().copy()))

        return hook

    leaves = [
        (n, m) for n, m in model.named_modules() if n and not list(m.children()) and not isinstance(m, nn.Identity)
    ]
    handles = [module.register_forward_hook(keep(name)) for name, module in leaves]
    try:
        model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def _summary(tensor: FloatArray) -> tuple[float, ...]:
    values = tensor.astype(np.float64)
    return (values.size, values.mean(), values.std(), values.min(), values.max())


def _close(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    scale = max(abs(a[3]), abs(a[4]), 1e-6)
    return a[0] == b[0] and all(abs(x - y) <= 2e-3 * scale for x, y in zip(a[1:], b[1:], strict=True))


@torch.no_grad()
def rounded_weights(model: nn.Module) -> nn.Module:
    """A copy with each weight tensor rounded to symmetric int8 per output channel."""
    rounded = copy.deepcopy(model)
    for module in rounded.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding):
            flat = module.weight.flatten(1)
            step = flat.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
            module.weight.copy_(((flat / step).round() * step).view_as(module.weight))
    return rounded
