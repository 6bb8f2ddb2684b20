"""What keeps a model near the weights it started from: L2-SP and elastic weight consolidation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Penalty(nn.Module):
    """1/2 sum_i c_i (w_i - w0_i)^2 over named parameters, added to the loss.

    ``anchors``: w0, by name; ``strengths``: c, a number or a tensor of the parameter's shape. They are buffers, so that
    a resumed training has the same bits.
    """

    def __init__(self, anchors: Mapping[str, Tensor], strengths: Mapping[str, Tensor | float]) -> None:
        super().__init__()
        self.names = tuple(anchors)
        for number, name in enumerate(self.names):
            strength = torch.as_tensor(strengths[name], dtype=torch.float32).detach().clone()
            self.register_buffer(f"anchor_{number}", anchors[name].detach().float().clone())
            self.register_buffer(f"strength_{number}", strength)

    def forward(self, model: nn.Module) -> Tensor:
        """A float32 scalar."""
        named = dict(model.named_parameters())
        parts = [
            (self.get_buffer(f"strength_{i}") * (named[name].float() - self.get_buffer(f"anchor_{i}")).square()).sum()
            for i, name in enumerate(self.names)
        ]
        return 0.5 * torch.stack(parts).sum()


def l2_sp(model: nn.Module, head: Iterable[str], alpha: float, beta: float) -> Penalty:
    """alpha/2 ||w_S - w_S^0||^2 + beta/2 ||w_head||^2 (Li, Grandvalet & Davoine 2018, eq. 3); ``head``: its names."""
    named, new = dict(model.named_parameters()), set(head)
    anchors = {name: torch.zeros_like(p) if name in new else p for name, p in named.items()}
    return Penalty(anchors, {name: beta if name in new else alpha for name in named})


def ewc(model: nn.Module, fisher: Mapping[str, Tensor], strength: float) -> Penalty:
    """strength/2 sum_i F_i (w_i - w0_i)^2 (Kirkpatrick et al. 2017, eq. 3), of the parameters that ``fisher`` names."""
    named = dict(model.named_parameters())
    return Penalty({name: named[name] for name in fisher}, {name: strength * f for name, f in fisher.items()})


def diagonal_fisher(
    model: nn.Module,
    inputs: Iterable[Iterable[Any]],
    names: Iterable[str],
    *,
    seed: int,
    answer: Callable[[Any], Tensor] | None = None,
) -> dict[str, Tensor]:
    """The mean over samples of the squared gradient of log p(y|x), y drawn from the model's own answer, by parameter.

    ``inputs``: batches of samples. ``answer``: a sample -> logits (R, C) of its answers, by default the model's one;
    several are independent given the sample, so that their logarithms add up. The model is in eval mode; each sample
    has its own backward pass.
    """
    named = dict(model.eval().named_parameters())
    parameters = {name: named[name].requires_grad_() for name in names}
    sums = {name: torch.zeros_like(p) for name, p in parameters.items()}
    random, count = torch.Generator().manual_seed(seed), 0
    for batch in inputs:
        for sample in batch:
            logits = model(sample.unsqueeze(0)) if answer is None else answer(sample)
            logs = logits.log_softmax(-1)
            drawn = torch.multinomial(logs.detach().exp().cpu(), 1, generator=random).to(logs.device)
            gradients = torch.autograd.grad(logs.gather(-1, drawn).sum(), list(parameters.values()))
            for total, gradient in zip(sums.values(), gradients, strict=True):
                total.add_(gradient.square())
            count += 1
    return {name: (total / max(1, count)).detach() for name, total in sums.items()}
