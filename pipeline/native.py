"""Timing one model file on a phone without Python, by the runtime's own program."""

from __future__ import annotations

from pathlib import Path

from distilledge.models.errors import UsageError
from distilledge.pipeline import inventory
from distilledge.targets.devices.adb import AdbDevice
from distilledge.targets.devices.native import NativeTiming, Settings

RUNTIMES = {".tflite": "tflite", ".onnx": "onnx", ".xml": "openvino"}


def time_natively(name: str, file: Path, *, threads: int, runs: int, warmup: int, limit_s: float) -> NativeTiming:
    """Raises ``UsageError`` for what is no phone or no model file, ``DeviceError`` for what goes wrong there."""
    if file.suffix not in RUNTIMES:
        raise UsageError("E2083", f"not a model file: {file}", f"give one of: {', '.join(RUNTIMES)}")
    weights = [file.with_suffix(".bin")] if file.suffix == ".xml" else []
    with inventory.opened(name) as device:
        if not isinstance(device, AdbDevice):
            hint = "there the worker measures: distilledge run RECIPE --set measure.device=NAME"
            raise UsageError("E2082", f"{name} is not reached by adb", hint)
        return device.time_file(RUNTIMES[file.suffix], [file, *weights], Settings(threads, runs, warmup, limit_s))
