"""One model file loaded in one runtime, ready to be run and timed. Standard library, numpy and the runtime only.

Choices that decide the figures, measured on two x86 cores:

- ONNX Runtime: sequential execution, one pool of ``threads``; they may spin inside a run and stop when it returns
  (``session.force_spinning_stop``): else two threads burn 20 ms after each block, in the time of the next model.
- OpenVINO: the execution precision is always set (its default differs between CPUs: f32, bf16 or f16) and read back:
  f32 for fp32 and int8 files; f16 for fp16 files where the CPU has it, else f32. It is not always the faster one.
- TFLite: the runtime's default resolver, which applies XNNPACK; ``ai_edge_litert`` or, where that is missing,
  ``tflite_runtime``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import version
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Uint8Array = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float32]


class Session(Protocol):
    """A loaded model with uint8 (1, H, W, 3) in and logits out."""

    runtime_version: str
    execution_precision: str
    """As the runtime reports it, such as ``f32``; ONNX Runtime and TFLite have no choice on a CPU."""
    threads: int
    input_shape: tuple[int, ...]

    def run(self, images: Uint8Array) -> FloatArray:
        """Logits float32 (N, classes) of uint8 (N, H, W, 3), one inference per picture."""

    def calls(self, images: Uint8Array) -> list[Callable[[], object]]:
        """One function per picture that runs one inference on it, results left in the runtime: what is timed."""


def open_session(path: str, runtime: str, threads: int, precision: str = "fp32") -> Session:
    """Load a model file. ``threads`` 0: all cores this process may use. Raises whatever the runtime raises."""
    if runtime not in SESSIONS:
        raise ValueError(f"unknown runtime {runtime!r}; choose from {', '.join(SESSIONS)}")
    return SESSIONS[runtime](path, threads or usable_cores(), precision)


def import_runtime(runtime: str) -> Any:
    """The runtime's module. Raises ModuleNotFoundError. OpenVINO's import would send an event from a forked process."""
    if runtime == "onnx":
        return import_module("onnxruntime")
    if runtime == "openvino":
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # makes that import fail
        return import_module("openvino")
    try:
        return import_module("ai_edge_litert.interpreter")
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("ai_edge_litert"):
            raise
        return import_module("tflite_runtime.interpreter")


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


class OnnxSession:
    def __init__(self, path: str, threads: int, precision: str) -> None:  # noqa: ARG002 (one constructor for all)
        ort = import_runtime("onnx")
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 3
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._ort = ort
        self._input, self._output = self._session.get_inputs()[0], self._session.get_outputs()[0].name
        if self._input.type != "tensor(uint8)":
            raise ValueError(f"{path} takes {self._input.type}, not uint8 RGB")
        self.threads, self.runtime_version, self.execution_precision = threads, f"onnxruntime {ort.__version__}", "f32"
        self.input_shape = tuple(d if isinstance(d, int) else 1 for d in self._input.shape)

    def run(self, images: Uint8Array) -> FloatArray:
        feeds = ({self._input.name: one} for one in _single(images))
        return _stack([self._session.run([self._output], feed)[0] for feed in feeds])

    def calls(self, images: Uint8Array) -> list[Callable[[], object]]:
        return [self._call(one) for one in _single(images)]

    def _call(self, image: Uint8Array) -> Callable[[], object]:
        run, outputs, feed = self._session.run, [self._output], {self._input.name: image}
        return lambda: run(outputs, feed)


class OpenvinoSession:
    def __init__(self, path: str, threads: int, precision: str) -> None:
        ov = import_runtime("openvino")
        core = ov.Core()
        halves = precision == "fp16" and "FP16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        config: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": "f16" if halves else "f32",
        }
        compiled = core.compile_model(core.read_model(path), "CPU", config)
        if compiled.inputs[0].get_element_type() != ov.Type.u8:
            raise ValueError(f"{path} takes {compiled.inputs[0].get_element_type().get_type_name()}, not uint8 RGB")
        self._ov, self._request = ov, compiled.create_infer_request()
        self.threads = int(compiled.get_property("INFERENCE_NUM_THREADS"))
        self.runtime_version = f"openvino {ov.__version__.split('-')[0]}"
        self.execution_precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        self.input_shape = tuple(d.get_length() if d.is_static else 1 for d in compiled.inputs[0].partial_shape)

    def run(self, images: Uint8Array) -> FloatArray:
        outputs = []
        for call in self.calls(images):
            call()
            outputs.append(np.array(self._request.get_output_tensor(0).data, np.float32))
        return _stack(outputs)

    def calls(self, images: Uint8Array) -> list[Callable[[], object]]:
        return [self._call(one) for one in _single(images)]

    def _call(self, image: Uint8Array) -> Callable[[], object]:
        tensor, put, infer = (
            self._ov.Tensor(image, shared_memory=True),
            self._request.set_input_tensor,
            self._request.infer,
        )

        def call() -> None:
            put(tensor)
            infer(share_outputs=True)

        return call


class TfliteSession:
    def __init__(self, path: str, threads: int, precision: str) -> None:  # noqa: ARG002 (one constructor for all)
        tflite = import_runtime("tflite")
        package = "ai-edge-litert" if tflite.__name__.startswith("ai_edge") else "tflite-runtime"
        self.runtime_version = f"{package} {version(package)}"
        self._interpreter = tflite.Interpreter(model_path=path, num_threads=threads)
        self._interpreter.allocate_tensors()
        source, sink = self._interpreter.get_input_details()[0], self._interpreter.get_output_details()[0]
        if source["dtype"] is not np.uint8:
            raise ValueError(f"{path} takes {source['dtype'].__name__}, not uint8 RGB")
        self._in, self._out, self._scale = source["index"], sink["index"], sink["quantization"]
        self.threads, self.execution_precision = threads, "f32"
        self.input_shape = tuple(int(d) for d in source["shape"])

    def run(self, images: Uint8Array) -> FloatArray:
        outputs = []
        for call in self.calls(images):
            call()
            outputs.append(self._dequantised(self._interpreter.get_tensor(self._out)))
        return _stack(outputs)

    def calls(self, images: Uint8Array) -> list[Callable[[], object]]:
        return [self._call(one) for one in _single(images)]

    def _call(self, image: Uint8Array) -> Callable[[], object]:
        index, put, invoke = self._in, self._interpreter.set_tensor, self._interpreter.invoke

        def call() -> None:
            put(index, image)
            invoke()

        return call

    def _dequantised(self, output: npt.NDArray[Any]) -> FloatArray:
        if output.dtype.kind == "f":
            return np.asarray(output, np.float32)
        scale, zero = self._scale
        logits: FloatArray = ((output.astype(np.float32) - zero) * scale).astype(np.float32)
        return logits


SESSIONS: dict[str, Callable[[str, int, str], Session]] = {
    "onnx": OnnxSession,
    "openvino": OpenvinoSession,
    "tflite": TfliteSession,
}


def _single(images: Uint8Array) -> list[Uint8Array]:
    """Contiguous uint8 (1, H, W, 3) pictures of (N, H, W, 3)."""
    return [np.ascontiguousarray(images[i : i + 1]) for i in range(len(images))]


def _stack(outputs: Sequence[npt.NDArray[Any]]) -> FloatArray:
    return np.stack([np.asarray(o, np.float32).reshape(-1) for o in outputs])  # (N, classes)
