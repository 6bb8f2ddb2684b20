"""The units that files are run on, as the recipe names them."""

from __future__ import annotations

from typing import Any, Literal

from distilledge.models.base import Value

Provider = Literal[
    "cpu", "xnnpack", "nnapi", "coreml", "cuda", "tensorrt", "openvino", "dnnl", "dml", "qnn", "rknpu",
    "vitisai", "vsinpu", "migraphx", "cann", "webgpu",
]  # fmt: skip
OpenvinoDevice = Literal["cpu", "gpu", "npu", "auto"]
TfliteUnit = Literal["xnnpack", "builtin", "delegate"]


class Units(Value):
    """Where each runtime computes. A unit that the device does not have is an error, never the CPU instead."""

    onnx: tuple[Provider, ...] = ("cpu",)
    """Execution providers in order of preference. Without ``cpu`` every operation must be taken by those named."""
    openvino: OpenvinoDevice = "cpu"
    tflite: tuple[TfliteUnit, ...] = ("xnnpack",)
    """In order of preference: ``delegate``, a vendor's library; ``xnnpack``; the runtime's own kernels take the rest.
    ``builtin``: those alone."""
    delegate: str | None = None
    """Of TFLite: the delegate's library (NNAPI, GPU, Edge TPU, an NPU's), a path or name on the device."""
    options: dict[str, dict[str, str]] = {}
    """Unit -> options of its provider, device or delegate, as the runtime names them."""

    def request(self, runtime: str) -> dict[str, Any] | None:
        """What a worker is told; None where it is the runtime's default."""
        names = self.names(runtime)
        options = {name: self.options[name] for name in names if name in self.options}
        if names == Units().names(runtime) and not options:
            return None
        return {"names": list(names), "library": self.delegate or "", "options": options}

    def names(self, runtime: str) -> tuple[str, ...]:
        return {"onnx": self.onnx, "openvino": (self.openvino,), "tflite": self.tflite}[runtime]
