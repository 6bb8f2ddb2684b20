"""fp16 and int8 files for ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

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

from distilledge.targets.base import Uint8Array

WITH_WEIGHTS = ["Conv", "MatMul", "Gemm"]


class Pictures(CalibrationDataReader):  # type: ignore[misc]
    """Feeds calibration pictures (1, H, W, 3) to ONNX Runtime's calibrator."""

    def __init__(self, name: str, pictures: Sequence[Uint8Array]) -> None:
        self.name, self.pictures = name, iter(pictures)

    def get_next(self) -> dict[str, Uint8Array] | None:
        picture = next(self.pictures, None)
        return None if picture is None else {self.name: picture}


def static_int8(fp32: Path, path: Path, pictures: Sequence[Uint8Array]) -> str:
    """QDQ, uint8 activations, int8 weights per channel: the fast one on x86 (S8S8 is 2 to 5 times slower there).

    With attention, only layers with weights become int8, and their results stay float: else Softmax and the products
    of activations become int8 too, which is slower (35 ms against 24, DeiT-Tiny) and less true (cosine 0.954 against
    0.991).
    """
    source = onnx.load(fp32).graph.input[0].name
    with TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(fp32), str(prepared), skip_symbolic_shape=True)
        graph = onnx.load(prepared).graph
        attention = any(node.op_type == "Softmax" for node in graph.node)
        quantize_static(
            str(prepared),
            str(path),
            Pictures(source, pictures),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            op_types_to_quantize=WITH_WEIGHTS if attention else None,
            nodes_to_exclude=[*normalisation(graph), *(without_weights(graph) if attention else ())],
            extra_options={"OpTypesToExcludeOutputQuantization": WITH_WEIGHTS if attention else ["Gemm"]},
        )
    drop_marks(path)
    scope = ", layers with weights only" if attention else ""
    return f"QDQ U8S8 per channel, MinMax, {len(pictures)} pictures{scope}"


def drop_marks(path: Path) -> None:
    """Remove the notes that the quantizer leaves itself in the metadata."""
    proto = onnx.load(path)
    del proto.metadata_props[:]
    onnx.save(proto, path)


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


def dynamic_int8(fp32: Path, path: Path) -> str:
    """int8 weights, activation ranges at run time, of MatMul and Gemm: ConvInteger is slower than float."""
    with TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(fp32), str(prepared), skip_symbolic_shape=True)
        quantize_dynamic(
            str(prepared),
            str(path),
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QInt8,
        )
    drop_marks(path)
    return "dynamic int8 of MatMul and Gemm, weights per channel"


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
