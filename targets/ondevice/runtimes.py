"""The runtimes of a device: how each is imported, and with which options it runs on a CPU."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

if __package__:
    from distilledge.targets.ondevice import units
else:
    import units  # type: ignore[import-not-found,no-redef]

PACKAGES_OF = {"onnx": ("onnxruntime",), "openvino": ("openvino",), "tflite": ("ai-edge-litert", "tflite-runtime")}
"""Runtime -> the distributions that may bring it, the first that is there."""


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


def installed_version(runtime: str) -> str:
    """``name version`` of the runtime's distribution, once its module can be imported."""
    import_runtime(runtime)
    for package in PACKAGES_OF[runtime]:
        with contextlib.suppress(PackageNotFoundError):
            return f"{package} {version(package)}"
    return runtime


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def onnx_options(ort: Any, threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


@functools.cache
def openvino_core() -> Any:
    """The process's one ``Core``, never let go. Each one moves the stack on which signals are handled; two that go in
    the order in which they came leave it on memory that is gone, and the next SIGTERM kills instead of being handled.
    """
    return import_runtime("openvino").Core()


def openvino_config(core: Any, threads: int, precision: str, on: units.Units) -> dict[str, Any]:
    device = units.openvino_device(core, on)
    halves = precision == "fp16" and "FP16" in core.get_property(
        "CPU" if device == "AUTO" else device, "OPTIMIZATION_CAPABILITIES"
    )
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f16" if halves else "f32",
    }
