"""What a TFLite flatbuffer holds, read with LiteRT's own schema."""

from __future__ import annotations

import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

from distilledge.targets.base import FloatArray

DAMAGED = (ValueError, IndexError, KeyError, TypeError, AttributeError, struct.error)
WITH_WEIGHTS = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"}
OPERATION_NAMES = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}


@dataclass(frozen=True)
class TensorInfo:
    name: str
    shape: tuple[int, ...]
    """The signature shape: -1 where dynamic."""
    kind: int
    scale: npt.NDArray[np.float32]
    """Of one value or one for each channel; empty where the tensor is not quantised."""
    zero_point: npt.NDArray[np.int64]

    @property
    def is_float(self) -> bool:
        return bool(self.kind == schema.TensorType.FLOAT32)

    @property
    def is_int8(self) -> bool:
        return bool(self.kind == schema.TensorType.INT8)

    def dequantised(self, value: npt.NDArray[Any]) -> FloatArray:
        """Per tensor: activations have one scale."""
        if self.scale.size == 0 or self.is_float:
            return value.astype(np.float32)
        return np.asarray((value.astype(np.float32) - self.zero_point[0]) * self.scale[0], np.float32)


@dataclass(frozen=True)
class Operation:
    name: str
    """Builtin name such as ``CONV_2D``; the custom code of a custom operation, such as ``FlexErf``."""
    custom: bool
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class Graph:
    """A subgraph, in execution order."""

    tensors: tuple[TensorInfo, ...]
    operations: tuple[Operation, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    buffer_bytes: int
    """Sum over all constant buffers: reading it proves that they lie inside the file."""


def model_bytes(path: Path) -> bytes:
    """The file without the zip at its end."""
    content = path.read_bytes()
    if not zipfile.is_zipfile(path):
        return content
    with zipfile.ZipFile(path) as archive:
        return content[: min((info.header_offset for info in archive.infolist()), default=len(content))]


def subgraph_of(path: Path, signature: str) -> tuple[int, str]:
    """The subgraph of a signature, with its name; (0, "") where there is none of this name."""
    model = schema.Model.GetRootAs(bytearray(path.read_bytes()), 0)
    for i in range(model.SignatureDefsLength()):
        entry = model.SignatureDefs(i)
        if entry.SignatureKey().decode() == signature:
            return int(entry.SubgraphIndex()), signature
    return 0, ""


def read_graph(path: Path, subgraph: int = 0) -> Graph:
    """Read a subgraph. What a damaged file raises is in ``DAMAGED``."""
    content = bytearray(path.read_bytes())
    if content[4:8] != b"TFL3":
        raise ValueError("no TFL3 mark")
    model = schema.Model.GetRootAs(content, 0)
    graph = model.Subgraphs(subgraph)
    codes = [operation_name(model.OperatorCodes(i)) for i in range(model.OperatorCodesLength())]
    operations = []
    for i in range(graph.OperatorsLength()):
        operation = graph.Operators(i)
        name, custom = codes[operation.OpcodeIndex()]
        operations.append(
            Operation(name, custom, indices(operation.InputsAsNumpy()), indices(operation.OutputsAsNumpy()))
        )
    inputs, outputs = indices(graph.InputsAsNumpy()), indices(graph.OutputsAsNumpy())
    named = {*inputs, *outputs, *(t for o in operations for t in (*o.inputs, *o.outputs))}
    if max(named, default=0) >= graph.TensorsLength():
        raise ValueError("it names a tensor that it does not hold")
    return Graph(
        tensors=tuple(tensor_info(graph.Tensors(i)) for i in range(graph.TensorsLength())),
        operations=tuple(operations),
        inputs=inputs,
        outputs=outputs,
        buffer_bytes=sum(buffer_size(model.Buffers(i), len(content)) for i in range(model.BuffersLength())),
    )


def read_graphs(path: Path) -> tuple[Graph, ...]:
    """All subgraphs: of a text file one for each length, alike but for their shapes and the names of their tensors."""
    many = schema.Model.GetRootAs(bytearray(path.read_bytes()), 0).SubgraphsLength()
    return tuple(read_graph(path, number) for number in range(many))


def layers(graph: Graph) -> list[Operation]:
    return [operation for operation in graph.operations if operation.name in WITH_WEIGHTS]


def layer_names(graph: Graph) -> tuple[str, ...]:
    """See ``Target.layer_names``."""
    return tuple(graph.tensors[operation.outputs[0]].name for operation in layers(graph))


def operation_name(code: Any) -> tuple[str, bool]:
    """Name, and whether it is a custom operation. Old files keep the code in a byte of its own."""
    if code.CustomCode() is not None:
        return code.CustomCode().decode(), True
    return OPERATION_NAMES[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())], False


def tensor_info(tensor: Any) -> TensorInfo:
    quantization = tensor.Quantization()
    scaled = quantization is not None and quantization.ScaleLength() > 0
    dynamic = tensor.ShapeSignatureLength() > 0
    return TensorInfo(
        name=tensor.Name().decode(),
        shape=indices(tensor.ShapeSignatureAsNumpy() if dynamic else tensor.ShapeAsNumpy(), keep=True),
        kind=tensor.Type(),
        scale=quantization.ScaleAsNumpy() if scaled else np.empty(0, np.float32),
        zero_point=quantization.ZeroPointAsNumpy() if scaled else np.empty(0, np.int64),
    )


def buffer_size(buffer: Any, limit: int) -> int:
    """Bytes of a constant, inside the flatbuffer or (above 2 GB) behind it."""
    if buffer.Offset() + buffer.Size() > limit:
        raise ValueError("a constant lies behind the end of the file")
    return len(buffer.DataAsNumpy()) if buffer.DataLength() else int(buffer.Size())


def indices(values: Any, *, keep: bool = False) -> tuple[int, ...]:
    """A vector as a tuple; absent optional inputs (-1) are left out unless ``keep``. An absent vector reads as 0."""
    return () if isinstance(values, int) else tuple(int(v) for v in values if keep or v >= 0)
