"""OpenVINO IR: ``.xml`` and ``.bin``."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from distilledge.targets.base import AnyDeployable, FloatArray, Inputs, Precision, RuntimeName, TextDeployable
from distilledge.targets.deployed import IMAGE, LOGITS, converting, deployed, output_names
from distilledge.targets.ondevice.runtimes import openvino_core
from distilledge.targets.scheme import PLAIN, LayerError, Scheme
from distilledge.targets.telemetry import switch_off

switch_off()  # openvino and nncf send an event when they are imported

import openvino as ov  # noqa: E402

NAME: RuntimeName = "openvino"
SUFFIX = ".xml"
PACKAGES = ("torch", "openvino", "nncf")
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "w8", "w8dyn", "w8a8")
ANY_LENGTH = True

SECTION = "distilledge"
"""Of rt_info, where our metadata stands."""
WEIGHTS_SHA256 = "weights_sha256"
"""Our rt_info entry that ties the .bin to the .xml; not part of what ``read_metadata`` returns."""

NOT_ARITHMETIC = {
    *(
        "Input",
        "Output",
        "Const",
        "Reorder",
        "Reshape",
        "Transpose",
        "Convert",
        "Split",
        "Concatenation",
        "StridedSlice",
    ),
    *("Gather", "Broadcast", "ShapeOf", "Pad", "Quantize", "FakeQuantize", "Tile", "Squeeze", "Unsqueeze"),
}

CONVERSIONS = {"Quantize", "FakeQuantize", "Convert", "Reorder"}
"""Of a compiled model: layers that turn a tensor into another type."""


def export(model: torch.nn.Module, deployable: AnyDeployable, out: Path) -> Path:
    """Write ``model.fp32.xml`` and ``.bin``; see ``Target.export``."""
    path = out / f"model.fp32{SUFFIX}"
    if isinstance(deployable, TextDeployable):
        with converting(f"torch to {path.name}"):
            converted = from_text(model, deployable)
            name_stably(converted)
            ov.save_model(converted, path, compress_to_fp16=False)
        return path
    module, example = deployed(model, deployable, channels_last=False)
    with converting(f"torch to {path.name}"):
        converted = ov.convert_model(module, example_input=example, input=[list(example.shape)])
        converted.inputs[0].get_tensor().set_names({IMAGE})
        for output, name in zip(converted.outputs, output_names(deployable), strict=True):
            output.get_tensor().set_names({name})
        name_stably(converted)
        ov.save_model(converted, path, compress_to_fp16=False)
    return path


def from_text(model: torch.nn.Module, deployable: TextDeployable) -> ov.Model:
    """By way of ONNX: OpenVINO's own tracer fails on transformers' masks, and attention is fused that way only."""
    import onnx

    from distilledge.targets.text_program import text_program

    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(text_program(model, deployable), path)
        return ov.convert_model(path)


def name_stably(model: ov.Model) -> None:
    """Rename ``Constant_21447`` and the like, numbered over the life of the process: equal models, equal files."""
    model.set_friendly_name("distilledge")
    seen: Counter[str] = Counter()
    for operation in model.get_ordered_ops():
        numbered = re.fullmatch(r"([A-Z]\w*)_\d+", operation.friendly_name)
        if numbered:
            seen[numbered[1]] += 1
            operation.friendly_name = f"{numbered[1]}_{seen[numbered[1]]}"


def compress(
    fp32: Path,
    deployable: AnyDeployable,
    out: Path,
    *,
    precision: Precision,
    calibration: Sequence[Inputs],
    scheme: Scheme = PLAIN,
) -> tuple[Path, str]:
    """See ``Target.compress``."""
    path = out / f"model.{precision}{SUFFIX}"
    with converting(f"{fp32.name} to {path.name}"):
        from distilledge.targets.openvino_quantize import compress_to_int8, quantize  # NNCF: seconds, and it talks

        model, words = read_model(fp32), "as exported"
        match precision:
            case "fp16":
                words = "float16 weights; arithmetic in the precision the device is told to use"
            case "w8" | "w8dyn":
                model, words = compress_to_int8(model)
            case "w8a8":
                model, words = quantize(model, calibration, saturates=deployable.saturates, scheme=scheme)
        name_stably(model)
        ov.save_model(model, path, compress_to_fp16=precision == "fp16")
    return path, words


def read_model(path: Path) -> ov.Model:
    model: ov.Model = openvino_core().read_model(path)
    return model


def embed_metadata(path: Path, metadata: dict[str, str]) -> None:
    """Write rt_info, and the hash of the weights file so that a strange ``.bin`` is noticed.

    Saved twice, beside (the hash is of the saved ``.bin``, which does not depend on rt_info), then moved into place:
    OpenVINO maps the ``.bin`` it has read, and deletes both files when a write fails.
    """
    model, entries = read_model(path), read_metadata(path) | metadata
    beside = path.with_name(f"{path.stem}.tmp.xml")
    ov.save_model(model, beside, compress_to_fp16=False)
    entries[WEIGHTS_SHA256] = file_sha256(beside.with_suffix(".bin"))
    for key, value in entries.items():
        model.set_rt_info(value, [SECTION, key])
    ov.save_model(model, beside, compress_to_fp16=False)
    beside.with_suffix(".bin").replace(path.with_suffix(".bin"))
    beside.replace(path)


def weights_sha256(model: ov.Model) -> str | None:
    """What ``embed_metadata`` wrote of the weights file; None for files of others."""
    return (
        str(model.get_rt_info([SECTION, WEIGHTS_SHA256]).value)
        if model.has_rt_info([SECTION, WEIGHTS_SHA256])
        else None
    )


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_metadata(path: Path) -> dict[str, str]:
    model = read_model(path)
    if not model.has_rt_info([SECTION]):
        return {}
    entries = {key: str(value) for key, value in model.get_rt_info([SECTION]).value.items()}
    return {key: value for key, value in entries.items() if key != WEIGHTS_SHA256}


def compiled(model: ov.Model | Path) -> ov.CompiledModel:
    """One stream, one thread, float32 arithmetic: the device's default may be bf16."""
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
    network: ov.CompiledModel = openvino_core().compile_model(model, "CPU", settings)
    return network


def tensors(path: Path, rows: Inputs, *, optimise: bool) -> dict[str, FloatArray]:  # noqa: ARG001
    """Float results in graph order, ``logits`` (the tasks') last, one row at a time, stacked; see ``Target.tensors``.

    ``optimise`` changes nothing: the CPU plug-in cannot be told to leave a graph alone. A result for each operation
    keeps it from fusing most of them.
    """
    model = read_model(path)
    inner = [o for o in model.get_ordered_ops() if is_inner(o)]
    own = [min(output.get_names()) for output in model.outputs] if len(model.outputs) > 1 else [LOGITS]
    model.add_outputs([o.output(0) for o in inner])
    run = compiled(model).create_infer_request()
    names = [*(o.friendly_name for o in inner), *own]
    order = [*range(len(own), len(names)), *range(len(own))]  # the model's own results come first
    made = []
    for row in rows:
        run.infer({0: row[None]})
        made.append([run.get_output_tensor(k).data.copy() for k in order])
    return {name: np.stack([outputs[k] for outputs in made]) for k, name in enumerate(names)}


def is_inner(operation: ov.Node) -> bool:
    """Whether it computes one float tensor from the input, and that is not yet a result of the model."""
    if operation.get_type_name() in {"Parameter", "Constant", "Result"} or operation.get_output_size() != 1:
        return False
    users = {target.get_node().get_type_name() for target in operation.output(0).get_target_inputs()}
    return operation.output(0).element_type == ov.Type.f32 and "Result" not in users and not fed_by_constants(operation)


def fed_by_constants(operation: ov.Node) -> bool:
    """Whether all that goes in is constant: de-compressed weights and the like."""
    if operation.get_type_name() == "Constant":
        return True
    inputs = [value.get_source_output().get_node() for value in operation.inputs()]
    return bool(inputs) and all(fed_by_constants(node) for node in inputs)


def float_operations(path: Path) -> tuple[str, ...]:
    """Layers that the compiled model runs in a float precision (``Target.float_operations``)."""
    kept: Counter[str] = Counter()
    for node in compiled(path).get_runtime_model().get_ordered_ops():
        kind, precision = (str(node.rt_info[key].value) for key in ("layerType", "runtimePrecision"))
        if kind not in NOT_ARITHMETIC and precision.lower() in {"f32", "bf16", "f16"}:
            kept[kind] += 1
    return tuple(f"{name} x{count}" for name, count in kept.most_common())


def boundaries(path: Path) -> int:
    """See ``Target.boundaries``: also what only changes the layout on the way."""
    layers = compiled(path).get_runtime_model().get_ordered_ops()
    return sum(str(node.rt_info["layerType"].value) in CONVERSIONS for node in layers)


def layer_names(fp32: Path) -> tuple[str, ...]:
    """See ``Target.layer_names``."""
    with converting(f"layers of {fp32.name}"):
        from distilledge.targets import openvino_layers

        return tuple(str(o.friendly_name) for o in openvino_layers.layers(read_model(fp32)))


def layer_errors(
    fp32: Path,
    deployable: AnyDeployable,  # noqa: ARG001 (one call for all targets)
    *,
    calibration: Sequence[Inputs],
    rows: Sequence[Inputs],
) -> tuple[LayerError, ...]:
    """See ``Target.layer_errors``."""
    with converting(f"layers of {fp32.name}"):
        from distilledge.targets import openvino_layers

        return openvino_layers.layer_errors(read_model(fp32), calibration, rows)
