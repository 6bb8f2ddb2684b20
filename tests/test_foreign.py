"""Model files that others made: any types, several inputs and outputs, open shapes, files beside, and damaged ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino as ov
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from test_worker import tiny_onnx

from distilledge.models.errors import DistilledgeError, RejectedError, UsageError
from distilledge.pipeline.fleet_run import States, failure, on_each
from distilledge.pipeline.foreign import Settings, candidate, measure_files, open_files, result, shapes_of
from distilledge.pipeline.foreign_pictures import labelled, range_of, reader, score
from distilledge.pipeline.result_file import Item, read_result, result_schema, result_schema_path, write_result
from distilledge.targets.devices.local import LocalDevice
from distilledge.targets.look import look, looked
from distilledge.targets.made_inputs import digest, given, made
from distilledge.targets.ondevice.ports import BadShape, Port, fixed, read_feeds, write_feeds
from distilledge.targets.ondevice.session import open_session
from distilledge.targets.protocol import Scenario
from distilledge.targets.trial import _tflite_model

FEW = Settings(samples=20, seconds=0.0, launches=1, warmup=2)
VALUE = helper.make_tensor_value_info


def silent(_words: str) -> None:
    return


def strange_onnx(path: Path, *, batch: Any = 1, length: Any = 5, outside: str = "") -> Path:
    """ids int64 (1, L), mask int64 (1, L), scale float32 (1,) -> sum of scaled masked rows of a table, and the ids."""
    table = numpy_helper.from_array(np.arange(400, dtype=np.float32).reshape(100, 4), "table")
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("Cast", ["mask"], ["kept"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["kept", "last"], ["column"]),
        helper.make_node("Mul", ["rows", "column"], ["masked"]),
        helper.make_node("Mul", ["masked", "scale"], ["scaled"]),
        helper.make_node("ReduceSum", ["scaled", "middle"], ["sum"], keepdims=0),
        helper.make_node("Identity", ["ids"], ["same"]),
    ]
    constants = [
        table,
        numpy_helper.from_array(np.array([2]), "last"),
        numpy_helper.from_array(np.array([1]), "middle"),
    ]
    ids = [VALUE(name, TensorProto.INT64, [batch, length]) for name in ("ids", "mask")]
    outputs = [VALUE("sum", TensorProto.FLOAT, [batch, 4]), VALUE("same", TensorProto.INT64, [batch, length])]
    graph = helper.make_graph(nodes, "strange", [*ids, VALUE("scale", TensorProto.FLOAT, [1])], outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    if outside:
        onnx.save(model, path, save_as_external_data=True, location=outside, size_threshold=100)
    else:
        onnx.save(model, path)
    return path


def feed() -> list[np.ndarray[Any, Any]]:
    return [np.array([[3, 1, 4, 1, 5]]), np.array([[1, 1, 0, 1, 1]]), np.array([2.0], np.float32)]


EXPECTED = 2 * np.arange(400).reshape(100, 4)[[3, 1, 1, 5]].sum(0)


@pytest.fixture
def strange(tmp_path: Path) -> Path:
    return strange_onnx(tmp_path / "strange.onnx")


def test_several_inputs_and_outputs_of_any_type(strange: Path, tmp_path: Path) -> None:
    ov.save_model(ov.convert_model(strange), tmp_path / "strange.xml", compress_to_fp16=False)
    for path, runtime in ((strange, "onnx"), (tmp_path / "strange.xml", "openvino")):
        feeds = open_session(str(path), runtime, 1, shapes={}).feeds
        assert [(p.name, p.dtype) for p in feeds.inputs] == [("ids", "int64"), ("mask", "int64"), ("scale", "float32")]
        total, same = feeds.answer(feed())
        np.testing.assert_allclose(total, EXPECTED[None])
        assert same.tolist() == feed()[0].tolist(), runtime


def test_float_input_of_a_tflite_file(tmp_path: Path) -> None:
    (tmp_path / "one.tflite").write_bytes(_tflite_model())
    feeds = open_session(str(tmp_path / "one.tflite"), "tflite", 1, shapes={}).feeds
    assert feeds.inputs == (Port("x", "float32", (1, 4)),)
    np.testing.assert_array_equal(feeds.answer([np.full((1, 4), 2.5, np.float32)])[0], np.full((1, 4), 3.5))


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_open_shapes_are_fixed_or_explained(runtime: str, tmp_path: Path) -> None:
    path = strange_onnx(tmp_path / "open.onnx", batch="N", length="L")
    with pytest.raises(BadShape, match=r"ids is \?x\?"):
        open_session(str(path), runtime, 1, shapes={})
    feeds = open_session(str(path), runtime, 1, shapes={"ids": (1, 5), "mask": (1, 5)}).feeds
    np.testing.assert_allclose(feeds.answer(feed())[0], EXPECTED[None])


def test_shapes() -> None:
    ports = [Port("a", "float32", (-1, 3)), Port("b", "int8", (1, -1))]
    assert [p.shape for p in fixed(ports, {"b": (1, 7)})] == [(1, 3), (1, 7)]
    assert fixed(ports[:1], {"": (4, 3)})[0].shape == (4, 3)
    for wrong in ({"c": (1,)}, {"b": (2, 7)}, {"b": (1, 0)}, {"b": (1, 7), "a": (1, 4)}, {}):
        with pytest.raises(BadShape):
            fixed(ports, wrong)
    assert shapes_of(["a=1x2", "3X4"]) == {"a": (1, 2), "": (3, 4)}
    for text in ("a=", "a=1xb", "a=0x2"):
        with pytest.raises(UsageError, match="E2062"):
            shapes_of([text])


def test_made_arrays_follow_the_type_and_the_seed() -> None:
    kinds = ("uint8", "int8", "float32", "float16", "bool", "int64")
    ports = [Port(kind, kind, (1, 5000)) for kind in kinds] + [Port("attention_mask", "int64", (1, 9))]
    feeds = made(ports, 0)
    found = dict(zip(kinds, feeds[0], strict=False))
    assert [array.dtype.name for array in found.values()] == list(kinds)
    assert (found["uint8"].min(), found["uint8"].max()) == (0, 255)
    assert (found["int8"].min(), found["int8"].max()) == (-128, 127)
    assert 0 <= found["float32"].min() < found["float32"].max() < 1
    assert set(found["int64"].ravel()) == {0, 1}
    assert feeds[0][-1].all()
    assert digest(ports, feeds) == digest(ports, made(ports, 0)) != digest(ports, made(ports, 1))
    with pytest.raises(RejectedError, match="string"):
        made([Port("words", "string", (1,))], 0)


def test_given_arrays(tmp_path: Path) -> None:
    ports = [Port("a/b:0", "float32", (1, 3)), Port("c", "int64", (2,))]
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    path = tmp_path / "in.npz"
    np.savez(path, **{"a/b:0": rows[:1], "c": np.array([1, 2])})
    assert [array.tolist() for array in given(path, ports)[0]] == [[[0, 1, 2]], [1, 2]]
    np.save(tmp_path / "in.npy", rows)
    feeds = given(tmp_path / "in.npy", ports[:1])
    assert [f[0].shape for f in feeds] == [(1, 3)] * 4
    write_feeds(str(path), feeds)
    assert [f[0].tolist() for f in read_feeds(str(path))] == rows[:, None].tolist()
    for array, which, code in (
        (rows.astype(np.float64), ports[:1], "E2068"),
        (rows[:, :2], ports[:1], "E2069"),
        (rows, ports, "E2067"),
    ):
        np.save(tmp_path / "in.npy", array)
        with pytest.raises(UsageError, match=code):
            given(tmp_path / "in.npy", which)
    (tmp_path / "in.npy").write_bytes(b"nothing")
    with pytest.raises(UsageError, match="E2066"):
        given(tmp_path / "in.npy", ports[:1])


def test_a_file_is_timed_as_it_is_and_the_result_says_what_it_was(tmp_path: Path) -> None:
    path = strange_onnx(tmp_path / "strange.onnx", batch="N", outside="weights.bin")
    other = tmp_path / "one.tflite"
    other.write_bytes(_tflite_model())
    files = open_files([path], other)
    _, items = measure_files(files, LocalDevice(), "local", FEW, None, silent)
    one = items[0]
    assert [(i.name, i.role) for i in items] == [("strange.onnx", "candidate"), ("one.tflite", "baseline")]
    assert list(one.file.files) == ["strange.onnx", "weights.bin"]
    assert one.file.size_bytes == sum(p.stat().st_size for p in (path, tmp_path / "weights.bin"))
    assert one.file.precision == "float32"
    assert one.file.operations["Mul"] == 2
    assert [(p.name, p.dtype, p.shape) for p in one.file.inputs][:1] == [("ids", "int64", (1, 5))]
    assert one.input is not None
    ports = [Port(p.name, p.dtype, p.shape) for p in one.file.inputs]
    assert one.input.sha256 == digest(ports, made(ports, 0))
    assert one.timing is not None
    assert len(one.timing.launches[0].latency_ns) >= 20
    assert one.timing.quick
    assert one.timing.launches[0].first_inference_ns > 0


def test_scenarios_of_a_file_are_in_its_result(tmp_path: Path) -> None:
    path = tmp_path / "one.tflite"
    path.write_bytes(_tflite_model())
    asked = (Scenario(name="offline", seconds=0.05), Scenario(name="fixed-rate", seconds=0.2, fps=50))
    settings = FEW.model_copy(update={"scenarios": asked})
    card, (item,) = measure_files(open_files([path], None), LocalDevice(), "local", settings, None, silent)
    offline, camera = item.scenarios
    assert (offline.scenario, camera.scenario) == asked
    assert offline.passes
    assert camera.frames is not None
    assert len(camera.frames.start_ns) == 10
    whole = result({"local": (card, (item,))}, {}, command="c", release="")
    write_result(whole, tmp_path / "result.json")
    assert read_result(tmp_path / "result.json") == whole


def custom(path: Path) -> None:
    node = helper.make_node("Wonder", ["x"], ["y"], domain="acme")
    ports = [VALUE(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("acme", 1)]
    graph = helper.make_graph([node], "custom", ports[:1], ports[1:])
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)


def constant(path: Path) -> None:
    value = numpy_helper.from_array(np.ones(1, np.float32))
    graph = helper.make_graph([helper.make_node("Constant", [], ["y"], value=value)], "c", [], [VALUE("y", 1, [1])])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


BAD: dict[str, tuple[str, Any, str, str]] = {
    "a pointer": ("a.onnx", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "E3044", "git lfs pull"),
    "another format": ("a.onnx", _tflite_model(), "E3045", "a.tflite"),
    "an archive": ("a.tflite", b"PK\x03\x04" + bytes(60), "E3045", "zip"),
    "text": ("a.onnx", b"no model at all", "E3703", "not a valid ONNX"),
    "a page": ("a.tflite", b"<!DOCTYPE html><html></html>", "E3702", "web page"),
    "empty": ("a.tflite", b"", "E3703", "empty"),
    "cut": ("a.tflite", _tflite_model()[:200], "E3703", "not a valid TFLite"),
    "no weights": ("a.xml", b'<?xml version="1.0"?><net name="a" version="11"></net>', "E3708", "a.bin"),
    "a suffix of nobody": ("a.pb", b"1234", "E3043", ".onnx"),
    "a custom operation": ("a.onnx", custom, "E3704", "acme.Wonder"),
    "no input": ("a.onnx", constant, "E3046", "no input"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_explained(case: str, tmp_path: Path) -> None:
    name, content, code, words = BAD[case]
    if callable(content):
        content(tmp_path / name)
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(RejectedError) as caught:
        looked(tmp_path / name)
    assert caught.value.code == code
    assert words in str(caught.value)
    assert caught.value.exit_code == 3


def test_pictures_are_scored_through_the_device(tmp_path: Path) -> None:
    path = tiny_onnx(tmp_path / "colours.onnx")
    for number, name in enumerate(("blue", "green", "red")):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for shade in range(4):
            colour = np.zeros((20, 30, 3), np.uint8)
            colour[..., 2 - number] = 100 + shade
            Image.fromarray(colour).save(tmp_path / "pictures" / name / f"{shade}.png")
    Image.fromarray(colour).save(tmp_path / "pictures" / "green" / "wrong.png")
    (tmp_path / "labels.txt").write_text("red\ngreen\nblue\n")
    device, one = LocalDevice(), candidate(open_files([path], None)[0], FEW, LocalDevice())
    ports = [Port("image", "uint8", (1, 16, 16, 3))]
    pictures = labelled(tmp_path / "pictures", tmp_path / "labels.txt", (0, 1))
    found = score(one, ports, pictures, device, silent)
    assert found.value == pytest.approx(12 / 13)
    assert [c[0] for c in found.counts].index(0) == 8  # blue 0..3, green 0..3, then the wrong one
    (tmp_path / "labels.txt").write_text("red\ngreen\nblau\n")
    with pytest.raises(UsageError, match="E2077"):
        labelled(tmp_path / "pictures", tmp_path / "labels.txt", (0, 1))


def test_pictures_become_what_an_input_takes() -> None:
    picture = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3) * 11
    spec, put = reader(Port("x", "float32", (1, 3, 2, 4)), range_of("-1..1"), "m")
    assert (spec.height, spec.width) == (2, 4)
    np.testing.assert_allclose(put(picture)[0], picture.transpose(2, 0, 1) / 127.5 - 1, atol=1e-6)
    _, put = reader(Port("x", "int8", (1, 2, 4, 3)), (0, 1), "m")
    np.testing.assert_array_equal(put(picture)[0].astype(int), picture.astype(int) - 128)
    with pytest.raises(RejectedError, match="E3051"):
        reader(Port("x", "int64", (1, 9)), (0, 1), "m")
    for text in ("1", "1..0", "a..b"):
        with pytest.raises(UsageError, match="not a range"):
            range_of(text)


def test_looking_is_done_by_a_process_of_its_own(strange: Path, tmp_path: Path) -> None:
    assert look(strange) == looked(strange)
    (tmp_path / "a.onnx").write_bytes(b"no model at all")
    with pytest.raises(RejectedError, match="download or export it again"):
        look(tmp_path / "a.onnx")


def test_one_device_that_fails_stops_no_other(tmp_path: Path) -> None:
    (tmp_path / "one.tflite").write_bytes(_tflite_model())
    files, heard = open_files([tmp_path / "one.tflite"], None), []
    states = States(["good", "bad"], lambda name, words: heard.append(f"{name} {words.split(':')[0]}"))

    def broken(name: str, _say: Any) -> None:
        raise KeyError(name)

    with pytest.raises(KeyError):  # a bug of ours is not the device's failure
        on_each(["good"], broken, states)

    def work(name: str, say: Any) -> tuple[dict[str, Any], tuple[Item, ...]]:
        if name == "bad":
            raise RejectedError("E3021", "the runtime failed", "another file")
        return measure_files(files, LocalDevice(), name, FEW, None, say)

    made_, failed = on_each(["good", "bad"], work, states)
    whole = result(made_, {n: failure(e) for n, e in failed.items()}, command="c", release="r")
    write_result(whole, tmp_path / "result.json")
    assert read_result(tmp_path) == whole
    assert [item.device for item in whole.items] == ["good"]
    assert whole.failed["bad"].exit_code == 3
    assert {"bad failed", "good sending", "good measuring 100 %", "good done"} <= set(heard)
    assert valid(json.loads((tmp_path / "result.json").read_text()), result_schema()) == []


def test_the_schema_that_ships_is_current() -> None:
    assert result_schema_path().read_text(encoding="utf-8") == json.dumps(result_schema(), indent=1) + "\n"


def test_another_version_of_the_format_is_named(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    cases: dict[str, tuple[str, type[DistilledgeError]]] = {
        "{": ("E3053", RejectedError),
        '{"rows": []}': ("E3054", RejectedError),
        '{"kind": "distilledge result", "schema": 2}': ("E3055", RejectedError),
        '{"kind": "distilledge result", "schema": 1}': ("E3056", RejectedError),
    }
    for text, (code, kind) in cases.items():
        path.write_text(text)
        with pytest.raises(kind, match=code):
            read_result(path)
    with pytest.raises(UsageError, match="E2060"):
        read_result(tmp_path / "none.json")


TYPES = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}


def valid(value: Any, schema: Any, root: Any = None, at: str = "$") -> list[str]:
    """What is wrong by the keywords of JSON schema that ours uses, read independently of pydantic."""
    root = root or schema
    if "$ref" in schema:
        return valid(value, root["$defs"][schema["$ref"].rpartition("/")[2]], root, at)
    if "anyOf" in schema:
        return [] if any(not valid(value, one, root, at) for one in schema["anyOf"]) else [f"{at}: none of anyOf"]
    wrong = [f"{at}: {value!r}"] if value not in schema.get("enum", [schema.get("const", value)]) else []
    kind = schema.get("type")
    if kind == "null":
        return wrong if value is None else [f"{at}: not null"]
    if kind and (not isinstance(value, TYPES[kind]) or (kind != "boolean" and isinstance(value, bool))):
        return [f"{at}: {value!r} is no {kind}"]
    if isinstance(value, dict):
        names, more = schema.get("properties", {}), schema.get("additionalProperties", True)
        wrong += [f"{at}: no {name}" for name in schema.get("required", []) if name not in value]
        for name, inner in value.items():
            if name in names or isinstance(more, dict):
                wrong += valid(inner, names.get(name, more), root, f"{at}.{name}")
            elif not more:
                wrong.append(f"{at}: {name} is unknown")
    if isinstance(value, list):
        wrong += [w for i, inner in enumerate(value) for w in valid(inner, schema.get("items", {}), root, f"{at}[{i}]")]
    return wrong


def test_the_validator_finds_what_is_wrong() -> None:
    assert valid({"schema": 2}, result_schema())
    assert len(valid({"a": "x"}, {"type": "object", "properties": {"a": {"type": "integer"}}})) == 1
