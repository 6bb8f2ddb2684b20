"""Making a trained network easier to round to int8 without training: folded normalisation and corrected biases."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack

import torch
from torch import Tensor, nn

LEVELS = 127
ACTIVATION_LEVELS = 255
LAYERS = (nn.Conv2d, nn.Linear)
Layer = nn.Conv2d | nn.Linear


@torch.no_grad()
def folded(model: nn.Module, example: Tensor) -> nn.Module:
    """A copy in which batch normalisation right behind a convolution is part of its weights, and itself an identity.

    The same function, up to float32 rounding. ``example``: (N, 3, H, W), shows which normalisation follows which.
    """
    own = copy.deepcopy(model).eval()
    for convolution, norm in followers(own, example):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        gamma = norm.weight if norm.affine else torch.ones_like(norm.running_var)
        beta = norm.bias if norm.affine else torch.zeros_like(norm.running_var)
        scale = gamma / torch.sqrt(norm.running_var + norm.eps)
        bias = convolution.bias if convolution.bias is not None else torch.zeros_like(norm.running_mean)
        convolution.bias = nn.Parameter((bias - norm.running_mean) * scale + beta)
        convolution.weight.mul_(scale.reshape(-1, 1, 1, 1))
        norm.running_mean.zero_()
        norm.running_var.fill_(1.0)
        norm.eps = 0.0
        if norm.affine:
            norm.weight.fill_(1.0)
            norm.bias.zero_()
    return own


def followers(model: nn.Module, example: Tensor) -> Iterator[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Pairs of a convolution and the batch normalisation that takes its result, and nothing else does before it."""
    made: dict[int, nn.Conv2d] = {}
    kept: list[Tensor] = []  # so that no two results share an address
    found: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def convolved(module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        kept.append(output)
        made[id(output)] = module

    def normalised(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, nn.BatchNorm2d)
        if id(inputs[0]) in made:
            found.append((made.pop(id(inputs[0])), module))

    with ExitStack() as hooks:
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                hooks.callback(module.register_forward_hook(convolved).remove)
            elif isinstance(module, nn.BatchNorm2d):
                hooks.callback(module.register_forward_pre_hook(normalised).remove)
        model(example)
    yield from found


@torch.no_grad()
def bias_corrected(model: nn.Module, pictures: Tensor, islands: Collection[int] = ()) -> nn.Module:
    """A copy with batch normalisation folded and each layer's bias moved by the mean error that int8 makes there.

    Nagel et al. 2019 (arXiv 1906.04721), section 4.2 and appendix D: E[y] - E[y~] of each output channel, found on
    ``pictures`` (N, 3, H, W) layer by layer, each with the layers before it quantised and corrected. Weights are
    rounded per output channel, symmetric; inputs of a layer in 255 steps of their own range. The copy's weights are
    the float ones: it is to be quantised, and is not the same function as ``model`` before that. ``islands``: layers
    that stay float, by their number in order of execution.
    """
    own = folded(model, pictures[:1])
    layers = [m for m in own.modules() if isinstance(m, LAYERS)]
    wanted, limits = statistics(own, layers, pictures)
    weights = [layer.weight.detach().clone() for layer in layers]
    kept = {layer for number, layer in enumerate(limits) if number in islands}
    for layer in layers:
        layer.weight.copy_(layer.weight if layer in kept else rounded(layer.weight))
    with ExitStack() as hooks:
        for layer in layers:
            if layer not in wanted:
                continue
            if layer not in kept:
                hooks.callback(layer.register_forward_pre_hook(_quantising(limits[layer])).remove)
            hooks.callback(layer.register_forward_hook(_correcting(wanted[layer])).remove)
        own(pictures)
    for layer, weight in zip(layers, weights, strict=True):
        layer.weight.copy_(weight)
    return own


def statistics(
    model: nn.Module, layers: list[Layer], pictures: Tensor
) -> tuple[dict[nn.Module, Tensor], dict[nn.Module, tuple[float, float]]]:
    """Of each layer that runs once: the mean of each output channel, and the range of its input."""
    means: dict[nn.Module, Tensor] = {}
    limits: dict[nn.Module, tuple[float, float]] = {}
    again: set[nn.Module] = set()

    def seen(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if module in means:
            again.add(module)
        means[module] = channel_means(output)
        limits[module] = (min(0.0, float(inputs[0].min())), max(0.0, float(inputs[0].max())))

    with ExitStack() as hooks:
        for layer in layers:
            hooks.callback(layer.register_forward_hook(seen).remove)
        model(pictures)
    return {m: v for m, v in means.items() if m not in again}, limits


def channel_means(output: Tensor) -> Tensor:
    """(N, C, H, W) or (..., C) -> (C,)."""
    return output.mean((0, 2, 3)) if output.ndim == 4 else output.reshape(-1, output.shape[-1]).mean(0)


def rounded(weight: Tensor) -> Tensor:
    """(O, ...) rounded to int8, one scale for each output channel, symmetric."""
    scale = weight.abs().flatten(1).amax(1).clamp(min=1e-12) / LEVELS
    scale = scale.reshape(-1, *[1] * (weight.ndim - 1))
    return torch.round(weight / scale) * scale


def fake_quantised(values: Tensor, low: float, high: float) -> Tensor:
    """Clipped to the range and rounded to its 255 steps, zero exact."""
    if high <= low:
        return values
    scale = (high - low) / ACTIVATION_LEVELS
    zero = round(-low / scale)
    return (torch.clamp(torch.round(values / scale) + zero, 0, ACTIVATION_LEVELS) - zero) * scale


def _quantising(limits: tuple[float, float]) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    return lambda _module, inputs: (fake_quantised(inputs[0], *limits), *inputs[1:])


def _correcting(wanted: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def correct(module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        assert isinstance(module, LAYERS)
        shift = wanted - channel_means(output)
        module.bias = nn.Parameter(shift if module.bias is None else module.bias + shift, requires_grad=False)
        return output + (shift.reshape(-1, 1, 1) if output.ndim == 4 else shift)

    return correct
