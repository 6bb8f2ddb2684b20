"""One network of fake-quantised arithmetic for all runtimes, made from any convolutional model by ``torch.export``.

Every place where ONNX Runtime, OpenVINO or LiteRT stores an int8 tensor has a ``Range``: the input, and each result of
arithmetic, behind the normalisation and the activation that runtimes compute together with the layer before.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from distilledge.models.errors import RejectedError
from distilledge.models.fake_quant import SIGMOID, Normalisation, Range, RoundedWeight

ATEN = torch.ops.aten
LAYERS = {ATEN.conv2d.default, ATEN.conv2d.padding, ATEN.linear.default}
NORM = ATEN.batch_norm.default
ACTIVATIONS = {ATEN.relu.default, ATEN.relu6.default, ATEN.hardtanh.default, ATEN.clamp.default}
"""Computed together with the layer, normalisation or sum before: what lies between is never stored."""
BEFORE_ACTIVATION = {*LAYERS, NORM, ATEN.add.Tensor}
GATES = {ATEN.sigmoid.default, ATEN.hardsigmoid.default}
PASSED = {
    *(ATEN.pad.default, ATEN.constant_pad_nd.default, ATEN.max_pool2d.default, ATEN.dropout.default),
    *(ATEN.flatten.using_ints, ATEN.view.default, ATEN.reshape.default, ATEN.permute.default, ATEN.squeeze.dim),
    *(ATEN.squeeze.dims, ATEN.unsqueeze.default, ATEN.contiguous.default, ATEN.clone.default, ATEN.sym_size.int),
    *(ATEN.transpose.int, ATEN.alias.default, ATEN.chunk.default, ATEN.split.Tensor, operator.getitem),
}
"""Their results have the range of what goes in."""
ATTENTION = {ATEN.softmax.int, ATEN.scaled_dot_product_attention.default, ATEN.matmul.default, ATEN.bmm.default}
RANGE, WEIGHT = "range_", "weight_"
"""What the names of added modules begin with."""
SAME = 1e-4
"""Largest difference of a logit from the model's, relative to the largest logit."""


class FakeQuantised(nn.Module):
    """``model`` in fake int8; its parameters are copies. ``example``: (2 or more, 3, H, W).

    Ranges are to be started (``observe``, ``start``) before it means anything. Raises ``RejectedError`` for a network
    that cannot be traced, or one with attention, of which runtimes quantise the layers with weights alone.
    """

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        super().__init__()
        self.network = quantised_graph(model, example)
        with self.in_float(), torch.no_grad():
            reference = model(example)
            difference = float((self(example) - reference).abs().max() / reference.abs().max().clamp(min=1e-6))
        if not difference <= SAME:
            what = f"the traced network is another function: logits differ by {difference:.2g}"
            raise RejectedError("E3651", what, "leave compress.qat out for this student")

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.network(x)
        return made

    @property
    def ranges(self) -> dict[str, Range]:
        """Place -> its range, in graph order."""
        found = ((n, m) for n, m in self.network.named_modules() if isinstance(m, Range))
        return {name.removeprefix(RANGE): module for name, module in found}

    def start(self, ends: Mapping[str, tuple[float, float]]) -> None:
        for name, one in self.ranges.items():
            one.start(*ends[name])

    def on_grid(self) -> dict[str, tuple[float, float]]:
        """The ranges as int8 has them, of every place."""
        return {name: one.on_grid() for name, one in self.ranges.items()}

    def range_parameters(self) -> list[nn.Parameter]:
        learnt = (one for one in self.ranges.values() if not one.fixed)
        return [p for one in learnt for p in (one.log_low, one.log_high)]

    def freeze_norms(self, *, frozen: bool) -> None:
        for module in self.network.modules():
            if isinstance(module, Normalisation):
                module.frozen = frozen

    @contextmanager
    def in_float(self) -> Iterator[None]:
        """Inside, nothing is rounded."""
        switched = [m for m in self.network.modules() if isinstance(m, Range | RoundedWeight)]
        for module in switched:
            module.on = False
        try:
            yield
        finally:
            for module in switched:
                module.on = True

    @torch.no_grad()
    def taps(self, x: Tensor, *, passed: bool = False) -> dict[str, Tensor]:
        """Place -> the float tensor that would be rounded there, (N, ...).

        ``passed``: also what is only reshaped, padded or pooled behind a place, as ``place/operation``.
        """
        taps = _Taps(self.network)
        with self.in_float():
            taps.run(x)
        return {name: value for name, value in taps.found.items() if passed or "/" not in name}

    def latent(self) -> dict[str, Tensor]:
        """The float weights and statistics by the model's own names, for ``load_state_dict(..., strict=False)``."""
        return {k: v for k, v in self.network.state_dict().items() if not k.startswith(RANGE)}


class _Taps(fx.Interpreter):
    """Runs a network and keeps what passes its ranges."""

    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__(network)
        self.found: dict[str, Tensor] = {}
        self._places: dict[fx.Node, str] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        before = n.args[0] if n.args else None
        if n.op == "call_module" and str(n.target).startswith(RANGE):
            self._places[n] = str(n.target).removeprefix(RANGE)
            self.found[self._places[n]] = result
        elif isinstance(before, fx.Node) and before in self._places and n.target in PASSED:
            self._places[n] = self._places[before]
            if isinstance(result, Tensor):
                self.found[f"{self._places[n]}/{n.name}"] = result
        return result


def quantised_graph(model: nn.Module, example: Tensor) -> fx.GraphModule:
    """The traced network with a ``Range`` behind each stored tensor, and its weights rounded."""
    batch = torch.export.Dim("batch", min=1, max=4096)
    try:
        program = torch.export.export(model.eval(), (example,), dynamic_shapes=({0: batch},))
    except Exception as error:
        what = f"torch.export cannot trace it: {str(error).splitlines()[0]}"
        raise RejectedError("E3650", what, "leave compress.qat out for this student") from error
    traced = program.module(check_guards=False)
    assert isinstance(traced, fx.GraphModule)
    graph = traced.graph
    if any(node.target in ATTENTION for node in graph.nodes):
        raise RejectedError("E3652", "it has attention", "leave compress.qat out for this student")
    graph.set_codegen(fx.graph.CodeGen())
    _plain_output(graph)
    _without_in_place(graph)
    _decomposed(graph)
    for node in list(graph.nodes):
        if node.target in LAYERS:
            _inserted(traced, node, RoundedWeight(), f"{WEIGHT}{node.name}", of=node.args[1])
        elif node.target is NORM:
            _normalising(traced, node)
    for node in _stored(graph):
        _inserted(traced, node, Range(SIGMOID if node.target in GATES else None), f"{RANGE}{node.name}", of=node)
    graph.eliminate_dead_code()
    graph.lint()
    own = fx.GraphModule(traced, graph)
    for parameter in own.parameters():
        parameter.data = parameter.data.clone()
    for buffer in own.buffers():
        buffer.data = buffer.data.clone()
    return own.train(mode=False)


def _plain_output(graph: fx.Graph) -> None:
    """The logits themselves instead of a tuple of one."""
    (last,) = graph.find_nodes(op="output")
    result = last.args[0]
    while isinstance(result, tuple | list):
        result = result[0]
    last.args = (result,)


def _without_in_place(graph: fx.Graph) -> None:
    """``relu_`` becomes ``relu``: what is rounded in between must stay. A trace uses results, not changed inputs."""
    for node in graph.nodes:
        packet, _, overload = str(node.target).removeprefix("aten.").partition(".")
        if str(node.target).startswith("aten.") and packet.endswith("_") and not packet.endswith("__"):
            node.target = getattr(getattr(ATEN, packet[:-1]), overload)


def _decomposed(graph: fx.Graph) -> None:
    """SiLU is x sigmoid(x): ONNX Runtime and LiteRT store both."""
    for node in list(graph.nodes):
        if node.target is ATEN.silu.default:
            with graph.inserting_before(node):
                gate = graph.call_function(ATEN.sigmoid.default, (node.args[0],))
                product = graph.call_function(ATEN.mul.Tensor, (node.args[0], gate))
            node.replace_all_uses_with(product)
            graph.erase_node(node)


def _normalising(root: fx.GraphModule, node: fx.Node) -> None:
    graph = root.graph
    x, weight, bias, mean, variance, _training, momentum, eps, *_ = node.args
    root.add_submodule(f"norm_{node.name}", Normalisation(float(momentum), float(eps)))  # type: ignore[arg-type]
    with graph.inserting_before(node):
        own = graph.call_module(f"norm_{node.name}", (x, weight, bias, mean, variance))
    own.meta["norm"] = True
    node.replace_all_uses_with(own)
    graph.erase_node(node)


def _inserted(root: fx.GraphModule, node: fx.Node, module: nn.Module, name: str, *, of: Any) -> None:
    """``module`` on a weight of ``node`` alone, or behind ``node`` for all that use it."""
    graph = root.graph
    root.add_submodule(name, module)
    if of is node:
        with graph.inserting_after(node):
            own = graph.call_module(name, (node,))
        node.replace_all_uses_with(own, delete_user_cb=lambda user: user is not own)
        return
    with graph.inserting_before(node):
        own = graph.call_module(name, (of,))
    node.replace_input_with(of, own)


def _stored(graph: fx.Graph) -> list[fx.Node]:
    """The input and the results of arithmetic that a runtime stores, but for the logits."""
    (last,) = graph.find_nodes(op="output")
    return [n for n in graph.nodes if _is_stored(n) and not _only_to(n, last)]


def _is_stored(node: fx.Node) -> bool:
    if node.op == "placeholder":
        return True
    if not (node.op == "call_function" or node.meta.get("norm")) or node.target in PASSED:
        return False
    if "norm" not in node.meta and not str(node.target).startswith("aten."):
        return False
    users = list(node.users)
    return len(users) != 1 or not _together(node, users[0])


def _together(node: fx.Node, user: fx.Node) -> bool:
    """Whether runtimes compute ``user`` with ``node``."""
    if user.meta.get("norm"):
        return node.target in LAYERS and user.args[0] is node
    return user.target in ACTIVATIONS and (node.target in BEFORE_ACTIVATION or bool(node.meta.get("norm")))


def _only_to(node: fx.Node, last: fx.Node) -> bool:
    """Whether nothing but changes of shape lies between ``node`` and the output."""
    return all(user is last or (user.target in PASSED and _only_to(user, last)) for user in node.users)
