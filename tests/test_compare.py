"""Comparing results: verdicts, what is refused, gates, drift, and what CI servers read."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from launched import distilledge

from distilledge.models.errors import RejectedError, UsageError
from distilledge.pipeline.comparable import Named
from distilledge.pipeline.compare import DROP, P50, P50_CHANGE, SIZE, SLOWER, WORSE, Comparisons, compare
from distilledge.pipeline.compare_report import junit, markdown
from distilledge.pipeline.drift import cusum
from distilledge.pipeline.gates_file import Drift, Gates, Limits, load_gates
from distilledge.pipeline.result_file import Accuracy, FileCard, InputCard, Item, Result, Timing, write_result
from distilledge.targets.base import Launch

CARD = {"cpu_model": "Cortex-A76", "machine": "aarch64", "cpu_count": 4, "board": "a board", "emulated": False}
LABELS = np.arange(400) % 4


def timed(ms: float, *, seed: int = 0, flags: tuple[str, ...] = (), **changes: Any) -> Timing:
    """Three launches of 500 samples around ``ms``, 2 % apart."""
    rng = np.random.default_rng(seed)
    launches = [
        Launch(
            load_ns=1,
            first_inference_ns=1,
            peak_rss_bytes=50_000_000,
            latency_ns=tuple(int(v) for v in 1e6 * ms * np.exp(0.02 * rng.standard_normal(500))),
            end_to_end_ns=(),
            cpu_ns=1,
            wall_ns=1,
            waited_ns=0,
            involuntary_switches=0,
        )
        for _ in range(3)
    ]
    usual: dict[str, Any] = {"threads": 1, "batch": 1, "warmup": 20, "quick": False, "execution_precision": "f32"}
    return Timing(**{**usual, "runtime_version": "onnxruntime 1.32.0", "flags": flags, **changes}, launches=launches)


def scored(wrong: int) -> Accuracy:
    right = np.arange(400) >= wrong
    counts = [(float(r),) for r in right]
    return Accuracy(metric="accuracy", value=right.mean(), data_sha256="d" * 64, labels=LABELS.tolist(), counts=counts)


def made(ms: float = 10.0, *, name: str = "", item: dict[str, Any] | None = None, **changes: Any) -> Named:
    """A result of one file on one device; ``item`` and ``changes`` replace fields."""
    one = {
        "name": "m.onnx",
        "device": "line3",
        "role": "candidate",
        "file": FileCard(runtime="onnx", files={"m.onnx": "a" * 64}, size_bytes=3_000_000, precision="float32"),
        "input": InputCard(kind="made", sha256="b" * 64, rows=4, shape={"x": (1, 3)}),
        "timing": timed(ms),
        **(item or {}),
    }
    usual = {"created": "2026-01-01T00:00:00+00:00", "version": "1", "command": name or f"{ms}"}
    return Named(
        name or f"at {ms}", Result(**{**usual, "devices": {"line3": CARD}, "items": (Item(**one),), **changes})
    )


def gates(**limits: Any) -> Gates:
    return Gates(default=Limits(**limits))


def check(found: Comparisons, what: str) -> Any:
    return next(c for c in found.items[0].checks if c.what == what)


@pytest.mark.parametrize(
    ("ms", "limits", "outcome"),
    [
        (10.0, {"max_regression_percent": 3}, "pass"),
        (10.6, {"max_regression_percent": 3}, "fail"),
        (10.3, {"max_regression_percent": 3}, "inconclusive"),
        (5.0, {"max_p50_ms": 6}, "pass"),
        (7.0, {"max_p50_ms": 6}, "fail"),
        (10.0, {"max_size_mb": 2.9}, "fail"),
        (10.0, {"max_peak_rss_mb": 51}, "pass"),
        (10.0, {"max_p99_regression_percent": 5}, "pass"),
        (10.0, {"min_accuracy": 0.5}, "inconclusive"),  # it was not scored
        (10.0, {"max_drop_points": 1}, "inconclusive"),
    ],
)
def test_limits(ms: float, limits: dict[str, float], outcome: str) -> None:
    new = made(ms, item={"timing": timed(ms, seed=1)})
    found = compare([made(), new], gates(**limits))
    assert found.outcome == outcome
    change = check(found, P50_CHANGE)
    assert change.low <= 10 * ms - 100 <= change.high
    assert check(found, P50).value == pytest.approx(ms, rel=0.01)
    assert check(found, SIZE).value == 3.0


@pytest.mark.parametrize(("wrong", "outcome"), [(20, "pass"), (80, "fail"), (24, "inconclusive")])
def test_accuracy_is_compared_sample_by_sample(wrong: int, outcome: str) -> None:
    old, new = (made(item={"accuracy": scored(n)}) for n in (20, wrong))
    found = compare([old, new], gates(max_drop_points=1.2))
    assert found.outcome == outcome
    assert check(found, DROP).value == pytest.approx((wrong - 20) / 4)
    floor = compare([old, new], gates(min_accuracy=0.85))
    assert floor.outcome == {20: "pass", 24: "pass", 80: "fail"}[wrong]
    assert check(floor, "accuracy").value == pytest.approx(1 - wrong / 400)


REFUSED: dict[str, dict[str, Any]] = {
    "scenario": {"scenario": "offline"},
    "cpu_model": {"devices": {"line3": {**CARD, "cpu_model": "Cortex-A53"}}},
    "input shape": {"item": {"input": InputCard(kind="made", sha256="b" * 64, rows=4, shape={"x": (1, 4)})}},
    "input data": {"item": {"input": InputCard(kind="made", sha256="c" * 64, rows=4, shape={"x": (1, 3)})}},
    "execution precision": {"item": {"timing": timed(10, execution_precision="bf16")}},
    "threads": {"item": {"timing": timed(10, threads=4)}},
    "precision: float32, int8": {
        "item": {"file": FileCard(runtime="onnx", files={"m": "a"}, size_bytes=1, precision="int8")}
    },
    "labelled data": {"item": {"accuracy": scored(20).model_copy(update={"data_sha256": "e" * 64})}},
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_not_alike_is_refused(reason: str) -> None:
    old = made(item={"accuracy": scored(20)})
    with pytest.raises(UsageError, match=reason) as caught:
        compare([old, made(**REFUSED[reason])], Gates())
    assert caught.value.exit_code == 2


def test_another_device_is_refused() -> None:
    other = made(item={"device": "line4"}, devices={"line4": CARD})
    with pytest.raises(UsageError, match="line3; line4"):
        compare([made(), other], Gates())


@pytest.mark.parametrize("flag", ["OTHER_LOAD", "THROTTLED", "DRIFT", "NOISE", "TEST01", "TEST04"])
def test_flagged_timings_are_not_compared_and_never_pass(flag: str) -> None:
    flagged = made(item={"timing": timed(10, flags=(flag,))})
    for pair in ([made(), flagged], [flagged, made()]):
        with pytest.raises(RejectedError, match=flag) as caught:
            compare(pair, Gates())
        assert caught.value.exit_code == 3
        found = compare(pair, gates(max_regression_percent=50), allow_flagged=True)
        assert (found.outcome, found.items[0].flags) == ("inconclusive", (flag,))
        assert compare(pair, Gates(), allow_flagged=True).outcome == "inconclusive"
    big = compare([made(), flagged], gates(max_size_mb=1), allow_flagged=True)
    assert big.outcome == "fail"  # a size is what it is


def test_a_file_that_is_missing_does_not_pass() -> None:
    two = made()
    second = two.result.items[0].model_copy(update={"name": "n.onnx"})
    both = Named("both", two.result.model_copy(update={"items": (*two.result.items, second)}))
    found = compare([both, made()], gates(max_regression_percent=5))
    assert {i.name: i.outcome for i in found.items} == {"m.onnx": "pass", "n.onnx": "inconclusive"}
    found = compare([made(), both], gates(max_regression_percent=5))
    assert {i.name: i.outcome for i in found.items} == {"m.onnx": "pass", "n.onnx": "inconclusive"}


def test_one_result_is_judged_by_the_baseline_inside() -> None:
    with pytest.raises(UsageError, match="E2071"):
        compare([made()], Gates())
    new = made(9.0)
    old = new.result.items[0].model_copy(update={"name": "old.onnx", "role": "baseline", "timing": timed(10)})
    whole = Named("whole", new.result.model_copy(update={"items": (*new.result.items, old)}))
    assert check(compare([whole], Gates()), P50_CHANGE).value == pytest.approx(-10, abs=0.5)


def test_each_device_has_limits_and_may_have_a_baseline_of_its_own() -> None:
    loose = Gates.model_validate(
        {"default": {"max_p50_ms": 1}, "devices": {"line3": {"max_p50_ms": 20}}, "files": {"x": {"max_p50_ms": 2}}}
    )
    assert compare([made(), made()], loose).outcome == "pass"
    found = compare([made(), made(12)], loose, baselines={"line3": made(12, name="own")})
    assert check(found, P50_CHANGE).value == pytest.approx(0, abs=0.2)
    assert found.items[0].baseline == "own"


def test_cusum_is_that_of_page() -> None:
    """S_n = C_n - min C_j over j <= n, of the sums C of x - k (Page 1954): another formula for the same."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        shifts, slack, limit = rng.normal(0.3, 1, 60), rng.uniform(0.1, 1), rng.uniform(1, 6)
        sums = np.concatenate([[0], np.cumsum(shifts - slack)])
        expected = (sums - np.minimum.accumulate(sums))[1:]
        found = cusum(shifts.tolist(), slack=slack, limit=limit)
        np.testing.assert_allclose(found.sums, expected, atol=1e-9)
        over = np.flatnonzero(expected > limit)
        assert found.alarm == (over[0] if len(over) else None)


def release(number: int, growth: float, points: float = 0.0) -> Named:
    wrong = round(20 + 4 * points * number)
    ms = 10 * (1 + growth) ** number
    item = {"timing": timed(ms, seed=number), "accuracy": scored(wrong)}
    return made(ms, name=f"r{number}", item=item, created=f"2026-01-{number + 1:02d}T00:00:00+00:00")


def test_a_drift_that_no_pair_shows_is_found() -> None:
    releases = [release(n, 0.01) for n in range(6)]
    limits = gates(max_regression_percent=3, max_drop_points=2)
    for old, new in pairwise(releases):
        assert compare([old, new], limits).outcome == "pass"
    found = compare([releases[0], releases[5]], Gates(), history=releases)
    assert check(found, SLOWER).outcome == "fails"
    assert check(found, SLOWER).note == "5 releases, alarm since r4"
    assert check(found, WORSE).outcome == "holds"
    assert found.outcome == "fail"
    steady = [release(n, 0.0) for n in range(12)]
    assert compare([steady[0], steady[11]], Gates(), history=steady).outcome == "pass"
    losing = [release(n, 0.0, points=0.5) for n in range(6)]
    found = compare([losing[0], losing[5]], Gates(drift=Drift(sigma_points=0.5)), history=losing)
    assert check(found, WORSE).outcome == "fails"
    assert compare([losing[0], losing[5]], Gates(drift=None), history=losing).outcome == "pass"


def test_releases_that_are_not_alike_are_left_out_of_the_history() -> None:
    strange = [release(1, 0.5)._replace(result=made(15.0, scenario="offline").result)]
    found = compare([release(0, 0), release(3, 0)], Gates(), history=[*strange, release(2, 0)])
    assert check(found, SLOWER).note == "2 releases"


MISTAKES = {
    "default:\n  max_p50: 3\n": ("2:3", "did you mean `max_p50_ms`?"),
    "devices:\n  line3:\n    max_size: 3\n": ("3:5", "did you mean `max_size_mb`?"),
    "defaults: {}\n": ("1:1", "did you mean `default`?"),
    "drift: {k: 0}\n": ("1:12", ""),
    "default: {min_accuracy: 95}\n": ("1:25", ""),
    "default: {max_p50_ms: fast}\n": ("1:23", ""),
    "a: 1\na: 2\n": ("2:1", ""),
}


@pytest.mark.parametrize("text", MISTAKES)
def test_mistakes_in_gates_are_named_by_line(text: str, tmp_path: Path) -> None:
    place, hint = MISTAKES[text]
    (tmp_path / "gates.yaml").write_text(text)
    with pytest.raises(UsageError) as caught:
        load_gates(tmp_path / "gates.yaml")
    assert f"gates.yaml:{place}" in caught.value.what
    assert hint in caught.value.hint


def test_junit_and_markdown_hold_any_name() -> None:
    evil = "a<b>&\"'|`\x00\x1b]]>.onnx"
    old, new = (made(ms, item={"name": evil, "timing": timed(ms)}) for ms in (10, 12))
    found = compare([old, new], gates(max_regression_percent=1, max_drop_points=1))
    root = ElementTree.fromstring(junit(found))
    suite = root.find("testsuite")
    assert suite is not None
    assert suite.attrib == {"name": "line3", "tests": "7", "failures": "1", "errors": "1"}
    assert suite.findall("testcase/failure")[0].attrib["message"].startswith(P50_CHANGE)
    assert "a<b>&\"'|`" in suite.findall("testcase")[0].attrib["classname"]
    lines = markdown(found, [old, new]).splitlines()
    assert lines[0].startswith("**❌ fail**")
    rows = [line for line in lines if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in rows} == {8}
    assert "<b>" not in "".join(rows)


def test_exit_codes(tmp_path: Path) -> None:
    for name, ms in (("old", 10.0), ("same", 10.0), ("slow", 12.0)):
        write_result(made(ms).result, tmp_path / f"{name}.json")
    (tmp_path / "gates.yaml").write_text("schema: 1\ndefault: {max_regression_percent: 3}\n")
    options = ["gates.yaml", "--junit", "out.xml", "--md", "out.md", "--history", "."]
    done = distilledge("compare", "old.json", "slow.json", "--gate", *options, cwd=tmp_path, imports=())
    assert done.returncode == 5, done.stderr
    assert "error[E5010]" in done.stderr
    ElementTree.parse(tmp_path / "out.xml")
    assert "❌" in (tmp_path / "out.md").read_text(encoding="utf-8")
