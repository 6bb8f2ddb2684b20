"""A tiny model (x + 1) through each runtime, in a process of its own: one that crashes takes only that process along.

``python -m distilledge.targets.trial NAME`` runs a trial here; ``attempt`` starts that as a child and explains its end.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from distilledge.targets.telemetry import switch_off

SHAPE = (1, 4)
SECONDS = 120.0
"""Longest trial; importing torch on a busy board takes most of it."""
NMS = "operator torchvision::nms does not exist"
TFLITE_FLOAT32, TFLITE_ADD, TFLITE_SCHEMA = 0, 0, 3
"""Numbers of TFLite's schema."""


class Outcome(NamedTuple):
    works: bool
    detail: str


def attempt(name: str, *, seconds: float = SECONDS) -> Outcome:
    """Run the trial ``name`` (a key of ``TRIALS``) in a child process. Never raises because the trial fails."""
    command = [sys.executable, "-m", "distilledge.targets.trial", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return Outcome(False, f"no answer in {seconds:.0f} s")
    if done.returncode == 0:
        return Outcome(True, done.stdout.strip().splitlines()[-1])
    return Outcome(False, _reason(done.returncode, done.stderr))


def _reason(code: int, stderr: str) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        known = {"SIGILL": ": built for a newer CPU than this one", "SIGKILL": ": probably out of memory"}
        return f"killed by {name}{known.get(name, '')}"
    lines = stderr.strip().splitlines()
    return lines[-1] if lines else f"exit {code}"


def torchvision() -> str:
    """Import torch and torchvision and call the operation whose absence shows that they do not belong together."""
    import torch
    import torchvision

    kept = torchvision.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([1.0]), 0.5)
    _check(kept.numpy().astype(np.float32), np.zeros(1, np.float32))
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU"
    return f"torch {torch.__version__}, torchvision {torchvision.__version__}; torch sees {gpu}"


def onnx() -> str:
    import onnxruntime

    session = onnxruntime.InferenceSession(_onnx_model(), providers=["CPUExecutionProvider"])
    _check(session.run(None, {"x": _input()})[0])
    return f"onnxruntime {onnxruntime.__version__}: runs"


def openvino() -> str:
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(core.read_model(_onnx_model()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    _check(compiled(_input())[0])
    default = core.get_property("CPU", "INFERENCE_PRECISION_HINT").to_string()
    return f"openvino {openvino.get_version().split('-')[0]}: runs; its default precision here is {default}, we set f32"


def tflite() -> str:
    from importlib.metadata import version

    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=_tflite_model(), num_threads=1)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], _input())
    interpreter.invoke()
    _check(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))
    return f"ai-edge-litert {version('ai-edge-litert')}: runs"


TRIALS: dict[str, Callable[[], str]] = {
    "torchvision": torchvision,
    "onnx": onnx,
    "openvino": openvino,
    "tflite": tflite,
}


def _input() -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.arange(SHAPE[1], dtype=np.float32).reshape(SHAPE)


def _check(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any] | None = None) -> None:
    if not np.array_equal(found, _input() + 1 if expected is None else expected):
        raise SystemExit(f"wrong result: {found}")


def _onnx_model() -> bytes:
    from onnx import TensorProto, helper

    one = helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "one"], ["y"])], "trial", ports[:1], ports[1:], [one])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


def _tflite_model() -> bytes:
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    def tensor(name: str, shape: tuple[int, ...], buffer: int) -> Any:
        made = schema.TensorT()
        made.name, made.shape, made.buffer, made.type = name, list(shape), buffer, TFLITE_FLOAT32
        return made

    graph, operator, code, model = schema.SubGraphT(), schema.OperatorT(), schema.OperatorCodeT(), schema.ModelT()
    one = schema.BufferT()
    one.data = np.frombuffer(np.ones(1, np.float32).tobytes(), np.uint8)
    operator.opcodeIndex, operator.inputs, operator.outputs = 0, [0, 1], [2]
    operator.builtinOptionsType, operator.builtinOptions = schema.BuiltinOptions.AddOptions, schema.AddOptionsT()
    code.builtinCode = code.deprecatedBuiltinCode = TFLITE_ADD
    code.version = 1
    graph.tensors = [tensor("x", SHAPE, 0), tensor("one", (1,), 1), tensor("y", SHAPE, 0)]
    graph.inputs, graph.outputs, graph.operators = [0], [2], [operator]
    model.version, model.operatorCodes, model.subgraphs = TFLITE_SCHEMA, [code], [graph]
    model.buffers = [schema.BufferT(), one]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


if __name__ == "__main__":
    switch_off()
    sys.stdout.write(TRIALS[sys.argv[1]]() + "\n")
