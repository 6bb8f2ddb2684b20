"""What an ONNX file holds: is it whole, self-contained, and within what ONNX Runtime knows?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto, helper
from onnx.external_data_helper import ExternalDataInfo, uses_external_data
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from distilledge.models.errors import RejectedError
from distilledge.targets.validate import check_companion, damaged, unknown_operations


def check_onnx(path: Path) -> Sequence[int | None] | None:
    """Raise ``RejectedError`` or return the first input's shape. External data are checked before they are read."""
    try:
        proto = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise damaged(path, str(error)) from error
    if not proto.graph.node or not proto.graph.output:
        raise damaged(path, "it holds no graph")
    for tensor in tensors_of(proto):
        if uses_external_data(tensor):
            check_external(path, tensor)
    check_versions(path, proto)
    check_operations(path, proto)
    try:
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, DecodeError, ValueError) as error:  # its text is not always UTF-8
        raise damaged(path, str(error)) from error
    return input_shape(proto.graph)


def input_shape(graph: onnx.GraphProto) -> list[int | None] | None:
    constants = {t.name for t in graph.initializer}
    for value in graph.input:
        if value.name not in constants:
            dims = value.type.tensor_type.shape.dim
            return [d.dim_value if d.HasField("dim_value") else None for d in dims]
    return None


def graphs_of(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and those inside its nodes (If, Loop, Scan)."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield from graphs_of(inner)


def tensors_of(proto: onnx.ModelProto) -> Iterator[TensorProto]:
    """All constants: initializers, sparse ones, and those in attributes of nodes and functions."""
    nodes = [node for function in proto.functions for node in function.node]
    for graph in graphs_of(proto.graph):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        nodes += graph.node
    for node in nodes:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)


def check_external(path: Path, tensor: TensorProto) -> None:
    """External data must be a plain file beside the model, long enough, and nothing else."""
    info = ExternalDataInfo(tensor)
    location, where = str(info.location), f"{path}: tensor {tensor.name}"
    parts = {*PurePosixPath(location).parts, *PureWindowsPath(location).parts}
    absolute = PurePosixPath(location).is_absolute() or PureWindowsPath(location).anchor != ""
    if absolute or ".." in parts or not location:
        what = f"external data outside the model's folder: {where} in {location!r}"
        raise RejectedError("E3711", what, "save the model as one file: onnx.save(model, path)")
    for folder in PurePosixPath(location).parents:
        if (path.parent / folder).is_symlink():
            raise RejectedError(
                "E3707", f"{path.parent / folder} of {path} is a symbolic link", "copy the folder itself"
            )
    data = path.parent / location
    check_companion(path, data)
    if (info.offset or 0) + (info.length or 0) > data.stat().st_size:
        raise RejectedError("E3712", f"external data too short: {where} in {data}", "copy both files together")


def check_versions(path: Path, proto: onnx.ModelProto) -> None:
    """Ask ONNX Runtime to load one Identity node under the file's versions: it does not say its limits."""
    versions = {o.domain or "ai.onnx": o.version for o in proto.opset_import}
    opset = versions.get("ai.onnx", 1)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "probe",
        [value("x", TensorProto.FLOAT, [1])],
        [value("y", TensorProto.FLOAT, [1])],
    )
    opsets = [helper.make_opsetid("", opset)]
    probe = helper.make_model(graph, opset_imports=opsets, ir_version=proto.ir_version)
    try:
        ort.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    except (ort_state.Fail, ort_state.InvalidGraph, ort_state.NotImplemented, ort_state.InvalidArgument) as error:
        what = f"opset {opset} (IR {proto.ir_version}) is not for onnxruntime {ort.__version__}: {path}"
        raise RejectedError("E3713", what, "export it with opset 18, or update onnxruntime") from error


def check_operations(path: Path, proto: onnx.ModelProto) -> None:
    known = {(schema.domain, schema.name) for schema in ort_state.get_all_operator_schema()}
    known |= {(f.domain, f.name) for f in proto.functions}
    nodes = [node for graph in graphs_of(proto.graph) for node in graph.node]
    nodes += [node for function in proto.functions for node in function.node]
    strange = [n for n in nodes if ("" if n.domain == "ai.onnx" else n.domain, n.op_type) not in known]
    if strange:
        raise unknown_operations(path, [f"{n.domain or 'ai.onnx'}.{n.op_type}" for n in strange], "ONNX Runtime")
