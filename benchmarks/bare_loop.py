"""The tightest loop a user would write around a runtime, in a process of its own; nothing of ours is imported.

``python bare_loop.py RUNTIME FILE THREADS``: for each line ``n`` on stdin, times n inferences on one fixed input and
prints their nanoseconds as a JSON list. No copy of inputs, no checks.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np


def onnx(path: str, threads: int) -> Callable[[], Any]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: noise(session.get_inputs()[0].shape)}
    return lambda: session.run(None, feed)


def openvino(path: str, threads: int) -> Callable[[], Any]:
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino as ov

    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = ov.Core().compile_model(path, "CPU", hints)
    request = compiled.create_infer_request()
    request.set_input_tensor(ov.Tensor(noise(list(compiled.inputs[0].shape))))
    infer: Callable[[], Any] = request.infer
    return infer


def tflite(path: str, threads: int) -> Callable[[], Any]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=path, num_threads=threads)
    interpreter.allocate_tensors()
    details = interpreter.get_input_details()[0]
    interpreter.set_tensor(details["index"], noise(list(details["shape"])))
    invoke: Callable[[], Any] = interpreter.invoke
    return invoke


LOOPS = {"onnx": onnx, "openvino": openvino, "tflite": tflite}


def noise(shape: list[int]) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def main() -> None:
    runtime, path, threads = sys.argv[1:]
    call, now = LOOPS[runtime](path, int(threads)), time.perf_counter_ns
    for line in sys.stdin:
        taken = []
        for _ in range(int(line)):
            start = now()
            call()
            taken.append(now() - start)
        sys.stdout.write(json.dumps(taken) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
