"""A network with random weights that runs as a trained one does: its speed, size and memory say what training cannot.

Fresh weights alone mislead: normalisation with the statistics 0 and 1 lets activations die away or blow up (denormal
numbers are many times slower, int8 ranges absurd), branches that begin at zero would be left out by an optimiser, and
so would the addition of biases of zero: without it NNCF does not know a squeeze-excite, which it leaves in float.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

BATCH = 16
SMALLEST, ORDINARY = 1e-3, 0.5
"""Scales of a branch that begin below the first are set to the second (LayerScale begins at 1e-6)."""
BIAS = 1e-2
"""Largest of biases that begin at 0."""


@torch.no_grad()
def as_trained(model: nn.Module, pictures: Tensor) -> nn.Module:
    """``model`` itself, in eval mode, with the batch statistics of ``pictures`` (N, 3, H, W), normalised.

    Each layer sees what the layer before it makes of the same batch, as in training; statistics are the mean over the
    batches. Scales that begin at (nearly) zero and biases of zero are set to ordinary values first.
    """
    for module in model.modules():
        bias = module.bias if isinstance(module, nn.Conv2d | nn.Linear) else None
        if bias is not None and not bias.any():
            bias.copy_(BIAS * torch.linspace(-1, 1, len(bias)))
    for name, parameter in model.named_parameters():
        scale = parameter.ndim == 1 and name.rpartition(".")[2] in ("weight", "gamma", "gamma_1", "gamma_2")
        if scale and float(parameter.abs().max()) < SMALLEST:
            parameter.fill_(1.0 if name.endswith("weight") else ORDINARY)
    model.eval()
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches
        norm.train()
    for start in range(0, len(pictures) if norms else 0, BATCH):
        model(pictures[start : start + BATCH])
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()
