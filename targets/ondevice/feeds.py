"""How each runtime is fed whole arrays for all inputs of a file that anybody made, and gives back all outputs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

if __package__:
    from distilledge.targets.ondevice.files import write_array
    from distilledge.targets.ondevice.ports import Array, Feed, Port, fixed, port, read_feeds
else:
    from files import write_array  # type: ignore[import-not-found,no-redef]
    from ports import Array, Feed, Port, fixed, port, read_feeds  # type: ignore[import-not-found,no-redef]

Shapes = Mapping[str, Sequence[int]] | None
"""Sizes of open dimensions by input name, of a file that others made; None: the file is one of ours, left as it is."""


class Feeds(Protocol):
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    def feed(self, arrays: Feed) -> Callable[[], object]:
        """A function that runs one inference, results left in the runtime: what is timed."""

    def answer(self, arrays: Feed) -> list[Array]:
        """All outputs as they are, in the order of ``outputs``."""


class OnnxFeeds:
    """``session``: an ``onnxruntime.InferenceSession``."""

    def __init__(self, session: Any, shapes: Shapes) -> None:
        found = tuple(port(i.name, i.type, i.shape) for i in session.get_inputs())
        self._session, self.inputs = session, found if shapes is None else fixed(found, shapes)
        self.outputs = tuple(port(o.name, o.type, o.shape) for o in session.get_outputs())

    def feed(self, arrays: Feed) -> Callable[[], object]:
        run, feed = self._session.run, {p.name: one for p, one in zip(self.inputs, arrays, strict=True)}
        return lambda: run(None, feed)

    def answer(self, arrays: Feed) -> list[Array]:
        found: Any = self.feed(arrays)()
        return [np.asarray(one) for one in found]


class OpenvinoFeeds:
    """``model``: as read; its open dimensions are fixed before it is compiled. Then ``compiled`` is to be called."""

    def __init__(self, ov: Any, model: Any, shapes: Shapes) -> None:
        self._ov, self.inputs = ov, _openvino_ports(model.inputs)
        if shapes is not None:
            self.inputs = fixed(self.inputs, shapes)
            if any(-1 in one.shape for one in _openvino_ports(model.inputs)):
                model.reshape({number: list(one.shape) for number, one in enumerate(self.inputs)})

    def compiled(self, model: Any, request: Any) -> None:
        self._request, self.outputs = request, _openvino_ports(model.outputs)

    def feed(self, arrays: Feed) -> Callable[[], object]:
        tensors = [self._ov.Tensor(one, shared_memory=True) for one in arrays]
        put, infer = self._request.set_input_tensor, self._request.infer

        def call() -> None:
            for number, tensor in enumerate(tensors):
                put(number, tensor)
            infer(share_outputs=True)

        return call

    def answer(self, arrays: Feed) -> list[Array]:
        self.feed(arrays)()
        return [np.array(self._request.get_output_tensor(number).data) for number in range(len(self.outputs))]


class TfliteFeeds:
    """``interpreter``: before its tensors are allocated. Of several subgraphs the first is run."""

    def __init__(self, interpreter: Any, shapes: Shapes) -> None:
        self._interpreter, details = interpreter, interpreter.get_input_details()
        self._sources, self.inputs = [d["index"] for d in details], _tflite_ports(details)
        if shapes is not None:
            self.inputs = fixed(self.inputs, shapes)
            for detail, one in zip(details, self.inputs, strict=True):
                if tuple(detail["shape"]) != one.shape:  # a resized graph is planned anew
                    interpreter.resize_tensor_input(detail["index"], one.shape)
        self._sinks = [d["index"] for d in interpreter.get_output_details()]
        self.outputs = _tflite_ports(interpreter.get_output_details())

    def feed(self, arrays: Feed) -> Callable[[], object]:
        pairs = list(zip(self._sources, arrays, strict=True))
        put, invoke = self._interpreter.set_tensor, self._interpreter.invoke

        def call() -> None:
            for index, one in pairs:
                put(index, one)
            invoke()

        return call

    def answer(self, arrays: Feed) -> list[Array]:
        self.feed(arrays)()
        return [self._interpreter.get_tensor(index) for index in self._sinks]


def described(feeds: Feeds) -> dict[str, Any]:
    return {"inputs": [p._asdict() for p in feeds.inputs], "outputs": [p._asdict() for p in feeds.outputs]}


def calls_of(feeds: Feeds, request: dict[str, Any]) -> tuple[list[Callable[[], object]], dict[str, Any]]:
    """What ``block`` cycles through, once the first of them has been run, and the answer to the request."""
    calls = [feeds.feed(feed) for feed in read_feeds(request["arrays"])]
    start = time.perf_counter_ns()
    calls[0]()
    return calls, {"rows": len(calls), "first_inference_ns": time.perf_counter_ns() - start}


def write_answers(feeds: Feeds, request: dict[str, Any]) -> dict[str, Any]:
    """The first output of each row of ``arrays`` to ``out``, a .npy (N, values), as the file gives it."""
    rows = [feeds.answer(feed)[0].reshape(-1) for feed in read_feeds(request["arrays"])]
    write_array(request["out"], np.stack(rows))
    return {"shape": [len(rows), len(rows[0])]}


def _openvino_ports(nodes: Sequence[Any]) -> tuple[Port, ...]:
    def sizes(node: Any) -> list[int]:
        return [d.get_length() if d.is_static else -1 for d in node.get_partial_shape()]

    return tuple(
        port(min(n.get_names(), default=str(i)), n.get_element_type().get_type_name(), sizes(n))
        for i, n in enumerate(nodes)
    )


def _tflite_ports(details: Sequence[Any]) -> tuple[Port, ...]:
    def sizes(detail: Any) -> Any:
        signature = detail.get("shape_signature", ())
        return signature if len(signature) == len(detail["shape"]) else detail["shape"]

    return tuple(port(d["name"], d["dtype"].__name__, sizes(d)) for d in details)
