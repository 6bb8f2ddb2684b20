"""Measuring: what is flagged, in which order blocks run, and when they stop."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper, save
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from distilledge.targets import samples
from distilledge.targets.base import Exported, Launch, Measurement, Precision
from distilledge.targets.devices.base import Device, WorkerHandle
from distilledge.targets.devices.local import LocalDevice
from distilledge.targets.fairness import drifts, fairness_flags, machine_flags, noisy, other_load, throttled
from distilledge.targets.lane import BLOCK_SECONDS
from distilledge.targets.measure import Candidate, mark_slow_int8, measure, p50, score
from distilledge.targets.ondevice.preprocess import InputSpec, preprocess
from distilledge.targets.ondevice.text import TextSpec

MS = 1_000_000
SPEC = InputSpec(16, 16)


def launch(latency_ns: Sequence[int] = (5 * MS,) * 90, **fields: Any) -> Launch:
    wall = sum(latency_ns)
    quiet = {"load_ns": 1, "first_inference_ns": 1, "peak_rss_bytes": 1, "end_to_end_ns": (), "cpu_ns": wall}
    rest = {"wall_ns": wall, "waited_ns": 0, "involuntary_switches": 0}
    return Launch(latency_ns=tuple(latency_ns), **{**quiet, **rest, **fields})


def test_a_quiet_run_has_no_flags() -> None:
    assert fairness_flags([launch(), launch()], threads=1) == ()


@pytest.mark.parametrize(
    ("cpu", "waited", "threads", "flagged"),
    [
        (0.98, 0.0, 1, False),
        (0.96, 0.0, 1, True),
        (0.96, None, 1, True),
        (0.99, None, 1, False),
        (0.99, 0.009, 1, False),
        (0.99, 0.011, 1, True),
        (1.3, 0.0, 2, False),
        (1.3, 0.02, 2, True),
    ],
)
def test_other_load(cpu: float, waited: float | None, threads: int, flagged: bool) -> None:
    wall = 450 * MS
    one = launch(cpu_ns=int(cpu * wall), waited_ns=None if waited is None else int(waited * wall), wall_ns=wall)
    assert other_load([one], threads) is flagged
    assert ("OTHER_LOAD" in fairness_flags([one], threads=threads)) is flagged


def test_other_load_is_judged_over_all_launches() -> None:
    assert not other_load([launch(), launch(), launch(waited_ns=10 * MS)], 1)
    assert other_load([launch(), launch(), launch(waited_ns=20 * MS)], 1)


def test_drift_compares_the_last_third_with_the_first() -> None:
    assert not drifts([100] * 30 + [200] * 30 + [104] * 30)
    assert drifts([100] * 60 + [106] * 30)
    assert not drifts([106] * 30 + [100] * 60)  # getting faster is no heat
    assert not drifts([100] * 6 + [200] * 3)  # too few
    assert fairness_flags([launch([100] * 45), launch([107] * 45)], threads=1) == ("DRIFT",)


def test_noise_is_p90_over_the_median() -> None:
    assert not noisy([100] * 95 + [500] * 5)
    assert noisy([100] * 85 + [125] * 15)
    assert not noisy([100] * 85 + [115] * 15)
    assert not noisy([1, 100, 1])


@given(st.lists(st.integers(1, 10**9), min_size=30, max_size=80), st.integers(2, 50))
@settings(max_examples=50, deadline=None)
def test_flags_do_not_depend_on_the_unit(latency: list[int], factor: int) -> None:
    scaled = [factor * ns for ns in latency]
    assert drifts(latency) == drifts(scaled)
    assert noisy(latency) == noisy(scaled)


def test_machine_flags() -> None:
    before = {"throttle_count": 3, "cooling_state": None, "cgroup_throttled": 0, "steal_ticks": 10, "all_ticks": 1000}
    assert machine_flags(before, before, emulated=False) == ()
    assert machine_flags({}, {}, emulated=True) == ("EMULATED",)
    assert machine_flags(before, {**before, "throttle_count": 4}, emulated=False) == ("THROTTLED",)
    assert machine_flags(before, {**before, "all_ticks": 2000, "steal_ticks": 25}, emulated=False) == ("OTHER_LOAD",)
    assert not throttled({"cooling_state": None}, {"cooling_state": 2})  # not readable before: says nothing
    assert throttled({"scaling_max_khz": 1_800_000}, {"scaling_max_khz": 1_500_000})
    assert throttled({"raspberry_throttled": "0"}, {"raspberry_throttled": "50005"})


def measurement(precision: Precision, ms: float, role: str = "student", threads: int = 1) -> Measurement:
    return Measurement(
        name=f"{role} {precision}",
        runtime="onnx",
        precision=precision,
        role=role,
        device={},
        threads=threads,
        warmup=0,
        quick=True,
        launches=(launch([int(ms * MS)] * 10),),
        runtime_version="",
        execution_precision="f32",
    )


def test_int8_slower_than_float_is_marked_against_its_own_role_and_threads() -> None:
    items = [
        measurement("fp32", 5),
        measurement("w8a8", 6),
        measurement("w8dyn", 4),
        measurement("fp16", 9),
        measurement("fp32", 20, "teacher"),
        measurement("w8a8", 10, "teacher"),
        measurement("w8a8", 10, threads=2),
    ]
    assert [m.int8_slower_than_float for m in mark_slow_int8(items)] == [False, True, False, False, False, False, False]


class ScriptedWorker:
    """Answers like a worker whose inferences take ``cost_ms``; writes what it was asked into ``log``."""

    pid = 0

    def __init__(self, log: list[str], costs: dict[str, float]) -> None:
        self._log, self._costs, self._name = log, costs, ""

    def request(self, message: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        answers = {
            "load": {"load_ns": 1, "first_inference_ns": MS, "threads": 1, "runtime_version": "0"},
            "facts": {"card": {"emulated": False}, "counters": {}},
            "end_to_end": {"latency_ns": [MS for _ in message.get("files", ())]},
        }
        if message["op"] == "load":
            self._name = Path(message["files"][0]).stem
        if message["op"] == "block":
            return self._block(message["n"], message["lead"])
        return {"execution_precision": "f32", **answers.get(message["op"], {})}

    def _block(self, n: int, lead: int) -> dict[str, Any]:
        self._log.append(f"{self._name}{n}" if lead or n < 3 else f"warm {self._name}")
        ns = int(self._costs[self._name] * MS)
        rest = {"waited_ns": 0, "involuntary_switches": 0, "peak_rss_bytes": 1}
        return {"latency_ns": [ns] * n, "cpu_ns": ns * n, "wall_ns": ns * n, **rest}

    def beat(self) -> None: ...

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class ScriptedDevice:
    """A device whose models cost what the test says: the order of blocks can be read from ``log``."""

    name = "scripted"

    def __init__(self, costs: dict[str, float]) -> None:
        self.log: list[str] = []
        self._costs = costs

    def push(self, files: Sequence[Path]) -> tuple[str, ...]:
        return tuple(map(str, files))

    def pull(self, path: str, to: Path) -> None: ...

    def scratch(self, name: str) -> str:
        return name

    def start(self) -> WorkerHandle:
        return ScriptedWorker(self.log, self._costs)

    def facts(self) -> dict[str, Any]:
        return {}

    def close(self) -> None: ...


def candidate(name: str, path: Path | None = None) -> Candidate:
    exported = Exported(
        runtime="onnx",
        precision="fp32",
        files=(path.name if path else f"{name}.onnx",),
        sha256=(hashlib.sha256(path.read_bytes()).hexdigest() if path else "",),
        size_bytes=1,
        input_shape=(1, 16, 16, 3),
        classes=("a", "b", "c"),
        input_spec=SPEC.to_dict(),
        versions={},
        recipe="",
        seconds=0.0,
    )
    role = "teacher" if name.startswith("t") else "student"
    return Candidate(name=name, role=role, directory=str(path.parent if path else "/"), exported=exported)


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.png" for i in range(6)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(path)
    return [str(p) for p in paths]


def run(
    device: Device, candidates: Sequence[Candidate], images: Sequence[str], **fields: Any
) -> tuple[Measurement, ...]:
    defaults = {"threads": 1, "samples": 64, "min_seconds": 0.0, "launches": 1, "warmup": 5, "end_to_end": 4}
    return measure(candidates, device, **{**defaults, "quick": True, "inputs": samples.pictures(images), **fields})


def test_blocks_alternate(pictures: list[str]) -> None:
    device = ScriptedDevice({"a": 4, "b": 4, "c": 4})
    run(device, [candidate(n) for n in "abc"], pictures, samples=90)
    assert device.log == ["warm a", "warm b", "warm c", *["a30", "b30", "c30"] * 3]


def test_blocks_last_as_long_for_every_model(pictures: list[str]) -> None:
    device = ScriptedDevice({"slow": 300, "fast": 0.5})
    run(device, [candidate("slow"), candidate("fast")], pictures, samples=20, min_seconds=6)
    blocks = {entry for entry in device.log if not entry.startswith("warm")}
    assert blocks == {"slow1", f"fast{round(BLOCK_SECONDS * 1e3 / 0.5)}"}


def test_unequal_models_end_together(pictures: list[str]) -> None:
    """The slow one needs 100 s for its samples, the fast one 60 s: it is spread over the whole time."""
    device = ScriptedDevice({"slow": 100, "fast": 1})
    items = run(device, [candidate("slow"), candidate("fast")], pictures, samples=1000, min_seconds=60)
    assert [len(m.launches[0].latency_ns) for m in items] == [1000, pytest.approx(60_000, rel=0.01)]
    order = [entry[:4] for entry in device.log[2:]]
    gaps = [len(list(group)) for key, group in itertools.groupby(order) if key == "slow"]
    assert max(gaps) <= 3
    assert "fast" in order[-4:]


@given(
    st.lists(st.floats(0.2, 400), min_size=1, max_size=4),
    st.integers(1, 300),
    st.floats(0, 20),
    st.integers(1, 4),
)
@settings(max_examples=60, deadline=None)
def test_every_model_reaches_samples_and_seconds(
    tmp_path_factory: pytest.TempPathFactory, costs: list[float], samples: int, seconds: float, launches: int
) -> None:
    picture = tmp_path_factory.getbasetemp() / "one.png"
    Image.new("RGB", (20, 20)).save(picture)
    names = "abcd"[: len(costs)]
    device = ScriptedDevice(dict(zip(names, costs, strict=True)))
    items = run(
        device,
        [candidate(n) for n in names],
        [str(picture)],
        samples=samples,
        min_seconds=seconds,
        launches=launches,
    )
    for item, cost in zip(items, costs, strict=True):
        count = sum(len(one.latency_ns) for one in item.launches)
        wall = sum(one.wall_ns for one in item.launches) / 1e9
        block = max(BLOCK_SECONDS, cost / 1e3) * 1.6
        assert len(item.launches) == launches
        assert count >= samples
        assert wall >= seconds - 1e-6
        assert wall <= max(samples * cost / 1e3, seconds) + 2 * launches * block + 1e-6, "no more than asked"


def mean_model(path: Path) -> Path:
    """uint8 (1, 16, 16, 3) -> the mean of each colour."""
    nodes = [
        helper.make_node("Cast", ["image"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["f", "axes"], ["logits"], keepdims=0),
    ]
    inputs = [helper.make_tensor_value_info("image", TensorProto.UINT8, [1, 16, 16, 3])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 3])]
    graph = helper.make_graph(nodes, "mean", inputs, outputs, [numpy_helper.from_array(np.array([1, 2]), "axes")])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def test_real_workers(tmp_path: Path, pictures: list[str]) -> None:
    path = mean_model(tmp_path / "model.onnx")
    items = run(LocalDevice(), [candidate("teacher", path), candidate("student", path)], pictures, launches=2)
    assert [m.role for m in items] == ["teacher", "student"]
    for item in items:
        assert len(item.launches) == 2
        assert sum(len(one.latency_ns) for one in item.launches) >= 64
        assert all(len(one.end_to_end_ns) == 4 for one in item.launches)
        assert all(min(one.latency_ns) > 0 and one.peak_rss_bytes > 10e6 for one in item.launches)
        assert 1e3 < p50(item) < 1e9
        assert item.device["cpu_count"] >= 1
        assert item.threads == 1
        assert Measurement.model_validate_json(item.model_dump_json()) == item


def test_score_is_in_the_order_of_the_paths(tmp_path: Path, pictures: list[str]) -> None:
    path, out = mean_model(tmp_path / "model.onnx"), tmp_path / "out"
    out.mkdir()
    predictions = score(
        candidate("student onnx fp32", path), LocalDevice(), inputs=samples.pictures(pictures[::-1]), out=out
    )
    assert predictions.logits == "student-onnx-fp32.npy"
    expected = np.stack([preprocess(p, SPEC).mean((0, 1)) for p in pictures[::-1]])
    np.testing.assert_allclose(np.load(out / predictions.logits), expected, rtol=1e-4)
    assert [p.name for p in out.iterdir()] == [predictions.logits]


# ---- texts


def text_candidate(name: str, folder: Path) -> Candidate:
    """int32 (1, L) -> the sum of the ids, twice and three times; with its tokenizer."""
    nodes = [
        helper.make_node("Cast", ["ids"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["f", "one"], ["sum"], keepdims=1),
        helper.make_node("Mul", ["sum", "factors"], ["logits"]),
    ]
    constants = [
        numpy_helper.from_array(np.array([1]), "one"),
        numpy_helper.from_array(np.float32([1, 2, 3]), "factors"),
    ]
    inputs = [helper.make_tensor_value_info("ids", TensorProto.INT32, [1, "L"])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 3])]
    graph = helper.make_graph(nodes, "sum", inputs, outputs, constants)
    model, tokenizer = folder / f"{name}.onnx", folder / "tokenizer.json"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), model)
    made = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "lost": 2, "card": 3}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(tokenizer))
    sha256 = [hashlib.sha256(f.read_bytes()).hexdigest() for f in (model, tokenizer)]
    spec = TextSpec(8, 0, "text-classification", tokenizer_sha256=sha256[1])
    fields = {"files": (model.name, tokenizer.name), "sha256": tuple(sha256), "input_spec": spec.to_dict()}
    one = candidate(name, model)
    return one.model_copy(update={"exported": one.exported.model_copy(update={**fields, "input_shape": (1, -1)})})


@pytest.mark.parametrize(("rows", "count"), [(239, 64), (64, 64), (10, 64), (1760, 64), (3, 1)])
def test_few_samples_are_taken_from_the_whole_split(rows: int, count: int) -> None:
    """Splits are listed class by class: the first of them would be of one class."""
    taken = samples.Samples(tuple(range(rows))).spread(count).rows
    steps = {after - before for before, after in itertools.pairwise(taken)}
    assert len(taken) == min(rows, count)
    assert taken[0] == 0
    assert steps <= {rows // len(taken), -(-rows // len(taken))}
    assert rows - taken[-1] <= -(-rows // len(taken))


def test_texts_are_timed_as_they_are_and_at_one_length(tmp_path: Path) -> None:
    rows = samples.Samples(tuple({"text": text} for text in ("lost", "lost card", "")), text=True)
    group = [text_candidate(name, tmp_path) for name in ("teacher", "student")]
    natural = run(LocalDevice(), group, [], inputs=rows)
    assert [m.length for m in natural] == [None, None]
    assert all(len(m.launches[0].end_to_end_ns) == 4 for m in natural)
    fixed = run(LocalDevice(), group, [], inputs=rows, length=6, end_to_end=0)
    assert [m.length for m in fixed] == [6, 6]
    assert all(len(m.launches[0].latency_ns) >= 64 and not m.launches[0].end_to_end_ns for m in fixed)
    ids = samples.timed_arrays(rows, group[0].exported.input_spec, tmp_path, 6)
    assert ids.tolist() == [[2] * 6, [2, 3] * 3, [0] * 6]


def test_texts_are_scored_in_their_order(tmp_path: Path) -> None:
    rows = samples.Samples(tuple({"text": text} for text in ("lost card", "card", "card card card")), text=True)
    (tmp_path / "out").mkdir()
    predictions = score(text_candidate("student", tmp_path), LocalDevice(), inputs=rows, out=tmp_path / "out")
    np.testing.assert_array_equal(np.load(tmp_path / "out" / predictions.logits)[:, 0], [5, 3, 9])
