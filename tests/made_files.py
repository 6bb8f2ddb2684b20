"""Small model files of each format, whose operations are known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTH = 1 << 17
"""Elements of a tensor: enough for an operation to take microseconds."""


def onnx_chain(path: Path, kinds: Sequence[str]) -> Path:
    """uint8 (1, WIDTH) -> Cast -> each of ``kinds``; ``QDQ`` stands for a QuantizeLinear and a DequantizeLinear."""
    nodes, last = [helper.make_node("Cast", ["x"], ["t0"], "cast", to=TensorProto.FLOAT)], "t0"
    for number, kind in enumerate(kinds, 1):
        out = f"t{number}"
        if kind == "QDQ":
            nodes.append(helper.make_node("QuantizeLinear", [last, "scale", "zero"], [f"q{number}"], f"q{number}"))
            nodes.append(helper.make_node("DequantizeLinear", [f"q{number}", "scale", "zero"], [out], f"dq{number}"))
        else:
            nodes.append(helper.make_node(kind, [last], [out], f"{kind}{number}"))
        last = out
    constants = [numpy_helper.from_array(np.float32(0.1), "scale"), numpy_helper.from_array(np.uint8(0), "zero")]
    inputs = [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, WIDTH])]
    outputs = [helper.make_tensor_value_info(last, TensorProto.FLOAT, [1, WIDTH])]
    graph = helper.make_graph(nodes, "chain", inputs, outputs, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def openvino_chain(path: Path) -> Path:
    """uint8 (1, WIDTH) -> Convert, Exp, SoftMax."""
    import openvino as ov
    from openvino import opset13 as ops

    x = ops.parameter([1, WIDTH], np.uint8, name="x")
    y = ops.softmax(ops.exp(ops.convert(x, np.float32)), 1)
    ov.save_model(ov.Model([y], [x], "chain"), path, compress_to_fp16=False)
    return path


def tflite_chain(path: Path, *, casts: bool = True) -> Path:
    """float32 (1, WIDTH) -> ABS, a CAST to int64 and one back, which XNNPACK does not take, ABS."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    builtin, sorts = schema.BuiltinOperator, schema.TensorType
    kinds = [builtin.ABS, builtin.CAST, builtin.CAST, builtin.ABS] if casts else [builtin.ABS, builtin.ABS]
    types = [sorts.FLOAT32, sorts.FLOAT32, sorts.INT64, sorts.FLOAT32, sorts.FLOAT32] if casts else [sorts.FLOAT32] * 3
    graph, model = schema.SubGraphT(), schema.ModelT()
    graph.tensors, graph.operators, codes = [], [], sorted(set(kinds))
    for number, kind in enumerate(types):
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.buffer, tensor.type = f"t{number}", [1, WIDTH], 0, kind
        graph.tensors.append(tensor)
    for number, kind in enumerate(kinds):
        operator = schema.OperatorT()
        operator.opcodeIndex, operator.inputs, operator.outputs = codes.index(kind), [number], [number + 1]
        graph.operators.append(operator)
    graph.inputs, graph.outputs = [0], [len(kinds)]
    model.operatorCodes = []
    for kind in codes:
        code = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = kind
        code.version = 1
        model.operatorCodes.append(code)
    model.version, model.subgraphs, model.buffers = 3, [graph], [schema.BufferT()]
    ends = schema.SignatureDefT()
    ends.signatureKey, ends.subgraphIndex = "serving_default", 0
    ends.inputs, ends.outputs = [_named("x", 0)], [_named("y", len(kinds))]
    model.signatureDefs = [ends]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


def _named(name: str, index: int) -> object:
    from ai_edge_litert import schema_py_generated as schema

    made = schema.TensorMapT()
    made.name, made.tensorIndex = name, index
    return made
