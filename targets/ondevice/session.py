"""One model file loaded in one runtime, ready to be run and timed. Standard library, numpy and the runtime only.

Choices that decide the figures, measured on two x86 cores:

- ONNX Runtime: sequential execution, one pool of ``threads``; they may spin inside a run and stop when it returns
  (``session.force_spinning_stop``): else two threads burn 20 ms after each block, in the time of the next model.
- OpenVINO: the execution precision is always set (its default differs between CPUs: f32, bf16 or f16) and read back:
  f32 for fp32 and int8 files; f16 for fp16 files where the CPU has it, else f32. It is not always the faster one.
- TFLite: the runtime's default resolver, which applies XNNPACK; ``ai_edge_litert`` or, where that is missing,
  ``tflite_runtime``. A text file has a signature for each length; one takes memory when it is first used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

if __package__:
    from distilledge.targets.ondevice import units
    from distilledge.targets.ondevice.feeds import Feeds, OnnxFeeds, OpenvinoFeeds, Shapes, TfliteFeeds
    from distilledge.targets.ondevice.runtimes import (
        import_runtime,
        onnx_options,
        openvino_config,
        openvino_core,
        usable_cores,
    )
else:
    import units  # type: ignore[import-not-found,no-redef]
    from feeds import Feeds, OnnxFeeds, OpenvinoFeeds, Shapes, TfliteFeeds  # type: ignore[import-not-found,no-redef]
    from runtimes import (  # type: ignore[import-not-found,no-redef]
        import_runtime,
        onnx_options,
        openvino_config,
        openvino_core,
        usable_cores,
    )

FloatArray = npt.NDArray[np.float32]
Rows = Sequence[npt.NDArray[Any]] | npt.NDArray[Any]
"""Pictures uint8 (H, W, 3), also as one array (N, H, W, 3); or texts int32 (L,), padded to a length the file has."""

LENGTH = "length_"
"""What the name of a TFLite signature begins with; then the number of tokens it takes."""


class Session(Protocol):
    """A loaded model with uint8 (1, H, W, 3) or int32 (1, L) in and logits out, batch 1; others by ``feeds`` alone."""

    runtime_version: str
    execution_precision: str
    """As the runtime reports it, such as ``f32``; ONNX Runtime and TFLite have no choice on a CPU."""
    threads: int
    input_shape: tuple[int, ...]
    """-1 where any length is taken, or one of several."""
    example: npt.NDArray[Any]
    """A row of zeros that it takes."""

    @property
    def feeds(self) -> Feeds: ...

    def run(self, rows: Rows) -> FloatArray:
        """Logits float32, one inference per row: (N, classes), of several tasks side by side;
        of tokens (N, longest, K) with zeros behind the ends."""

    def calls(self, rows: Rows) -> list[Callable[[], object]]:
        """One function per row that runs one inference on it, results left in the runtime: what is timed."""

    def output(self, result: Any) -> FloatArray:
        """The logits of the last call, float32, flat or (L, K); ``result``: what the call returned."""


def open_session(
    path: str,
    runtime: str,
    threads: int,
    precision: str = "fp32",
    on: dict[str, Any] | None = None,
    *,
    shapes: Shapes = None,
) -> Session:
    """Load a model file. ``threads`` 0: all cores this process may use. ``on``: see ``units.chosen``.

    ``shapes``: given for files that others made, ``{}`` where nothing is open. Raises ``BadShape``,
    ``units.MissingUnitError``, ``units.RefusedUnitError`` and whatever the runtime raises.
    """
    if runtime not in SESSIONS:
        raise ValueError(f"unknown runtime {runtime!r}; choose from {', '.join(SESSIONS)}")
    return SESSIONS[runtime](path, threads or usable_cores(), precision, units.chosen(runtime, on), shapes)


class OnnxSession:
    def __init__(
        self,
        path: str,
        threads: int,
        precision: str,  # noqa: ARG002 (one constructor for all)
        on: units.Units,
        shapes: Shapes = None,
    ) -> None:
        ort = import_runtime("onnx")
        self._session = units.onnx_session(ort, path, onnx_options(ort, threads), on)
        self._ort = ort
        self._input = self._session.get_inputs()[0]
        self._outputs = [o.name for o in self._session.get_outputs()][: _taken(shapes)]
        self.feeds = OnnxFeeds(self._session, shapes)
        self._text = _is_text(path, self.feeds, shapes)
        self.threads, self.runtime_version, self.execution_precision = threads, f"onnxruntime {ort.__version__}", "f32"
        self.input_shape = tuple(d if isinstance(d, int) else _any(self._text) for d in self._input.shape)
        self.example = _zeros(self.input_shape)

    def run(self, rows: Rows) -> FloatArray:
        feeds = ({self._input.name: one} for one in _single(rows))
        return _stack([_side_by_side(self._session.run(self._outputs, feed)) for feed in feeds], self._text)

    def calls(self, rows: Rows) -> list[Callable[[], object]]:
        return [self._call(one) for one in _single(rows)]

    def output(self, result: Any) -> FloatArray:
        return _one(_side_by_side(result), self._text)

    def _call(self, row: npt.NDArray[Any]) -> Callable[[], object]:
        run, outputs, feed = self._session.run, self._outputs, {self._input.name: row}
        return lambda: run(outputs, feed)


class OpenvinoSession:
    def __init__(self, path: str, threads: int, precision: str, on: units.Units, shapes: Shapes = None) -> None:
        ov, core = import_runtime("openvino"), openvino_core()
        model = core.read_model(path)
        self.feeds = OpenvinoFeeds(ov, model, shapes)
        compiled = units.openvino_compiled(core, model, openvino_config(core, threads, precision, on), on)
        self._text = _is_text(path, self.feeds, shapes)
        self._ov, self._request = ov, compiled.create_infer_request()
        self._outputs = range(len(compiled.outputs[: _taken(shapes)]))
        self.feeds.compiled(compiled, self._request)
        self.threads = int(units.openvino_property(compiled, "INFERENCE_NUM_THREADS") or threads)
        self.runtime_version = f"openvino {ov.__version__.split('-')[0]}"
        hint = units.openvino_property(compiled, "INFERENCE_PRECISION_HINT")
        self.execution_precision = hint.get_type_name() if hint is not None else "unknown"
        shape = compiled.inputs[0].partial_shape
        self.input_shape = tuple(d.get_length() if d.is_static else _any(self._text) for d in shape)
        self.example = _zeros(self.input_shape)

    def run(self, rows: Rows) -> FloatArray:
        outputs = []
        for call in self.calls(rows):
            call()
            outputs.append(self._found())
        return _stack(outputs, self._text)

    def calls(self, rows: Rows) -> list[Callable[[], object]]:
        return [self._call(one) for one in _single(rows)]

    def output(self, result: Any) -> FloatArray:  # noqa: ARG002 (it lies in the request)
        return _one(self._found(), self._text)

    def _found(self) -> FloatArray:
        return _side_by_side([np.array(self._request.get_output_tensor(i).data, np.float32) for i in self._outputs])

    def _call(self, row: npt.NDArray[Any]) -> Callable[[], object]:
        tensor, put, infer = (
            self._ov.Tensor(row, shared_memory=True),
            self._request.set_input_tensor,
            self._request.infer,
        )

        def call() -> None:
            put(tensor)
            infer(share_outputs=True)

        return call


class TfliteSession:
    def __init__(
        self,
        path: str,
        threads: int,
        precision: str,  # noqa: ARG002 (one constructor for all)
        on: units.Units,
        shapes: Shapes = None,
    ) -> None:
        tflite = import_runtime("tflite")
        package = "ai-edge-litert" if tflite.__name__.startswith("ai_edge") else "tflite-runtime"
        self.runtime_version = f"{package} {version(package)}"
        self._interpreter = units.interpreter(tflite, path, threads, on)
        self.threads, self.execution_precision = threads, "f32"
        names = [n for n in self._interpreter.get_signature_list() if n.startswith(LENGTH)]
        self._names = {int(name.removeprefix(LENGTH)): name for name in names}
        self._runners: dict[int, Any] = {}
        source, sinks = self._interpreter.get_input_details()[0], self._interpreter.get_output_details()
        self.feeds = TfliteFeeds(self._interpreter, shapes)
        self._text = _is_text(path, self.feeds, shapes)
        if self._text and package == "tflite-runtime":
            raise ValueError("tflite-runtime reads int8 weights of text models wrongly: use ai-edge-litert")
        self._in = source["index"]
        self._sinks = [(sink["index"], sink["quantization"]) for sink in sinks[: _taken(shapes)]]
        self.input_shape = tuple(int(d) for d in source["shape"])
        self.example = _zeros((1, min(self._names)) if self._names else self.input_shape)
        if len(self._names) > 1:
            self.input_shape = (1, -1)
        else:
            self._interpreter.allocate_tensors()

    def run(self, rows: Rows) -> FloatArray:
        outputs = []
        for call in self.calls(rows):
            outputs.append(self._found(call()))
        return _stack(outputs, self._text)

    def output(self, result: Any) -> FloatArray:
        return _one(self._found(result), self._text)

    def _found(self, result: dict[str, npt.NDArray[Any]] | None) -> FloatArray:
        if result is not None:
            return self._dequantised(next(iter(result.values())), self._sinks[0][1])
        get = self._interpreter.get_tensor
        return _side_by_side([self._dequantised(get(index), scale) for index, scale in self._sinks])

    def calls(self, rows: Rows) -> list[Callable[[], Any]]:
        return [self._call(one) for one in _single(rows)]

    def _call(self, row: npt.NDArray[Any]) -> Callable[[], Any]:
        if len(self._names) > 1:
            runner, name = self._runner(row.shape[1])
            return lambda: runner(**{name: row})
        index, put, invoke = self._in, self._interpreter.set_tensor, self._interpreter.invoke

        def call() -> None:
            put(index, row)
            invoke()

        return call

    def _runner(self, length: int) -> Any:
        """The signature of a length and its input's name."""
        if length not in self._names:
            raise ValueError(f"the file takes {sorted(self._names)} tokens, not {length}")
        if length not in self._runners:
            runner = self._interpreter.get_signature_runner(self._names[length])
            self._runners[length] = runner, next(iter(runner.get_input_details()))
        return self._runners[length]

    @staticmethod
    def _dequantised(output: npt.NDArray[Any], quantization: tuple[float, int]) -> FloatArray:
        if output.dtype.kind == "f":
            return np.asarray(output, np.float32)
        scale, zero = quantization
        logits: FloatArray = ((output.astype(np.float32) - zero) * scale).astype(np.float32)
        return logits


SESSIONS: dict[str, Callable[[str, int, str, units.Units, Shapes], Session]] = {
    "onnx": OnnxSession,
    "openvino": OpenvinoSession,
    "tflite": TfliteSession,
}


def _is_text(path: str, feeds: Feeds, shapes: Shapes) -> bool:
    kind = feeds.inputs[0].dtype
    if shapes is not None:
        return False
    if kind not in ("uint8", "int32"):
        raise ValueError(f"{path} takes {kind}, neither uint8 RGB nor int32 ids")
    return kind == "int32"


def _taken(shapes: Shapes) -> int | None:
    """Outputs that count: all of a file of ours, one for each task; of others' the first."""
    return None if shapes is None else 1


def _side_by_side(outputs: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """One output as it is; those of several tasks as one (1, sum of classes), in the file's order."""
    if len(outputs) == 1:
        return outputs[0]
    return np.concatenate([np.asarray(output, np.float32).reshape(1, -1) for output in outputs], axis=1)


def _any(text: bool) -> int:
    """What stands for a dynamic dimension: of pictures only the batch may be one."""
    return -1 if text else 1


def _zeros(shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Of one row, without the batch; where any length is taken, a short one."""
    if len(shape) == 2:
        return np.zeros(shape[1] if shape[1] > 0 else 8, np.int32)
    return np.zeros(shape[1:], np.uint8)


def _single(rows: Rows) -> list[npt.NDArray[Any]]:
    """Contiguous arrays with a batch of one."""
    return [np.ascontiguousarray(row)[None] for row in rows]


def _stack(outputs: Sequence[npt.NDArray[Any]], text: bool) -> FloatArray:
    return stack([_one(o, text) for o in outputs])


def _one(output: npt.NDArray[Any], text: bool) -> FloatArray:
    """Without the batch."""
    return np.asarray(output, np.float32)[0] if text else np.asarray(output, np.float32).reshape(-1)


def stack(outputs: Sequence[FloatArray], length: int = 0) -> FloatArray:
    """(N, C) of vectors; of (L, K) outputs (N, longest or ``length``, K) with zeros behind their ends."""
    if outputs[0].ndim == 1:
        return np.stack(outputs)
    stacked = np.zeros((len(outputs), length or max(map(len, outputs)), outputs[0].shape[1]), np.float32)
    for row, output in zip(stacked, outputs, strict=True):
        row[: len(output)] = output
    return stacked
