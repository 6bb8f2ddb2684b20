"""Where the operations of a file ran and for how long, read back from the runtime after it ran them.

In a session of its own, with the runtime's profiler on: never the one that is timed. ONNX Runtime writes a trace of
each node with its provider; OpenVINO counts each node of the compiled model. LiteRT's interpreter says which operations
its delegates took but has no profiler: times are those of the library's compiled model (``litert_profile.py``).
Where a runtime reports no times, shares are None.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np

if __package__:
    from distilledge.targets.ondevice import units
    from distilledge.targets.ondevice.files import check_integrity
    from distilledge.targets.ondevice.layers import WARMUP, Layer, Profile, answer, filled, repeat, stretches, typical
    from distilledge.targets.ondevice.placement_tflite import profile_tflite
    from distilledge.targets.ondevice.runtimes import (
        import_runtime,
        onnx_options,
        openvino_config,
        openvino_core,
        usable_cores,
    )
else:
    import units  # type: ignore[import-not-found,no-redef]
    from files import check_integrity  # type: ignore[import-not-found,no-redef]
    from layers import (  # type: ignore[import-not-found,no-redef]
        WARMUP,
        Layer,
        Profile,
        answer,
        filled,
        repeat,
        stretches,
        typical,
    )
    from placement_tflite import profile_tflite  # type: ignore[import-not-found,no-redef]
    from runtimes import (  # type: ignore[import-not-found,no-redef]
        import_runtime,
        onnx_options,
        openvino_config,
        openvino_core,
        usable_cores,
    )

RUNS, SECONDS = 20, 2.0
"""Profiled inferences of a file at most, and for how long at most."""
DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}
"""Of ONNX Runtime's inputs."""
SHORT = {"float": "f32", "float16": "f16", "double": "f64", "uint8": "u8", "int8": "i8"}
ONNX_BOUNDARIES = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MemcpyToHost", "MemcpyFromHost"}
)
OPENVINO_BOUNDARIES = frozenset({"Convert", "FakeQuantize", "Quantize", "Dequantize"})
OUTER = frozenset({"If", "Loop", "Scan"})
"""Operations whose time is that of the operations inside, which are listed too."""


def profiled(request: dict[str, Any]) -> dict[str, Any]:
    """``profile`` for a worker: ``files``, ``sha256``, ``runtime``, ``threads``, ``precision``, ``units``."""
    check_integrity(request["files"], request["sha256"])
    fields = request["files"][0], request["runtime"], request["threads"], request.get("precision", "fp32")
    return profile(*fields, on=request.get("units"))


def profile(
    path: str,
    runtime: str,
    threads: int = 1,
    precision: str = "fp32",
    *,
    on: dict[str, Any] | None = None,
    runs: int = RUNS,
    seconds: float = SECONDS,
) -> dict[str, Any]:
    """Load a file of any make, run it on ones, and say what ran where: ``layers.answer``.

    ``on``: see ``units.chosen``. Raises ``units.UnitError`` and whatever the runtime raises.
    """
    chosen, cores = units.chosen(runtime, on), threads or usable_cores()
    if runtime == "onnx":
        return answer(_profile_onnx(path, cores, chosen, runs, seconds))
    if runtime == "openvino":
        return answer(_profile_openvino(path, cores, precision, chosen, (runs, seconds)))
    return answer(profile_tflite(import_runtime("tflite"), path, cores, chosen, (runs, seconds)))


def _profile_onnx(path: str, threads: int, on: units.Units, runs: int, seconds: float) -> Profile:
    ort = import_runtime("onnx")
    options = onnx_options(ort, threads)
    options.enable_profiling = True
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    with tempfile.TemporaryDirectory(prefix="distilledge-profile-") as folder:
        options.profile_file_prefix = f"{folder}/profile"
        session = units.onnx_session(ort, path, options, on)
        feed = {i.name: filled(i.shape, DTYPES[i.type]) for i in session.get_inputs()}
        done = repeat(lambda: session.run(None, feed), runs, seconds)
        trace = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    layers = _onnx_layers(trace, done)
    placed = _assigned(session) or Counter(layer.unit for layer in layers)
    return Profile(layers, dict(placed), stretches([layer.unit for layer in layers], on.names[0]), done)


def _onnx_layers(trace: list[dict[str, Any]], runs: int) -> tuple[Layer, ...]:
    """One for each executed node, in the order of the first run."""
    spent: dict[tuple[str, str], list[float]] = defaultdict(list)
    about: dict[tuple[str, str], dict[str, Any]] = {}
    for event in trace:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            key = event["name"].removesuffix("_kernel_time"), event["args"].get("node_index", "")
            spent[key].append(float(event["dur"]))
            about.setdefault(key, event["args"])
    layers = []
    for key, durations in spent.items():
        arguments = about[key]
        if arguments["op_name"] in OUTER:
            continue
        each = len(durations) // (
            runs + WARMUP
        )  # more than one inside of a loop; none in a branch that is seldom taken
        if each:
            per_run = np.reshape(durations[: each * (runs + WARMUP)], (runs + WARMUP, each)).sum(1)
            layers.append(_onnx_layer(key[0], arguments, typical(per_run[WARMUP:])))
        else:
            layers.append(_onnx_layer(key[0], arguments, sum(durations) / (runs + WARMUP)))
    return tuple(layers)


def _onnx_layer(name: str, arguments: dict[str, Any], microseconds: float) -> Layer:
    kind, provider = arguments["op_name"], arguments["provider"]
    unit = next((short for short, long in units.PROVIDERS.items() if long == provider), provider)
    sorts = [next(iter(shape), "") for shape in arguments.get("output_type_shape", [])[:1]]
    inputs = [next(iter(shape), "") for shape in arguments.get("input_type_shape", [])[:1]]
    precision = SHORT.get(sorts[0], sorts[0]) if sorts else ""
    if "QLinear" in kind or "Integer" in kind or kind == "DynamicQuantizeMatMul":
        precision = "i8"
    halves = kind == "Cast" and "float16" in sorts + inputs
    return Layer(name or kind, kind, unit, precision, microseconds, kind in ONNX_BOUNDARIES or halves)


def _assigned(session: Any) -> Counter[str]:
    """Nodes of the file by unit, as the runtime assigned them, before it fused any; empty where it does not say."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return Counter()
    short = {long: name for name, long in units.PROVIDERS.items()}
    found: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        found[short.get(part.ep_name, part.ep_name)] += len(part.get_nodes())
    return found


def _profile_openvino(path: str, threads: int, precision: str, on: units.Units, most: tuple[int, float]) -> Profile:
    import_runtime("openvino")
    core = openvino_core()
    config = openvino_config(core, threads, precision, on) | {"PERF_COUNT": True}
    compiled = units.openvino_compiled(core, core.read_model(path), config, on)
    request = compiled.create_infer_request()
    inputs = []
    for source in compiled.inputs:
        shape = [d.get_length() if d.is_static else -1 for d in source.partial_shape]
        inputs.append(filled(shape, source.get_element_type().to_dtype()))
    spent: dict[tuple[str, str], list[float]] = defaultdict(list)
    kernels: dict[tuple[str, str], str] = {}

    def run() -> None:
        request.infer(inputs)
        for node in request.profiling_info:
            if node.status.name == "EXECUTED":
                key = node.node_name, node.node_type
                spent[key].append(node.real_time.total_seconds() * 1e6)
                kernels.setdefault(key, node.exec_type)

    done = repeat(run, *most)
    unit = " ".join(d.strip("()").lower() for d in units.openvino_property(compiled, "EXECUTION_DEVICES") or on.names)
    layers = tuple(
        Layer(*key, unit, kernel.rpartition("_")[2].lower(), typical(spent[key]), key[1] in OPENVINO_BOUNDARIES)
        for key, kernel in kernels.items()
    )
    untimed = "" if layers else f"the {unit} reports no counts of its nodes"
    return Profile(layers, {unit: len(layers)}, 1, done if layers else 0, untimed)
