"""How far data is from what a network's BatchNorm statistics were taken of."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

Norm = nn.modules.batchnorm._BatchNorm


@torch.no_grad()
def batch_norm_distance(model: nn.Module, inputs: Iterable[Tensor]) -> float | None:
    """KL(data || statistics) of Gaussians in nats, the median over channels, the mean over layers; None without
    BatchNorm.

    The statistics of a layer's inputs stand for the domain (Li et al. 2017, AdaBN); as divergence of Gaussians they are
    those of Yin et al. 2020 (DeepInversion, eq. 4) with their scale taken out. The median: a few channels that are all
    but dead in one of the two are infinitely far apart. ``inputs``: batches; the model is in eval mode.
    """
    norms = {name: m for name, m in model.named_modules() if isinstance(m, Norm) and m.running_mean is not None}
    sums: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[[nn.Module, Any], None]:
        def see(_module: nn.Module, given: Any) -> None:
            seen = given[0].double().transpose(0, 1).flatten(1)  # (channels, values)
            count = torch.full((len(seen),), float(seen.shape[1]), dtype=torch.float64, device=seen.device)
            parts = torch.stack([count, seen.sum(1), seen.square().sum(1)])
            sums[name] = sums[name] + parts if name in sums else parts

        return see

    hooks = [m.register_forward_pre_hook(watch(name)) for name, m in norms.items()]
    try:
        model.eval()
        for batch in inputs:
            model(batch)
    finally:
        for hook in hooks:
            hook.remove()
    found = [_divergence(sums[name], norms[name]) for name in sums]
    return sum(found) / len(found) if found else None


def _divergence(sums: Tensor, norm: Norm) -> float:
    count, total, squares = sums
    mean = total / count
    variance = (squares / count - mean.square()).clamp(min=0) + norm.eps
    assert norm.running_mean is not None
    assert norm.running_var is not None
    expected, spread = norm.running_mean.double(), norm.running_var.double() + norm.eps
    each = 0.5 * (spread.log() - variance.log() + (variance + (mean - expected).square()) / spread - 1)
    return float(each.median())
