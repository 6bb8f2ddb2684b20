"""The worker as a real process: its protocol, its errors, and how it ends."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from distilledge.models.errors import (
    DeviceError,
    DistilledgeError,
    IntegrityError,
    MissingPackageError,
    RejectedError,
    ResourceError,
)
from distilledge.targets import ondevice
from distilledge.targets.devices import DEVICES, Device, remote
from distilledge.targets.devices.base import refusal
from distilledge.targets.devices.local import LocalDevice
from distilledge.targets.devices.process import WorkerProcess
from distilledge.targets.ondevice.preprocess import InputSpec, preprocess
from distilledge.targets.ondevice.session import open_session
from distilledge.targets.ondevice.text import TextSpec, write_rows

SIDE = 16
SPEC = InputSpec(SIDE, SIDE).to_dict()


def tiny_onnx(path: Path, *, loops: int = 0) -> Path:
    """uint8 (1, 16, 16, 3) -> logits (1, 3): the mean of each colour. ``loops``: matrix products that cost time."""
    nodes = [helper.make_node("Cast", ["image"], ["f"], to=TensorProto.FLOAT)]
    last = "f"
    if loops:
        nodes.append(helper.make_node("MatMul", ["big", "big"], ["m0"]))
        nodes += [helper.make_node("MatMul", [f"m{i}", "big"], [f"m{i + 1}"]) for i in range(loops - 1)]
        nodes += [
            helper.make_node("ReduceMean", [f"m{loops - 1}"], ["scalar"], keepdims=0),
            helper.make_node("Mul", ["scalar", "zero"], ["nothing"]),
            helper.make_node("Add", ["f", "nothing"], ["g"]),
        ]
        last = "g"
    nodes.append(helper.make_node("ReduceMean", [last, "axes"], ["logits"], keepdims=0))
    constants = [numpy_helper.from_array(np.array([1, 2]), "axes")]
    inputs = [helper.make_tensor_value_info("image", TensorProto.UINT8, [1, SIDE, SIDE, 3])]
    if loops:
        constants.append(numpy_helper.from_array(np.zeros((1,), np.float32), "zero"))
        random = helper.make_node("RandomUniform", [], ["big"], shape=[1500, 1500], seed=1.0)
        nodes.insert(0, random)
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 3])]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def load_request(path: Path, runtime: str = "onnx", **fields: Any) -> dict[str, Any]:
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    request = {"op": "load", "files": [str(path)], "sha256": [sha256], "runtime": runtime, "threads": 1}
    return {**request, "precision": "fp32", **fields}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_onnx(tmp_path / "model.onnx")


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(path)
    return [str(p) for p in paths]


@pytest.fixture
def worker() -> Iterator[WorkerProcess]:
    with LocalDevice().start() as started:
        yield started


def gone(pid: int) -> bool:
    """Within ten seconds."""
    for _ in range(200):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def raw_worker(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """The worker of a folder, without ``LocalDevice``, and from another working directory."""
    command = [sys.executable, str(folder / "worker.py"), *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/")


def test_load_time_and_score(worker: WorkerProcess, model: Path, pictures: list[str], tmp_path: Path) -> None:
    loaded = worker.request(load_request(model), 60)
    assert loaded["input_shape"] == [1, SIDE, SIDE, 3]
    assert loaded["execution_precision"] == "f32"
    assert loaded["runtime_version"].startswith("onnxruntime ")
    assert min(loaded["load_ns"], loaded["first_inference_ns"]) > 0

    np.save(tmp_path / "in.npy", np.zeros((3, SIDE, SIDE, 3), np.uint8))
    assert worker.request({"op": "inputs", "path": str(tmp_path / "in.npy")}, 10)["rows"] == 3
    block = worker.request({"op": "block", "n": 50, "lead": 2}, 10)
    assert len(block["latency_ns"]) == 50
    assert 0 < sum(block["latency_ns"]) <= block["wall_ns"]
    assert block["cpu_ns"] > 0
    assert block["peak_rss_bytes"] > 10e6

    out = str(tmp_path / "logits.npy")
    assert worker.request({"op": "score", "files": pictures, "spec": SPEC, "out": out}, 60)["shape"] == [5, 3]
    spec = InputSpec.from_dict(SPEC)
    expected = np.stack([preprocess(p, spec).mean((0, 1)) for p in pictures])
    np.testing.assert_allclose(np.load(out), expected, rtol=1e-4)
    assert sorted(p.name for p in tmp_path.glob("logits*")) == ["logits.npy"]

    end_to_end = worker.request({"op": "end_to_end", "files": pictures, "spec": SPEC}, 60)
    assert end_to_end["classes"] == expected.argmax(1).tolist()
    assert len(end_to_end["latency_ns"]) == 5


@pytest.mark.parametrize(
    "name", ["coral/mobilenet_v1_0.25_128_quant.tflite", "coral/tf2_mobilenet_v2_1.0_224_ptq.tflite"]
)
def test_foreign_tflite(worker: WorkerProcess, shared: Path, tmp_path: Path, name: str) -> None:
    """A cat is a cat (ImageNet 282 to 286, one later for the background class), on the device as in this process."""
    models = shared / "data" / "edge-models"
    loaded = worker.request(load_request(models / name, "tflite"), 60)
    side = loaded["input_shape"][1]
    picture, out = str(models / "photos" / "cat.bmp"), str(tmp_path / "logits.npy")
    spec = InputSpec(side, side)
    worker.request({"op": "score", "files": [picture], "spec": spec.to_dict(), "out": out}, 60)
    logits = np.load(out)
    assert logits.shape[1] in (1000, 1001)
    assert logits[0].argmax() in range(281, 288)
    here = open_session(str(models / name), "tflite", 1).run(preprocess(picture, spec)[None])
    np.testing.assert_array_equal(logits, here)


def test_facts(worker: WorkerProcess) -> None:
    facts = worker.request({"op": "facts"}, 60)
    assert facts["card"]["cpu_count"] >= 1
    assert facts["card"]["emulated"] in (True, False)
    assert "governor" in facts["card"]  # None where it cannot be read
    assert facts["card"]["packages"]["numpy"] == np.__version__
    assert facts["counters"]["all_ticks"] > 0


def test_changed_model_is_not_loaded(worker: WorkerProcess, model: Path) -> None:
    request = load_request(model)
    data = bytearray(model.read_bytes())
    data[-20] ^= 1
    model.write_bytes(data)
    with pytest.raises(IntegrityError, match="expected sha256") as caught:
        worker.request(request, 60)
    assert caught.value.exit_code == 7
    with pytest.raises(RejectedError, match="no model is loaded"):
        worker.request({"op": "score", "files": [], "spec": SPEC, "out": "x"}, 10)


@pytest.mark.parametrize("content", [b"", b"<html></html>", b"\x08\x0a truncated"])
def test_invalid_model_is_rejected_and_the_worker_lives(worker: WorkerProcess, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(RejectedError, match="the runtime failed in load"):
        worker.request(load_request(path), 60)
    assert worker.request({"op": "facts"}, 60)["ok"]


def test_bad_picture_is_named(worker: WorkerProcess, model: Path, pictures: list[str], tmp_path: Path) -> None:
    worker.request(load_request(model), 60)
    Path(pictures[2]).write_bytes(b"<html>")
    out = tmp_path / "logits.npy"
    with pytest.raises(RejectedError, match=r"2\.png: not an image"):
        worker.request({"op": "score", "files": pictures, "spec": SPEC, "out": str(out)}, 60)
    assert not out.exists()


@pytest.mark.parametrize("request_", [{"op": "dance"}, {"op": "block", "n": "many"}, {"op": "load"}])
def test_nonsense_is_answered(worker: WorkerProcess, request_: dict[str, Any]) -> None:
    with pytest.raises(RejectedError):
        worker.request(request_, 10)
    assert worker.request({"op": "facts"}, 60)["ok"]


@pytest.mark.parametrize(
    ("number", "error", "exit_code"),
    [
        (signal.SIGSEGV, RejectedError, 3),
        (signal.SIGILL, RejectedError, 3),
        (signal.SIGABRT, RejectedError, 3),
        (signal.SIGKILL, ResourceError, 9),
    ],
)
@pytest.mark.parametrize("busy", [False, True])
def test_killed_worker_is_explained(
    tmp_path: Path, number: signal.Signals, error: type[DistilledgeError], exit_code: int, busy: bool
) -> None:
    with LocalDevice().start() as worker:
        worker.request(load_request(tiny_onnx(tmp_path / "slow.onnx", loops=1)), 60)
        np.save(tmp_path / "in.npy", np.zeros((1, SIDE, SIDE, 3), np.uint8))
        worker.request({"op": "inputs", "path": str(tmp_path / "in.npy")}, 10)
        kill = threading.Timer(0.5 if busy else 0.0, os.kill, (worker.pid, number))
        kill.start()
        if not busy:
            kill.join()
        with pytest.raises(error, match=rf"killed by {number.name} while block") as caught:
            worker.request({"op": "block", "n": 100_000}, 60)
        kill.join()
    assert caught.value.exit_code == exit_code


def test_silent_worker_is_ended_in_time(tmp_path: Path) -> None:
    with LocalDevice().start() as worker:
        os.kill(worker.pid, signal.SIGSTOP)
        with pytest.raises(ResourceError, match="no answer for 1 s while facts"):
            worker.request({"op": "facts"}, 1)
        assert gone(worker.pid)
        with pytest.raises(DeviceError, match="closed"):
            worker.request({"op": "facts"}, 1)


def test_memory_limit(tmp_path: Path) -> None:
    """B35: a worker that wants more than it may is an error of the user's, and this process lives on."""
    pictures = 4 << 20
    fields = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({pictures}, {SIDE}, {SIDE}, 3), }}"
    path = tmp_path / "huge.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + fields.ljust(117).encode() + b"\n")
    os.truncate(path, 128 + pictures * SIDE * SIDE * 3)  # sparse: 3 GiB
    with LocalDevice(memory_bytes=2 << 30).start() as worker:
        worker.request(load_request(tiny_onnx(tmp_path / "model.onnx")), 60)
        with pytest.raises(ResourceError, match="out of memory in inputs"):
            worker.request({"op": "inputs", "path": str(path)}, 60)
        assert worker.request({"op": "facts"}, 60)["ok"]


def test_end_of_input_ends_the_worker() -> None:
    process = raw_worker(Path(ondevice.__path__[0]))
    output, _ = process.communicate("", timeout=30)
    lines = [json.loads(line) for line in output.splitlines()]
    assert lines == [{"ready": 1, "pid": process.pid}, {"end": "end of input"}]
    assert process.returncode == 0


def test_end_of_input_ends_a_busy_worker(tmp_path: Path) -> None:
    slow = tiny_onnx(tmp_path / "slow.onnx", loops=2000)
    process = raw_worker(Path(ondevice.__path__[0]))
    assert process.stdin is not None
    process.stdin.write(json.dumps({"id": 1, **load_request(slow)}) + "\n")  # its first inference takes minutes
    process.stdin.flush()
    time.sleep(1.0)
    start = time.monotonic()
    output, _ = process.communicate(timeout=60)
    assert time.monotonic() - start < 20
    assert json.loads(output.splitlines()[-1]) == {"end": "end of input"}


def test_silence_ends_an_idle_worker_and_beats_keep_it() -> None:
    process = raw_worker(Path(ondevice.__path__[0]), "--silence", "1")
    assert process.stdin is not None
    assert process.stdout is not None
    assert "ready" in process.stdout.readline()
    for _ in range(6):
        time.sleep(0.3)
        process.stdin.write('{"op": "beat"}\n')
        process.stdin.flush()
    assert process.poll() is None
    assert json.loads(process.stdout.readline()) == {"end": "silence"}
    assert process.wait(10) == 0
    process.stdin.close()
    process.stdout.close()


def test_killed_parent_leaves_no_orphan(tmp_path: Path) -> None:
    script = (
        "from distilledge.targets.devices.local import LocalDevice\n"
        "import time\n"
        "print(LocalDevice().start().pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        os.kill(pid, 0)
        parent.kill()
        assert gone(pid)


def test_worker_runs_from_a_pushed_folder(tmp_path: Path) -> None:
    """The files that are sent and nothing of ours around them; files named like standard modules do no harm."""
    source, folder = Path(ondevice.__path__[0]), tmp_path / "pushed"
    folder.mkdir()
    for name in remote.SENT:
        shutil.copy(source / name, folder)
    (folder / "inspect.py").write_text("raise RuntimeError('not this one')\n")
    model = tiny_onnx(tmp_path / "model.onnx")
    process = raw_worker(folder)
    request = {"id": 7, **load_request(model)}
    output, _ = process.communicate(json.dumps(request) + '\n{"op": "close"}\n', timeout=60)
    lines = [json.loads(line) for line in output.splitlines()]
    assert [line.get("id") for line in lines] == [None, 7, None]
    assert lines[1]["ok"], lines[1]
    assert lines[-1] == {"end": "close"}


def test_missing_runtime_is_exit_4() -> None:
    error = refusal({"ok": False, "kind": "missing", "text": "tflite_runtime", "op": "load"})
    assert isinstance(error, MissingPackageError)
    assert error.hint == "pip install ai-edge-litert"


def test_every_device_has_the_names_of_device() -> None:
    assert DEVICES
    names = [name for name in vars(Device) if not name.startswith("_")]
    assert {"push", "pull", "scratch", "start", "facts", "clean", "close"} <= set(names)
    for make in DEVICES.values():
        assert all(callable(getattr(make, name)) for name in names)
    device = DEVICES["local"]()
    assert device.facts()["cpu_count"] >= 1
    assert device.clean() == 0
    device.close()


# ---- texts


def text_onnx(path: Path, *, tokens: bool = False) -> Path:
    """int32 (1, L) -> logits (1, 3), or of each token (1, L, 3): the ids (their sum), twice and three times."""
    nodes = [
        helper.make_node("Cast", ["ids"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["f", "last"], ["each"]),
        helper.make_node("Mul", ["each", "factors"], ["tokens"]),
        helper.make_node("ReduceSum", ["tokens", "one"], ["texts"], keepdims=0),
    ]
    constants = [
        numpy_helper.from_array(np.array([2]), "last"),
        numpy_helper.from_array(np.array([1]), "one"),
        numpy_helper.from_array(np.array([1, 2, 3], np.float32), "factors"),
    ]
    output = ("tokens", [1, "L", 3]) if tokens else ("texts", [1, 3])
    graph = helper.make_graph(
        nodes,
        "text",
        [helper.make_tensor_value_info("ids", TensorProto.INT32, [1, "L"])],
        [helper.make_tensor_value_info(output[0], TensorProto.FLOAT, output[1])],
        constants,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    made = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "lost": 2, "card": 3, "my": 4}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def load_text(model: Path, tokenizer: Path) -> dict[str, Any]:
    files = [model, tokenizer]
    request = load_request(model, files=[str(f) for f in files], tokenizer=str(tokenizer))
    return {**request, "sha256": [hashlib.sha256(f.read_bytes()).hexdigest() for f in files]}


def text_spec(tokenizer: Path, **fields: Any) -> dict[str, Any]:
    sha256 = hashlib.sha256(tokenizer.read_bytes()).hexdigest()
    return TextSpec(4, 0, "text-classification", tokenizer_sha256=sha256, **fields).to_dict()


TEXTS = ["my card lost", "card", "", "lost lost lost lost lost lost"]
IDS = [[4, 3, 2], [3], [0], [2, 2, 2, 2]]


def test_texts_are_timed_and_scored(worker: WorkerProcess, tokenizer: Path, tmp_path: Path) -> None:
    rows, out = tmp_path / "rows.jsonl", tmp_path / "logits.npy"
    write_rows([{"text": text} for text in TEXTS], rows)
    texts = {"texts": str(rows), "spec": text_spec(tokenizer)}
    loaded = worker.request(load_text(text_onnx(tmp_path / "model.onnx"), tokenizer), 60)
    assert loaded["input_shape"] == [1, -1]
    assert worker.request({"op": "inputs", **texts}, 10)["rows"] == 4
    assert len(worker.request({"op": "block", "n": 20, "lead": 1}, 10)["latency_ns"]) == 20
    assert worker.request({"op": "score", **texts, "out": str(out)}, 60)["shape"] == [4, 3]
    np.testing.assert_array_equal(np.load(out)[:, 0], [sum(ids) for ids in IDS])
    end_to_end = worker.request({"op": "end_to_end", **texts, "start": 1, "count": 2}, 60)
    assert (len(end_to_end["latency_ns"]), end_to_end["classes"][0]) == (2, 2)
    np.save(tmp_path / "ids.npy", np.full((5, 3), 2, np.int32))
    assert worker.request({"op": "inputs", "path": str(tmp_path / "ids.npy")}, 10)["rows"] == 5


@pytest.mark.parametrize("buckets", [(), (2, 4)])
def test_logits_of_tokens_end_with_zeros(
    worker: WorkerProcess, tokenizer: Path, tmp_path: Path, buckets: tuple[int, ...]
) -> None:
    rows, out = tmp_path / "rows.jsonl", tmp_path / "logits.npy"
    write_rows([{"text": text} for text in TEXTS], rows)
    worker.request(load_text(text_onnx(tmp_path / "model.onnx", tokens=True), tokenizer), 60)
    fields = {"texts": str(rows), "spec": text_spec(tokenizer, buckets=buckets)}
    assert worker.request({"op": "score", **fields, "out": str(out)}, 60)["shape"] == [4, 4, 3]
    padded = [ids + [0] * (4 - len(ids)) for ids in IDS]
    np.testing.assert_array_equal(np.load(out)[..., 0], padded)


def test_a_bad_text_is_named(worker: WorkerProcess, tokenizer: Path, tmp_path: Path) -> None:
    worker.request(load_text(text_onnx(tmp_path / "model.onnx"), tokenizer), 60)
    rows, out = tmp_path / "rows.jsonl", tmp_path / "logits.npy"
    score = {"op": "score", "texts": str(rows), "spec": text_spec(tokenizer), "out": str(out)}
    rows.write_text('{"text": "card"}\n{"text": 3}\n')
    with pytest.raises(RejectedError, match=r"text refused on the device: text 1: the text is int") as caught:
        worker.request(score, 60)
    assert caught.value.code == "E3023"
    rows.write_text('{"text": "card"}\n{')
    with pytest.raises(RejectedError, match="device: line 2 is not JSON"):
        worker.request(score, 60)
    assert not out.exists()


def test_another_tokenizer_is_not_used(worker: WorkerProcess, tokenizer: Path, tmp_path: Path) -> None:
    request = load_text(text_onnx(tmp_path / "model.onnx"), tokenizer)
    rows = tmp_path / "rows.jsonl"
    write_rows([{"text": "card"}], rows)
    worker.request(request, 60)
    other = {**text_spec(tokenizer), "tokenizer_sha256": "0" * 64}
    with pytest.raises(IntegrityError, match="expected sha256"):
        worker.request({"op": "inputs", "texts": str(rows), "spec": other}, 60)
    tokenizer.write_text(tokenizer.read_text() + " ")
    with pytest.raises(IntegrityError, match="expected sha256"):
        worker.request(request, 60)


SIGNALLED = """
import os, signal, sys
from distilledge.targets.ondevice.session import open_session
from distilledge.targets.openvino import compiled, read_model

handled = []
signal.signal(signal.SIGTERM, lambda number, frame: handled.append(number))
loaded = [open_session(sys.argv[1], "openvino", 1), compiled(read_model(sys.argv[1]))]
while loaded:
    del loaded[0]
os.kill(os.getpid(), signal.SIGTERM)
print("handled", [int(number) for number in handled])
"""


def test_a_signal_is_handled_after_openvino_models_have_gone(tmp_path: Path) -> None:
    """Models let go in the order in which they came: see ``runtimes.openvino_core``."""
    command = [sys.executable, "-c", SIGNALLED, str(tiny_onnx(tmp_path / "m.onnx"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, [f"handled [{int(signal.SIGTERM)}]"]), done.stderr
