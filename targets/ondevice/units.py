"""The units that a runtime may compute on: which there are, whether this device has them, how a file gets on them.

Nothing falls back in silence. ONNX Runtime drops a provider that it does not have or that fails to start, and computes
on the CPU; here both are errors, and without ``cpu`` among the names so is a single operation left to the CPU.

- ONNX Runtime: execution providers in order of preference.
- OpenVINO: one device. ``auto`` is OpenVINO's own choice, without its start on the CPU while the other compiles.
- TFLite: ``xnnpack`` (the runtime's default), ``delegate`` (a vendor's library, loaded on the device) or both in order
  of preference; built-in kernels take the rest. ``builtin``: those alone.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any, NamedTuple

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
    "nnapi": "NnapiExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "dnnl": "DnnlExecutionProvider",
    "dml": "DmlExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "rknpu": "RknpuExecutionProvider",
    "vitisai": "VitisAIExecutionProvider",
    "vsinpu": "VSINPUExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "cann": "CANNExecutionProvider",
    "webgpu": "WebGpuExecutionProvider",
}
"""Of ONNX Runtime: a recipe's name -> the runtime's."""
UNITS: dict[str, tuple[str, ...]] = {
    "onnx": tuple(PROVIDERS),
    "openvino": ("cpu", "gpu", "npu", "auto"),
    "tflite": ("xnnpack", "builtin", "delegate"),
}
"""Runtime -> the names that a recipe may give."""
DEFAULTS: dict[str, tuple[str, ...]] = {"onnx": ("cpu",), "openvino": ("cpu",), "tflite": ("xnnpack",)}
ON_CPU = frozenset({"cpu", "xnnpack", "builtin", "dnnl"})
"""Units that compute on the CPU's own cores: only there CPU time says whether something else ran."""


class UnitError(Exception):
    """``kind``: of the worker's error records."""

    kind = ""


class MissingUnitError(UnitError):
    """The runtime on this device does not have a unit."""

    kind = "unit"


class RefusedUnitError(UnitError):
    """The unit is there, but does not take this file, or does not start."""

    kind = "refused"


class Units(NamedTuple):
    """What was chosen for one runtime, in order of preference."""

    names: tuple[str, ...]
    library: str = ""
    """Of TFLite's ``delegate``: a path on the device."""
    options: Mapping[str, Mapping[str, str]] = {}
    """Unit -> options of the provider or delegate."""


def chosen(runtime: str, request: Mapping[str, Any] | None = None) -> Units:
    """The units of a worker's request, ``{"names": [...], "library": ..., "options": {...}}``; None: the default ones.

    Raises ``MissingUnitError`` for a name that is not in ``UNITS``.
    """
    if not request:
        return Units(DEFAULTS[runtime])
    units = Units(tuple(request["names"]), request.get("library", ""), request.get("options", {}))
    for name in units.names:
        if name not in UNITS[runtime]:
            raise MissingUnitError(f"{runtime} knows no unit {name!r}; choose from {', '.join(UNITS[runtime])}")
    return units


def onnx_session(ort: Any, path: str, options: Any, units: Units) -> Any:
    """An ``InferenceSession`` on these providers and no other. Raises ``MissingUnitError`` or ``RefusedUnitError``."""
    wanted, there = [PROVIDERS[name] for name in units.names], ort.get_available_providers()
    for name in units.names:
        if PROVIDERS[name] not in there:
            known = [short for short, long in PROVIDERS.items() if long in there]
            raise MissingUnitError(f"onnxruntime {ort.__version__} has no {name} ({PROVIDERS[name]}); {_has(known)}")
    if units.names == DEFAULTS["onnx"]:
        return ort.InferenceSession(path, options, providers=wanted)
    if "cpu" not in units.names:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    settings = [dict(units.options.get(name, {})) for name in units.names]
    try:
        session = ort.InferenceSession(path, options, wanted, settings, enable_fallback=0)
    except Exception as error:  # the runtime's own errors have no base of their own
        hint = "; add cpu behind it to let the CPU compute the rest" if "CPU EP" in str(error) else ""
        raise RefusedUnitError(f"{' '.join(units.names)}: {error}{hint}") from error
    dropped = [name for name in units.names if PROVIDERS[name] not in session.get_providers()]
    if dropped:
        raise RefusedUnitError(f"{' '.join(dropped)} did not start: the runtime fell back to {session.get_providers()}")
    return session


def openvino_device(core: Any, units: Units) -> str:
    """The device's name as OpenVINO has it. Raises ``MissingUnitError``."""
    device, there = units.names[0].upper(), list(core.available_devices)
    if device != "AUTO" and not any(d == device or d.startswith(f"{device}.") for d in there):
        raise MissingUnitError(f"OpenVINO finds no {device}; {_has([d.lower() for d in there])}")
    return device


def openvino_compiled(core: Any, model: Any, config: Mapping[str, Any], units: Units) -> Any:
    """Compiled for the device; ``config`` is the CPU's, of which other devices take a part.

    Raises ``MissingUnitError`` or ``RefusedUnitError``.
    """
    device = openvino_device(core, units)
    if device == "CPU":
        return core.compile_model(model, device, dict(config) | dict(units.options.get("cpu", {})))
    taken: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    if device == "AUTO":
        taken["ENABLE_STARTUP_FALLBACK"] = False
    if device != "NPU":
        taken["INFERENCE_PRECISION_HINT"] = config["INFERENCE_PRECISION_HINT"]
    if "PERF_COUNT" in config:
        taken["PERF_COUNT"] = config["PERF_COUNT"]
    try:
        return core.compile_model(model, device, taken | dict(units.options.get(units.names[0], {})))
    except RuntimeError as error:
        raise RefusedUnitError(f"{units.names[0]}: {error}") from error


def openvino_property(compiled: Any, name: str) -> Any:
    """Of the compiled model; None where its device has no such property."""
    try:
        return compiled.get_property(name)
    except RuntimeError:
        return None


def interpreter(tflite: Any, path: str, threads: int, units: Units) -> Any:
    """A TFLite ``Interpreter``, not yet allocated. Raises ``MissingUnitError`` or ``RefusedUnitError``."""
    fields: dict[str, Any] = {"model_path": path, "num_threads": threads}
    if "xnnpack" not in units.names:
        fields["experimental_op_resolver_type"] = tflite.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    if "delegate" not in units.names:
        return tflite.Interpreter(**fields)
    try:
        ctypes.CDLL(units.library)  # first by ourselves: of a library that is not there, load_delegate leaves a half
        delegate = tflite.load_delegate(units.library, dict(units.options.get("delegate", {})))
    except (OSError, ValueError) as error:
        raise MissingUnitError(f"the delegate {units.library} cannot be loaded: {error}") from error
    try:
        return tflite.Interpreter(**fields, experimental_delegates=[delegate])
    except (RuntimeError, ValueError) as error:
        raise RefusedUnitError(f"the delegate {units.library}: {error}") from error


def _has(names: list[str]) -> str:
    return f"it has {', '.join(names)}" if names else "it has none that a recipe can name"
