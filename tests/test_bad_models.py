"""Model files that must be refused before a runtime sees them: B29, B30, B33 and B36 of the bad inputs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import flatbuffers
import numpy as np
import onnx
import pytest
from ai_edge_litert import schema_py_generated as schema
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from distilledge.models.errors import DistilledgeError, IntegrityError, RejectedError
from distilledge.targets import openvino as openvino_target
from distilledge.targets.openvino import ov
from distilledge.targets.validate import CHECKS, check_model_file

SHAPE = [1, 8, 8, 3]


def onnx_model(*, shape: list[int | str] | None = None, opset: int = 18, ir: int = 10) -> onnx.ModelProto:
    """uint8 picture -> Cast -> MatMul with a weight -> logits."""
    weight = numpy_helper.from_array(np.arange(3 * 400, dtype=np.float32).reshape(3, 400), "weight")
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "weight"], ["logits"]),
    ]
    source = helper.make_tensor_value_info("image", TensorProto.UINT8, shape or SHAPE)
    sink = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["a", "b", "c", "d"])
    graph = helper.make_graph(nodes, "g", [source], [sink], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)


def write_onnx(folder: Path) -> Path:
    onnx.save(onnx_model(), folder / "model.onnx")
    return folder / "model.onnx"


def write_openvino(folder: Path, value: float = 1.0, width: int = 400) -> Path:
    image = ov.opset13.parameter(SHAPE, ov.Type.u8, name="image")
    weight = ov.opset13.constant(np.full((3, width), value, np.float32))
    product = ov.opset13.matmul(ov.opset13.convert(image, "f32"), weight, False, False)
    ov.save_model(ov.Model([product], [image], "m"), folder / "model.xml", compress_to_fp16=False)
    return folder / "model.xml"


def write_tflite(folder: Path, *, custom: str | None = None, signature: list[int] | None = None) -> Path:
    """One ADD of the input and a constant, or one custom operation."""
    tensor = schema.TensorT()
    tensor.shape, tensor.type, tensor.name, tensor.buffer = SHAPE, schema.TensorType.FLOAT32, b"image", 0
    tensor.shapeSignature = signature
    constant, result = schema.TensorT(), schema.TensorT()
    constant.shape, constant.type, constant.name, constant.buffer = SHAPE, schema.TensorType.FLOAT32, b"constant", 1
    result.shape, result.type, result.name, result.buffer = SHAPE, schema.TensorType.FLOAT32, b"logits", 0
    code, operation, graph, model = schema.OperatorCodeT(), schema.OperatorT(), schema.SubGraphT(), schema.ModelT()
    code.builtinCode = schema.BuiltinOperator.CUSTOM if custom else schema.BuiltinOperator.ADD
    code.deprecatedBuiltinCode, code.customCode, code.version = code.builtinCode, custom, 1
    operation.opcodeIndex, operation.inputs, operation.outputs = 0, [0, 1], [2]
    if not custom:
        operation.builtinOptionsType, operation.builtinOptions = schema.BuiltinOptions.AddOptions, schema.AddOptionsT()
    graph.tensors, graph.operators, graph.inputs, graph.outputs = [tensor, constant, result], [operation], [0], [2]
    full = schema.BufferT()
    full.data = np.zeros(192, np.float32).view(np.uint8)
    model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [code], [graph], [schema.BufferT(), full]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    (folder / "model.tflite").write_bytes(bytes(builder.Output()))
    return folder / "model.tflite"


def write_safetensors(folder: Path) -> Path:
    data = np.arange(400, dtype=np.float32).tobytes()
    header = json.dumps({"w": {"dtype": "F32", "shape": [400], "data_offsets": [0, 1600]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data)
    return folder / "model.safetensors"


WRITERS: dict[str, Callable[[Path], Path]] = {
    ".onnx": write_onnx,
    ".tflite": write_tflite,
    ".xml": write_openvino,
    ".safetensors": write_safetensors,
}


def refused(path: Path, code: str, *words: str, **options: object) -> DistilledgeError:
    with pytest.raises(RejectedError) as caught:
        check_model_file(path, **options)  # type: ignore[arg-type]
    assert caught.value.code == code, caught.value
    assert caught.value.exit_code == 3
    assert path.name in caught.value.what
    assert caught.value.hint
    for word in words:
        assert word in str(caught.value)
    return caught.value


def test_every_format_has_a_writer() -> None:
    assert set(WRITERS) == set(CHECKS)


@pytest.mark.parametrize("suffix", WRITERS)
def test_good_files_pass(suffix: str, tmp_path: Path) -> None:
    path = WRITERS[suffix](tmp_path)
    check_model_file(path)
    check_model_file(path, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    if suffix != ".safetensors":
        check_model_file(path, shape=SHAPE)


# B29


@pytest.mark.parametrize("suffix", WRITERS)
def test_empty_file(suffix: str, tmp_path: Path) -> None:
    path = WRITERS[suffix](tmp_path)
    path.write_bytes(b"")
    refused(path, "E3703", "not a valid", "empty")


@pytest.mark.parametrize("page", [b"<!DOCTYPE html>\n<html><body>Not Found", b"\n <HTML><head>"])
@pytest.mark.parametrize("suffix", WRITERS)
def test_web_page(suffix: str, page: bytes, tmp_path: Path) -> None:
    path = WRITERS[suffix](tmp_path)
    path.write_bytes(page)
    refused(path, "E3702", "not a valid", "web page")


@pytest.mark.parametrize("suffix", WRITERS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.floats(0.001, 0.999))
def test_truncated_anywhere(suffix: str, cut: float, tmp_path: Path) -> None:
    path = WRITERS[suffix](tmp_path)
    content = path.read_bytes().rstrip()
    path.write_bytes(content[: max(1, int(cut * len(content)))])
    refused(path, "E3703" if suffix != ".xml" else the_code(path), "not")


def the_code(path: Path) -> str:
    """A truncated .xml is unreadable; cut after the last weight it may also claim fewer weights than there are."""
    with pytest.raises(RejectedError) as caught:
        check_model_file(path)
    assert caught.value.code in {"E3703", "E3710"}
    return caught.value.code


@pytest.mark.parametrize("suffix", WRITERS)
def test_another_hash(suffix: str, tmp_path: Path) -> None:
    path = WRITERS[suffix](tmp_path)
    got = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(IntegrityError, match=f"expected sha256 {'0' * 64}, got {got}") as caught:
        check_model_file(path, sha256="0" * 64)
    assert caught.value.exit_code == 7


def test_no_file_and_no_model(tmp_path: Path) -> None:
    refused(tmp_path / "absent.onnx", "E3701")
    (tmp_path / "weights.pt").write_bytes(b"x")
    refused(tmp_path / "weights.pt", "E3700", ".onnx")


# B30


def test_xml_without_bin(tmp_path: Path) -> None:
    path = write_openvino(tmp_path)
    path.with_suffix(".bin").unlink()
    refused(path, "E3708", "model.bin", "missing")


def test_xml_with_a_bin_of_another_size(tmp_path: Path) -> None:
    path = write_openvino(tmp_path)
    weights = path.with_suffix(".bin")
    weights.write_bytes(weights.read_bytes() + b"more")
    refused(path, "E3710", "4804 bytes, expected 4800")


def test_xml_with_the_bin_of_another_model(tmp_path: Path) -> None:
    path = write_openvino(tmp_path)
    openvino_target.embed_metadata(path, {"a": "b"})
    check_model_file(path)
    (tmp_path / "other").mkdir()
    other = write_openvino(tmp_path / "other", value=2.0)
    path.with_suffix(".bin").write_bytes(other.with_suffix(".bin").read_bytes())
    refused(path, "E3710", "expected sha256")


def external(folder: Path, location: str, length: int = 4800) -> Path:
    proto = onnx_model()
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    (folder / "model.onnx").write_bytes(proto.SerializeToString())
    return folder / "model.onnx"


def test_external_data_beside_the_model_passes(tmp_path: Path) -> None:
    (tmp_path / "data.bin").write_bytes(bytes(4800))
    check_model_file(external(tmp_path, "data.bin"))


def test_external_data_missing(tmp_path: Path) -> None:
    refused(external(tmp_path, "data.bin"), "E3708", "data.bin", "missing")


@pytest.mark.parametrize(
    "location", ["../secret", "a/../../secret", "/etc/passwd", "C:\\secret", "..\\secret", "\\\\host\\x"]
)
def test_external_data_elsewhere(location: str, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "a").mkdir(parents=True)
    (tmp_path / "secret").write_bytes(bytes(4800))
    refused(external(folder, location), "E3711", "outside", repr(location))


def test_external_data_as_links(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(4800))
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "data.bin").symlink_to(tmp_path / "secret")
    refused(external(folder, "data.bin"), "E3707", "symbolic link")
    (folder / "data.bin").unlink()
    os.link(tmp_path / "secret", folder / "data.bin")
    refused(external(folder, "data.bin"), "E3709", "hard link")
    (folder / "sub").symlink_to(tmp_path)
    refused(external(folder, "sub/secret"), "E3707", "symbolic link")


def test_external_data_too_short(tmp_path: Path) -> None:
    (tmp_path / "data.bin").write_bytes(bytes(100))
    refused(external(tmp_path, "data.bin"), "E3712", "too short")


def test_external_data_inside_a_node(tmp_path: Path) -> None:
    """An attribute's tensor is read like any other."""
    proto = onnx_model()
    hidden = TensorProto(name="hidden", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    hidden.external_data.add(key="location", value="../../etc/passwd")
    proto.graph.node.append(helper.make_node("Constant", [], ["c"], value=hidden))
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    refused(tmp_path / "model.onnx", "E3711", "hidden")


@pytest.mark.parametrize("link", ["symbolic", "hard"])
def test_bin_as_link(link: str, tmp_path: Path) -> None:
    path = write_openvino(tmp_path)
    weights = path.with_suffix(".bin")
    weights.rename(tmp_path / "elsewhere")
    if link == "symbolic":
        weights.symlink_to(tmp_path / "elsewhere")
    else:
        os.link(tmp_path / "elsewhere", weights)
    refused(path, "E3707" if link == "symbolic" else "E3709", f"{link} link")


# B33


@pytest.mark.parametrize(("opset", "ir"), [(99, 10), (18, 99)])
def test_newer_than_the_runtime(opset: int, ir: int, tmp_path: Path) -> None:
    proto = onnx_model(ir=ir)
    proto.opset_import[0].version = opset
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    refused(tmp_path / "model.onnx", "E3713", f"opset {opset}", "onnxruntime")


def test_custom_operations_of_onnx_are_listed(tmp_path: Path) -> None:
    proto = onnx_model()
    proto.graph.node.append(helper.make_node("Fancy", ["x"], ["y"], domain="org.strange"))
    proto.graph.node.append(helper.make_node("NoSuchThing", ["x"], ["z"]))
    proto.opset_import.append(helper.make_opsetid("org.strange", 1))
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    refused(tmp_path / "model.onnx", "E3704", "ai.onnx.NoSuchThing, org.strange.Fancy", "ONNX Runtime")


def test_flex_operations_of_tflite_are_listed(tmp_path: Path) -> None:
    refused(write_tflite(tmp_path, custom="FlexErf"), "E3704", "FlexErf", "LiteRT")


def test_strange_operations_of_openvino(tmp_path: Path) -> None:
    path = write_openvino(tmp_path)
    path.write_text(re.sub(r'type="MatMul" version="opset1"', 'type="Fancy" version="strange"', path.read_text()))
    assert "Fancy" in path.read_text()
    refused(path, "E3703", "Fancy")


# B36


def test_dynamic_height(tmp_path: Path) -> None:
    onnx.save(onnx_model(shape=["n", "h", 8, 3]), tmp_path / "model.onnx")
    refused(tmp_path / "model.onnx", "E3705", "?x?x8x3", "export.shape")
    refused(write_tflite(tmp_path, signature=[-1, -1, 8, 3]), "E3705", "?x?x8x3", "export.shape")
    path = write_openvino(tmp_path)
    model = openvino_target.read_model(path)
    model.reshape([1, -1, 8, 3])
    (tmp_path / "dynamic").mkdir()
    ov.save_model(model, tmp_path / "dynamic" / "model.xml")
    refused(tmp_path / "dynamic" / "model.xml", "E3705", "1x?x8x3", "export.shape")


def test_dynamic_batch_is_for_those_who_ask_no_shape(tmp_path: Path) -> None:
    path = write_tflite(tmp_path, signature=[-1, 8, 8, 3])
    check_model_file(path)
    refused(path, "E3705", "?x8x8x3", "set export.shape: [1, 8, 8, 3]", shape=SHAPE)


def test_channels_first(tmp_path: Path) -> None:
    onnx.save(onnx_model(shape=[1, 3, 8, 9]), tmp_path / "model.onnx")
    refused(tmp_path / "model.onnx", "E3706", "NCHW", "export.shape", shape=[1, 8, 9, 3])
    onnx.save(onnx_model(shape=[1, 6, 6, 3]), tmp_path / "model.onnx")
    error = refused(tmp_path / "model.onnx", "E3706", "1x6x6x3", "1x8x8x3", shape=SHAPE)
    assert "NCHW" not in str(error)


def test_damaged_by_one_byte_never_raises_anything_else(tmp_path: Path) -> None:
    """Whatever is flipped, the answer is ours: accepted or refused."""
    random = np.random.default_rng(0)
    for write in WRITERS.values():
        path = write(tmp_path)
        content = bytearray(path.read_bytes())
        for place in random.integers(0, len(content), 60):
            damaged = bytearray(content)
            damaged[place] ^= 0xFF
            path.write_bytes(damaged)
            with contextlib.suppress(RejectedError):
                check_model_file(path)


def test_zip_behind_a_tflite_is_no_damage(tmp_path: Path) -> None:
    path = write_tflite(tmp_path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("labels.txt", "a\nb")
    check_model_file(path)
