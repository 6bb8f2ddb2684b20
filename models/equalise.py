"""Cross-layer equalisation: channels between two layers rescaled so that neither has a few that take all the steps.

Nagel et al. 2019 (arXiv 1906.04721), section 4.1: with f(s x) = s f(x) for s > 0, which ReLU satisfies, the output
channel i of a layer is divided by s_i and the input channel i of the next multiplied by it: the same function.

ReLU6 does not satisfy it. The paper puts ReLU in its place, another function wherever a channel goes beyond 6. Here it
stays: a channel that reaches 6 on the pictures keeps its scale (s_i = 1), and any other is never scaled above 6, so
that it is clipped neither before nor after. What an unseen picture makes larger by more than ``MARGIN`` may be.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, fx, nn

from distilledge.models.rounding import LAYERS, Layer, folded

By = Literal["weights", "activations"]

ROUNDS, SETTLED = 20, 1e-3
"""Passes over all pairs, as a depthwise layer is in two of them; they end where no scale moves by more (log)."""
MARGIN = 1.25
"""What a channel may grow to on unseen pictures before ReLU6 clips it."""
RECTIFIERS = {"relu", "relu_"}
CEILINGS = {"relu6", "relu6_", "hardtanh", "hardtanh_"}
PASSING = {
    *("batch_norm", "dropout", "dropout_", "pad", "constant_pad_nd", "max_pool2d", "avg_pool2d"),
    *("adaptive_avg_pool2d", "mean", "flatten", "clone", "contiguous", "alias", "detach"),
}
"""Operations g with g(s x) = s g(x) channel by channel, where ``is_scaled`` has no objection."""


class Pair(NamedTuple):
    """Two layers of which the second alone takes the result of the first."""

    first: str
    second: str
    ceiling: float
    """6 where ReLU6 stands between them, else infinite."""
    rectified: bool
    """Whether ReLU or ReLU6 stands between them, or nothing."""


@torch.no_grad()
def equalised(model: nn.Module, pictures: Tensor, *, by: By = "weights") -> tuple[nn.Module, tuple[Pair, ...]]:
    """A copy, its normalisation folded, that answers the same on ``pictures`` (N, 3, H, W); and the pairs rescaled.

    s_i = sqrt(r1_i r2_i) / r2_i (eq. 11); r2_i: the largest weight that takes channel i. r1_i by ``weights``: the
    largest weight that makes it, as in the paper, for one scale for a whole tensor of weights; by ``activations``: the
    largest value it takes on the pictures, since runtimes have a scale for each output channel of the weights, but one
    for all channels of an activation.
    """
    own = folded(model, pictures[:1])
    pairs = tuple(found(own, pictures[:1]))
    tops = dict(zip(pairs, largest(own, pairs, pictures), strict=True))
    for _ in range(ROUNDS):
        moved = 0.0
        for pair in pairs:
            first, second = layer(own, pair.first), layer(own, pair.second)
            r1 = tops[pair].clamp(0, pair.ceiling) if by == "activations" else peaks(first.weight)
            s = scales(r1, input_peaks(second), tops[pair], pair.ceiling)
            rescale(first, second, s)
            tops[pair] = tops[pair] / s
            moved = max(moved, float(s.log().abs().max()))
        if moved < SETTLED:
            break
    return own, pairs


def scales(r1: Tensor, r2: Tensor, top: Tensor, ceiling: float) -> Tensor:
    """s (C,) > 0 of eq. 11, within what the ceiling allows; 1 for channels that are dead on either side.

    ``top``: the largest value of each channel before the activation.
    """
    live = (r1 > 0) & (r2 > 0)
    s = torch.where(live, torch.sqrt(r1 * r2) / r2, 1.0)
    if ceiling == float("inf"):
        return s
    least = (top * MARGIN / ceiling).clamp(max=1.0)
    return torch.where(top >= ceiling, 1.0, torch.maximum(s, least))


def rescale(first: Layer, second: Layer, s: Tensor) -> None:
    """Channel i of the result of ``first`` is divided by s_i, that of the input of ``second`` multiplied."""
    first.weight.div_(s.reshape(-1, *[1] * (first.weight.ndim - 1)))
    if first.bias is not None:
        first.bias.div_(s)
    shape = (-1, 1) if is_depthwise(second) else (1, -1)
    second.weight.mul_(s.reshape(*shape, *[1] * (second.weight.ndim - 2)))


def peaks(weight: Tensor) -> Tensor:
    """(O, ...) -> (O,): the largest magnitude that makes each output channel."""
    return weight.abs().flatten(1).amax(1)


def input_peaks(second: Layer) -> Tensor:
    """The largest magnitude that takes each input channel."""
    return peaks(second.weight if is_depthwise(second) else second.weight.transpose(0, 1))


def is_depthwise(module: Layer) -> bool:
    return isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels == module.out_channels


def layer(model: nn.Module, name: str) -> Layer:
    module = model.get_submodule(name)
    assert isinstance(module, LAYERS)
    return module


def largest(model: nn.Module, pairs: tuple[Pair, ...], pictures: Tensor) -> list[Tensor]:
    """Of each pair the largest value (C,) of every channel that its first layer makes; normalisation is folded.

    Where nothing rectifies it, the largest magnitude.
    """
    seen: dict[str, Tensor] = {}

    def keep(pair: Pair) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            seen[pair.first] = (output if pair.rectified else output.abs()).amax((0, 2, 3))

        return hook

    with ExitStack() as hooks:
        for pair in pairs:
            hooks.callback(model.get_submodule(pair.first).register_forward_hook(keep(pair)).remove)
        model(pictures)
    return [seen[pair.first] for pair in pairs]


def found(model: nn.Module, example: Tensor) -> Iterator[Pair]:
    """Pairs in the graph of ``torch.export``, where no other operation takes what lies between the two."""
    program = torch.export.export(model.eval(), (example,))
    names = dict(program.graph_signature.inputs_to_parameters)
    for node in program.graph.nodes:
        if operation(node) == "conv2d" and (first := module_of(node, names)) is not None:
            yield from following(model, node, first, names)


def following(model: nn.Module, node: fx.Node, first: str, names: dict[str, str]) -> Iterator[Pair]:
    """The pair that begins at a convolution, or nothing."""
    ceiling, rectified, here, channels = float("inf"), False, node, layer(model, first).weight.shape[0]
    while len(here.users) == 1:
        before = here
        (here,) = before.users
        kind = operation(here)
        if kind in ("conv2d", "linear"):
            second = module_of(here, names)
            if second is not None and takes(layer(model, second), channels) and here.args[0] is before:
                yield Pair(first, second, ceiling, rectified)
            return
        if kind in CEILINGS and kind.startswith("hardtanh") and tuple(here.args[1:]) != (0.0, 6.0):
            return
        if kind in CEILINGS:
            ceiling = 6.0
        rectified = rectified or kind in CEILINGS | RECTIFIERS
        if kind not in CEILINGS | RECTIFIERS and not (kind in PASSING and is_scaled(model, here, names)):
            return


def takes(second: Layer, channels: int) -> bool:
    """Whether its input channels are those of the first layer, one by one."""
    if isinstance(second, nn.Linear):
        return second.in_features == channels
    return second.in_channels == channels and (second.groups == 1 or is_depthwise(second))


def operation(node: fx.Node) -> str:
    """Such as ``conv2d`` of ``aten.conv2d.default``."""
    target: Any = node.target
    return str(getattr(getattr(target, "overloadpacket", None), "__name__", "")) if node.op == "call_function" else ""


def module_of(node: fx.Node, names: dict[str, str]) -> str | None:
    """The module whose weight a convolution or linear operation takes, where it is a parameter used once."""
    weight = node.args[1]
    if not isinstance(weight, fx.Node) or len(weight.users) != 1 or weight.name not in names:
        return None
    return names[weight.name].rpartition(".")[0]


def is_scaled(model: nn.Module, node: fx.Node, names: dict[str, str]) -> bool:
    """No objection: padding with zeros; normalisation that was folded away; a mean over places, not channels."""
    kind = operation(node)
    if kind in ("pad", "constant_pad_nd"):
        value = node.args[3] if kind == "pad" and len(node.args) > 3 else node.args[2] if len(node.args) > 2 else 0
        return value in (None, 0, 0.0, "constant")
    if kind == "mean":
        return set(node.args[1]) <= {2, 3, -1, -2}  # type: ignore[arg-type]
    if kind == "batch_norm":
        weight = node.args[1]
        assert isinstance(weight, fx.Node)
        norm = model.get_submodule(names[weight.name].rpartition(".")[0])
        return isinstance(norm, nn.BatchNorm2d) and is_identity(norm)
    return True


def is_identity(norm: nn.BatchNorm2d) -> bool:
    """As ``folded`` leaves it."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    ones = bool((norm.running_var == 1).all() and (norm.weight == 1).all()) and norm.eps == 0
    return ones and bool((norm.running_mean == 0).all() and (norm.bias == 0).all())
