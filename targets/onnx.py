"""ONNX files, run by ONNX Runtime."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto, helper

from distilledge.targets.base import AnyDeployable, FloatArray, Inputs, Precision, RuntimeName, TextDeployable
from distilledge.targets.deployed import IMAGE, converting, deployed, output_names
from distilledge.targets.onnx_quantize import dynamic_int8, half_weights, int8_weights, static_int8
from distilledge.targets.scheme import PLAIN, LayerError, Scheme
from distilledge.targets.text_program import OPSET, strip_traces, text_program

NAME: RuntimeName = "onnx"
SUFFIX = ".onnx"
PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime")
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "w8", "w8dyn", "w8a16", "w8a8")
ANY_LENGTH = True

DEQUANTISED = "_DequantizeLinear_Output"
"""What ONNX Runtime's quantizer appends to the name of a tensor behind its Q/DQ pair."""

NOT_ARITHMETIC = {
    *("Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Concat", "Slice", "Split", "Gather", "Shape"),
    *("Constant", "Identity", "Expand", "Pad", "ReorderInput", "ReorderOutput", "QuantizeLinear", "DequantizeLinear"),
    "DynamicQuantizeLinear",
}


def export(model: torch.nn.Module, deployable: AnyDeployable, out: Path) -> Path:
    """Write ``model.fp32.onnx`` with torch's own exporter; see ``Target.export``."""
    path = out / f"model.fp32{SUFFIX}"
    if isinstance(deployable, TextDeployable):
        with converting(f"torch to {path.name}"):
            onnx.save(text_program(model, deployable), path)
        return path
    module, example = deployed(model, deployable, channels_last=False)
    with converting(f"torch to {path.name}"):
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[IMAGE],
            output_names=output_names(deployable),
            external_data=False,
            verbose=False,
        )
        assert program is not None
        proto = program.model_proto
        strip_traces(proto)
        onnx.save(proto, path)
    return path


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
        match precision:
            case "fp32":
                shutil.copyfile(fp32, path)
                return path, "as exported"
            case "fp16":
                return path, half_weights(fp32, path)
            case "w8dyn":
                return path, dynamic_int8(fp32, path, saturates=deployable.saturates, scheme=scheme)
            case "w8a8":
                return path, static_int8(fp32, path, calibration, saturates=deployable.saturates, scheme=scheme)
            case "w8a16":
                return path, static_int8(fp32, path, calibration, saturates=deployable.saturates, wide=True)
            case "w8":
                return path, int8_weights(fp32, path)


def embed_metadata(path: Path, metadata: dict[str, str]) -> None:
    """Write ``metadata_props``; keys that are there already are replaced."""
    proto = onnx.load(path)
    helper.set_model_props(proto, read_metadata(path) | metadata)
    onnx.save(proto, path)


def read_metadata(path: Path) -> dict[str, str]:
    return {p.key: p.value for p in onnx.load(path).metadata_props}


def session(path: Path | bytes, *, optimise: bool = True) -> ort.InferenceSession:
    """A one-thread CPU session, without ONNX Runtime's warnings."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = path if isinstance(path, bytes) else str(path)
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def tensors(path: Path, rows: Inputs, *, optimise: bool) -> dict[str, FloatArray]:
    """Every float32 tensor in graph order, one row at a time, stacked; see ``Target.tensors``.

    Where a tensor is quantised and de-quantised, what comes out counts: the quantizer leaves it to that to clip as the
    removed ReLU did. Marking a tensor as an output keeps ONNX Runtime from fusing it away: ``optimise`` shows all that
    is not a fusion.
    """
    proto = onnx.shape_inference.infer_shapes(onnx.load(path))
    float32 = {v.name for v in proto.graph.value_info if v.type.tensor_type.elem_type == TensorProto.FLOAT}
    present = [name for name in computed(proto.graph) if name in float32]
    outputs = [value.name for value in proto.graph.output]
    proto.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in present)
    names = [*present, *outputs]
    run = session(proto.SerializeToString(), optimise=optimise)
    source = run.get_inputs()[0].name
    made = [run.run(names, {source: rows[i : i + 1]}) for i in range(len(rows))]
    found = {name: np.stack([row[k] for row in made]) for k, name in enumerate(names)}
    quantised = [name for name in names if name.endswith(DEQUANTISED)]
    found.update({name.removesuffix(DEQUANTISED): found.pop(name) for name in quantised})
    return found


def computed(graph: onnx.GraphProto) -> list[str]:
    """Tensors that depend on the input, in graph order."""
    known = {graph.input[0].name: None}
    for node in graph.node:
        if any(name in known for name in node.input):
            known.update(dict.fromkeys(node.output))
    return [name for name in known if name != graph.input[0].name]


def float_operations(path: Path) -> tuple[str, ...]:
    """What ONNX Runtime computes in float after its own fusions of Q/DQ pairs (``Target.float_operations``)."""
    nodes = optimised(path).node
    kept = Counter(n.op_type for n in nodes if n.op_type not in NOT_ARITHMETIC and not is_integer(n.op_type))
    return tuple(f"{name} x{count}" for name, count in kept.most_common())


def optimised(path: Path) -> onnx.GraphProto:
    """The graph after ONNX Runtime's own fusions, without those that change the layout."""
    with TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath, options.log_severity_level = f"{folder}/optimised.onnx", 3
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath).graph


def boundaries(path: Path) -> int:
    """See ``Target.boundaries``."""
    from distilledge.targets.onnx_layers import conversions

    return conversions(optimised(path))


def layer_names(fp32: Path) -> tuple[str, ...]:
    """See ``Target.layer_names``."""
    from distilledge.targets import onnx_layers

    return onnx_layers.layer_names(fp32)


def layer_errors(
    fp32: Path,
    deployable: AnyDeployable,  # noqa: ARG001 (one call for all targets)
    *,
    calibration: Sequence[Inputs],
    rows: Sequence[Inputs],
) -> tuple[LayerError, ...]:
    """See ``Target.layer_errors``."""
    from distilledge.targets import onnx_layers

    with converting(f"layers of {fp32.name}"):
        return onnx_layers.layer_errors(fp32, calibration, rows)


def is_integer(operation: str) -> bool:
    """ONNX Runtime's int8 kernels: QLinearConv, QGemm, MatMulInteger, DynamicQuantizeMatMul and their like."""
    return operation.startswith(("QLinear", "QGemm", "DynamicQuantize")) or "Integer" in operation
