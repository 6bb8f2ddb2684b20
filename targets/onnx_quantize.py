"""fp16 and int8 files for ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from distilledge.targets.base import Inputs
from distilledge.targets.scheme import PLAIN, Scheme

WITH_WEIGHTS = ["Conv", "MatMul", "Gemm"]
PASSED = {"Relu", "Clip", "MaxPool", "Pad", "Reshape", "Transpose", "Flatten"}
LOWEST = "distilledge_lowest"
EMBEDDING = ["Gather"]
"""Of text models: the table of a small one is most of the file (91 MB become 59 without it, 23 with it: MiniLM)."""


class Pictures(CalibrationDataReader):  # type: ignore[misc]
    """Feeds calibration pictures (1, H, W, 3) or ids (1, L) to ONNX Runtime's calibrator."""

    def __init__(self, name: str, pictures: Sequence[Inputs]) -> None:
        self.name, self.pictures = name, iter(pictures)

    def get_next(self) -> dict[str, Inputs] | None:
        picture = next(self.pictures, None)
        return None if picture is None else {self.name: picture}


def static_int8(
    fp32: Path,
    path: Path,
    pictures: Sequence[Inputs],
    *,
    saturates: bool = False,
    scheme: Scheme = PLAIN,
    wide: bool = False,
) -> str:
    """QDQ, uint8 activations, int8 weights per channel: the fast one on x86 (S8S8 is 2 to 5 times slower there).

    With attention, only layers with weights become int8, and their results stay float: else Softmax and the products
    of activations become int8 too, which is slower (35 ms against 24, DeiT-Tiny) and less true (cosine 0.954 against
    0.991).

    ``saturates``: weights are stored unsigned (``unsigned_weights``): the kernels for U8U8 are exact on every x86.
    ``wide``: 16-bit activations (U16S8; Q and DQ in the domain com.microsoft where the opset is below 21). ONNX Runtime
    has no CPU kernel for their products: it computes them in float between Q and DQ.
    """
    source = onnx.load(fp32).graph.input[0].name
    with TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(fp32), str(prepared), skip_symbolic_shape=True)
        graph = onnx.load(prepared).graph
        attention = any(node.op_type == "Softmax" for node in graph.node)
        scope = (WITH_WEIGHTS + EMBEDDING if takes_text(graph) else WITH_WEIGHTS) if attention else []
        quantize_static(
            str(prepared),
            str(path),
            Pictures(source, pictures),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt16 if wide else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            op_types_to_quantize=scope or None,
            nodes_to_exclude=[
                *normalisation(graph),
                *(without_weights(graph) if attention else ()),
                *widened(graph, scheme.islands),
            ],
            extra_options={"OpTypesToExcludeOutputQuantization": scope or ["Gemm"]} | given_ranges(graph, scheme),
        )
    proto = without_marks(onnx.load(path))
    if saturates and not wide:
        unsigned_weights(proto.graph)
    keep_float(proto.graph)
    onnx.save(proto, path)
    only = ", layers with weights only" if attention else ""
    kind = "U16S8" if wide else "U8U8 (U8S8 depthwise)" if saturates else "U8S8"
    return f"QDQ {kind} per channel, MinMax, {len(pictures)} samples{only}{scheme.words}"


def widened(graph: onnx.GraphProto, islands: Sequence[str]) -> Iterator[str]:
    """Names of the float layers, and of what only passes their results on."""
    own = set(islands)
    for node in graph.node:
        if node.output[0] in own or (node.op_type in PASSED and node.input[0] in own):
            own.add(node.output[0])
            yield node.name


def given_ranges(graph: onnx.GraphProto, scheme: Scheme) -> dict[str, Any]:
    """The quantizer's options for ranges that were found beforehand, of the tensors that the prepared graph has."""
    made = {name for node in graph.node for name in node.output}
    limits = {name: ends for name, ends in scheme.ranges.items() if name in made}
    ends = {name: [{"rmin": np.float32(low), "rmax": np.float32(high)}] for name, (low, high) in limits.items()}
    return {"TensorQuantOverrides": ends} if ends else {}


def keep_float(graph: onnx.GraphProto) -> None:
    """Put ``Max(x, lowest float)`` behind each Conv and Gemm with float weights whose input was quantised.

    ONNX Runtime's ``WeightBiasQuantization`` would else make those weights int8 again as the file is loaded, with one
    scale for all channels: a float island then costs accuracy (agreement 0.757 instead of 0.887, MobileNetV1 0.25).
    """
    stored = {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
    dequantised = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    bounded = []
    nodes = []
    for node in graph.node:
        nodes.append(node)
        if node.op_type in ("Conv", "Gemm") and node.input[1] in stored and node.input[0] in dequantised:
            result = node.output[0]
            node.output[0] = f"{result}_unbounded"
            nodes.append(helper.make_node("Max", [node.output[0], LOWEST], [result], name=f"{node.name}_float"))
            bounded.append(result)
    if bounded:
        graph.initializer.append(numpy_helper.from_array(np.array(np.finfo(np.float32).min, np.float32), LOWEST))
        del graph.node[:]
        graph.node.extend(nodes)


def without_marks(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Remove the notes that the quantizer leaves itself in the metadata."""
    del proto.metadata_props[:]
    return proto


def unsigned_weights(graph: onnx.GraphProto) -> None:
    """int8 weights and their zero points become uint8 by adding 128 to both: the same numbers, in place.

    Depthwise convolutions keep theirs: their kernel does not saturate, and that for U8U8 is 17 times slower at 5 x 5.
    """
    stored = {tensor.name: tensor for tensor in graph.initializer}
    grouped = {name for node in graph.node if is_depthwise(node) for name in node.input}
    shifted = {
        name
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.output[0] not in grouped and len(node.input) == 3
        for name in (node.input[0], node.input[2])
        if node.input[0] in stored and stored[node.input[0]].data_type == TensorProto.INT8
    }
    for name in shifted:
        moved = numpy_helper.to_array(stored[name]).astype(np.int16) + 128
        stored[name].CopyFrom(numpy_helper.from_array(moved.astype(np.uint8), name))


def is_depthwise(node: onnx.NodeProto) -> bool:
    return node.op_type == "Conv" and any(a.name == "group" and a.i > 1 for a in node.attribute)


def takes_text(graph: onnx.GraphProto) -> bool:
    return bool(graph.input[0].type.tensor_type.elem_type == TensorProto.INT32)


def without_weights(graph: onnx.GraphProto) -> Iterator[str]:
    """Names of the matrix products of two activations."""
    weights = {tensor.name for tensor in graph.initializer}
    return (node.name for node in graph.node if node.op_type == "MatMul" and weights.isdisjoint(node.input))


def normalisation(graph: onnx.GraphProto) -> Iterator[str]:
    """Nodes from the input to the first that is not a cast, a change of shape or arithmetic with a constant."""
    tensor = graph.input[0].name
    while True:
        users = [node for node in graph.node if tensor in node.input]
        if len(users) != 1 or users[0].op_type not in {"Cast", "Transpose", "Reshape", "Mul", "Add", "Sub", "Div"}:
            return
        yield users[0].name
        tensor = users[0].output[0]


def dynamic_int8(fp32: Path, path: Path, *, saturates: bool = False, scheme: Scheme = PLAIN) -> str:
    """int8 weights, activation ranges at run time, of MatMul and Gemm: ConvInteger is slower than float. Of text models
    the embedding too.

    Weights per channel: with one scale for each matrix, MiniLM on Banking77 loses 1.8 points and agrees with itself in
    0.963 instead of 0.983, and larger models with outliers lose more.
    """
    with TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(fp32), str(prepared), skip_symbolic_shape=True)
        graph = onnx.load(prepared).graph
        scope = ["MatMul", "Gemm", *(EMBEDDING if takes_text(graph) else ())]
        quantize_dynamic(
            str(prepared),
            str(path),
            op_types_to_quantize=scope,
            nodes_to_exclude=list(widened(graph, scheme.islands)),
            per_channel=True,
            weight_type=QuantType.QUInt8 if saturates else QuantType.QInt8,
        )
    onnx.save(without_marks(onnx.load(path)), path)
    unsigned = ", unsigned" if saturates else ""
    return f"dynamic int8 of {', '.join(scope)}, weights per channel{unsigned}{scheme.words}"


def int8_weights(fp32: Path, path: Path) -> str:
    """int8 weights per output channel, float32 arithmetic: a quarter of the size, no gain in speed."""
    proto = onnx.load(fp32)
    known = {v.name: v for v in proto.graph.initializer}
    users = {n.input[1]: n for n in proto.graph.node if n.op_type in WITH_WEIGHTS and n.input[1] in known}
    made = []
    for name, user in users.items():
        weights = numpy_helper.to_array(known[name])
        if weights.dtype != np.float32 or weights.size < 256:
            continue
        rows = user.op_type == "Conv" or any(a.name == "transB" and a.i for a in user.attribute)
        axis = 0 if rows else weights.ndim - 1
        others = tuple(i for i in range(weights.ndim) if i != axis)
        scale = np.maximum(np.abs(weights).max(others) / 127, 1e-12).astype(np.float32)
        shape = [-1 if i == axis else 1 for i in range(weights.ndim)]
        values = np.round(weights / scale.reshape(shape)).astype(np.int8)
        known[name].CopyFrom(numpy_helper.from_array(values, f"{name}_int8"))
        proto.graph.initializer.append(numpy_helper.from_array(scale, f"{name}_scale"))
        names = [f"{name}_int8", f"{name}_scale"]
        made.append(helper.make_node("DequantizeLinear", names, [name], name=f"{name}_dequantised", axis=axis))
    nodes = [*made, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    onnx.save(proto, path)
    return f"int8 weights per channel of {len(made)} layers, float32 arithmetic"


def half_weights(fp32: Path, path: Path) -> str:
    """float16 weights, float32 arithmetic."""
    proto = onnx.load(fp32)
    casts = []
    for tensor in proto.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < 64:
            continue
        name = tensor.name
        half = numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(half, f"{name}_fp16"))
        casts.append(helper.make_node("Cast", [f"{name}_fp16"], [name], name=f"{name}_cast", to=TensorProto.FLOAT))
    nodes = [*casts, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    onnx.save(proto, path)
    return "float16 weights, float32 arithmetic"
