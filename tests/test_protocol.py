"""The measurement protocol: schedules by a made clock, figures against plain arithmetic, counters of made trees."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_gate import Case, check
from test_measure import candidate, launch, mean_model, measurement, pictures, run

from distilledge.pipeline import gate
from distilledge.pipeline.recipe import Budget, Measure, Recipe
from distilledge.pipeline.record import Measurements
from distilledge.pipeline.report.protocol import protocol_content
from distilledge.targets import samples
from distilledge.targets.audit import audit, judge_outputs, judge_repeats
from distilledge.targets.base import Launch
from distilledge.targets.devices.local import LocalDevice
from distilledge.targets.energy import energy_of, mean_watts, measure_energy
from distilledge.targets.fairness import doubts, not_compared, short, undisturbed, warnings_of
from distilledge.targets.ondevice import energy, worker
from distilledge.targets.ondevice.scenario import paced
from distilledge.targets.paired import paired_ratio
from distilledge.targets.protocol import CoolDown, Frames, Pass, Scenario
from distilledge.targets.scenarios import frame_figures, run_scenario, sustained_figures
from distilledge.targets.steady import Steady
from distilledge.targets.tries import compare_tries, joined

assert pictures  # a fixture of test_measure
MS = 1_000_000


class MadeClock:
    """Time passes only by sleeping and by the calls of ``costs_ms``, in turn."""

    def __init__(self, costs_ms: Sequence[float]) -> None:
        self.time = 0
        self._costs = itertools.cycle(costs_ms)

    def now(self) -> int:
        self.time += 1
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += round(seconds * 1e9) + 1

    def call(self) -> None:
        self.time += int(next(self._costs) * MS)


def served(costs: Sequence[float], n: int, period_ms: float, queue: int | None = None) -> Frames:
    clock = MadeClock(costs)
    request = {"n": n, "period_ns": int(period_ms * MS), "queue": queue}
    clock_of: dict[str, Callable[..., Any]] = {"now": clock.now, "sleep": clock.sleep, "used": lambda: 0}
    start, end = zip(*paced([clock.call], request, **clock_of)["frames"], strict=True)
    return Frames(period_ns=int(period_ms * MS), start_ns=start, end_ns=end)


def test_one_slow_frame_delays_those_behind_it() -> None:
    """30, then 2 ms each, every 10 ms: without coordinated omission three more frames are late or wait."""
    frames = served([30, *[2] * 9], 10, 10)
    latency = [round((e - i * 10 * MS) / MS) for i, e in enumerate(frames.end_ns)]
    assert latency == [30, 22, 14, 6, 2, 2, 2, 2, 2, 2]
    figures = frame_figures(frames)
    assert (figures.late, figures.dropped, figures.longest_queue) == (3, 0, 2)
    assert figures.missed == 0.3
    assert figures.p99_ms is None


def test_a_full_queue_drops_what_arrives() -> None:
    frames = served([35], 12, 10, queue=1)
    figures = frame_figures(frames, deadline_ms=1000)
    assert figures.dropped > 0
    assert figures.late == 0
    assert figures.longest_queue == 1
    assert figures.missed == figures.dropped / 12


@given(
    st.lists(st.floats(0.1, 60), min_size=1, max_size=8), st.integers(1, 12), st.one_of(st.none(), st.integers(1, 4))
)
@settings(max_examples=25, deadline=None)
def test_frames_are_served_in_order_and_counted_once(costs: list[float], n: int, queue: int | None) -> None:
    frames = served(costs, n, 10, queue)
    figures = frame_figures(frames)
    done = [(s, e, i) for i, (s, e) in enumerate(zip(frames.start_ns, frames.end_ns, strict=True)) if s >= 0]
    assert all(s >= i * 10 * MS for s, _, i in done), "never before it arrives"
    assert all(b[0] >= a[1] for a, b in itertools.pairwise(done)), "one at a time"
    assert figures.dropped + len(done) == n
    begun = [sum(s > i * 10 * MS for s, _, j in done if j < i) for i in range(n)]
    assert figures.longest_queue == max(begun)
    assert queue is None or figures.longest_queue <= queue
    assert queue is not None or figures.dropped == 0
    assert figures.late == sum(e - i * 10 * MS > 10 * MS for _, e, i in done)


def passes(costs_ms: Sequence[float], seconds: float = 1.0) -> list[Pass]:
    made = []
    for ms in costs_ms:
        n = round(seconds * 1e3 / ms)
        wall = round(n * ms * MS)
        made.append(Pass(latency_ns=(round(ms * MS),) * n, wall_ns=wall, cpu_ns=wall, waited_ns=0))
    return made


def test_sustained_compares_the_last_minute_with_the_first() -> None:
    figures = sustained_figures(passes([10] * 6 + [10.2] * 6 + [12.5] * 6), 6.0)
    assert len(figures.minutes) == 3
    assert figures.retention == pytest.approx(0.8)
    assert figures.throttled_after_seconds == 12.0
    steady = sustained_figures(passes([10] * 12), 6.0)
    assert (steady.retention, steady.throttled_after_seconds) == (pytest.approx(1.0), None)
    assert sustained_figures(passes([10] * 3), 6.0).retention is None


def test_real_scenarios(tmp_path: Path, pictures: list[str]) -> None:
    one = candidate("student", mean_model(tmp_path / "model.onnx"))
    given_ = {"threads": 1, "inputs": samples.pictures(pictures), "warmup": 3}
    fixed = run_scenario(one, LocalDevice(), Scenario(name="fixed-rate", fps=200, seconds=0.2), **given_)
    assert fixed.frames is not None
    assert len(fixed.frames.start_ns) == 40
    assert "SHORT" in fixed.flags
    long = run_scenario(one, LocalDevice(), Scenario(name="sustained", seconds=0.3, minute_seconds=0.1), **given_)
    assert sustained_figures(long.passes, 0.1).retention is not None
    content = protocol_content(Measurements(items=(), scenarios=(fixed, long)), 0)
    assert [t.title for t in content.tables] == ["Fixed rate", "Sustained"]
    assert set(content.numbers["student"]) == {"rate_200_p90_ms", "rate_200_missed_share", "sustained_retention"}


# ---- ratios and tries


def test_a_paired_ratio_does_not_see_what_meets_both_lanes() -> None:
    rng = np.random.default_rng(1)
    heat = np.repeat(np.linspace(1, 4, 40), 10)
    lanes = [base * heat * rng.normal(1, 0.01, 400) for base in (2.0, 1.0)]
    found = paired_ratio([lanes[0]], [lanes[1]])
    assert found is not None
    assert found.low <= 2 <= found.high
    assert found.high - found.low < 0.05
    parts = [np.median(a) / np.median(b) for a, b in zip(*(np.split(x, 40) for x in lanes), strict=True)]
    assert found.value == pytest.approx(np.median(parts))
    assert paired_ratio([[]], [[]]) is None


def test_tries_agree_within_five_per_cent() -> None:
    pair = lambda ms: (measurement("fp32", 20 * ms, "teacher"), measurement("fp32", ms))  # noqa: E731
    steady, moved = [pair(ms) for ms in (5, 5.1, 5.2)], [pair(ms) for ms in (5, 5.1, 5.3)]
    assert [t.replicable for t in compare_tries(steady)] == [True, True]
    teacher, student = compare_tries(moved)
    assert (student.replicable, student.spread) == (False, pytest.approx(1.06))
    assert [r.value for r in student.to_teacher] == pytest.approx([0.05] * 3)
    assert teacher.to_teacher == ()
    assert [len(m.launches) for m in joined(moved)] == [3, 3]


# ---- flags


def test_what_is_too_short_is_no_reportable_figure() -> None:
    assert short([launch([MS] * 1023, wall_ns=int(61e9))]) == ("SHORT",)
    assert short([launch([MS] * 1024, wall_ns=int(59e9))]) == ("SHORT",)
    assert short([launch([MS] * 512, wall_ns=int(30e9))] * 2) == ()


def test_warnings() -> None:
    quiet = {"card": {"governor": "performance"}, "counters": {"swapped_in": 4, "on_battery": False}}
    assert warnings_of(quiet, quiet) == ()
    assert warnings_of({"card": {"governor": None}, "counters": {}}, {"counters": {}}) == ()
    after = {"counters": {"swapped_in": 5, "on_battery": True}}
    assert warnings_of({**quiet, "card": {"governor": "powersave"}}, after) == ("GOVERNOR", "BATTERY", "SWAP_IN")
    assert not_compared(("SHORT", "CLOCK", "OTHER_LOAD", "DRIFT")) == ("OTHER_LOAD",)


def test_undisturbed_inferences() -> None:
    seen: Launch = launch([1, 2, 3], disturbed=(1,))
    assert undisturbed([seen, seen]) == [1, 3, 1, 3]
    assert undisturbed([seen, launch([1])]) is None


@pytest.mark.parametrize(
    ("flag", "limit"),
    [("OTHER_LOAD", 1.0), ("THROTTLED", 1.0), ("CLOCK", 3.0), ("CLOCK", 1.5), ("TEST04", 3.0), ("TEST01", 1.0)],
)
def test_a_flagged_latency_decides_nothing(monkeypatch: pytest.MonkeyPatch, flag: str, limit: float) -> None:
    case = Case(budget=Budget(max_latency_ms=limit))
    assert check(case.judge()["w8a8"], gate.P50).outcome == ("holds" if limit == 3.0 else "fails")
    import test_gate

    made = test_gate.measurement
    monkeypatch.setattr(test_gate, "measurement", lambda *a, **k: made(*a, **k, flags=(flag,)))
    verdict = case.judge()["w8a8"]
    p50 = check(verdict, gate.P50)
    assert (p50.outcome, verdict.outcome) == ("inconclusive", "inconclusive")
    assert f"flagged {flag}" in p50.note
    case.recipe = Recipe(name="case", budgets={"default": Budget()})
    assert case.judge()["w8a8"].outcome == "pass", "without a limit on latency nothing hangs on it"


@pytest.mark.parametrize(
    ("flags", "interval", "limit", "left"),
    [
        (("OTHER_LOAD", "NOISE"), (1.9, 2.1), 3.0, ()),
        (("OTHER_LOAD",), (1.9, 2.1), 2.0, ("OTHER_LOAD",)),
        (("CLOCK",), (1.9, 2.1), 4.2, ()),
        (("CLOCK",), (1.9, 2.1), 0.9, ()),
        (("CLOCK", "THROTTLED"), (1.9, 2.1), 1.0, ("THROTTLED", "CLOCK")),
        (("TEST01",), (1.9, 2.1), 100.0, ("TEST01",)),
    ],
)
def test_flags_that_cannot_matter_leave_a_limit_decided(
    flags: tuple[str, ...], interval: tuple[float, float], limit: float, left: tuple[str, ...]
) -> None:
    """What slows a file leaves "holds"; a clock that moves leaves what is twice as far away."""
    assert doubts(flags, *interval, limit) == left


class Thermometer:
    """A worker that tells made temperatures, in turn, and how long its clock's loop took."""

    pid = 0

    def __init__(self, celsius: Sequence[float | None], spins: Sequence[int] = ()) -> None:
        self._celsius, self._spins = iter(celsius), iter(spins)

    def request(self, message: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        if message["op"] == "facts":
            return {"operations": ["counters", "spin"]}
        if message["op"] == "spin":
            return {"n": 7, "cpu_ns": [next(self._spins)]}
        found = next(self._celsius)
        return {"counters": {"temperature": None if found is None else {"zone0": int(found * 1000)}}}

    def beat(self) -> None: ...

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def test_a_launch_waits_until_the_device_is_cool() -> None:
    slept: list[float] = []
    steady = Steady(CoolDown(limit_seconds=5), clock=False, sleep=slept.append)
    worker_ = Thermometer([40, 50, 45, 41.5, *[60] * 6])
    first, second, third = (steady.before([worker_]) for _ in range(3))
    assert first is not None
    assert second is not None
    assert third is not None
    assert [r.waited_seconds for r in (first, second, third)] == [0, 2, 5]
    assert (second.hottest_celsius, second.above_start_celsius) == (41.5, 1.5)
    assert third.above_start_celsius == 20, "the limit ended the wait"
    blind = Steady(CoolDown(pause_seconds=3), clock=False, sleep=slept.append)
    rests = [blind.before([Thermometer([None])]), blind.before([Thermometer([None])])]
    assert [r and (r.waited_seconds, r.hottest_celsius) for r in rests] == [(0, None), (3, None)]


@pytest.mark.parametrize(("spins", "flags"), [((100, 102), ()), ((100, 104), ("CLOCK",)), ((104, 100), ("CLOCK",))])
def test_the_clock_is_flagged_where_the_loop_took_another_time(spins: tuple[int, int], flags: tuple[str, ...]) -> None:
    steady = Steady()
    steady.begin()
    one = Thermometer([], spins)
    steady.before([one])
    steady.spin(one)
    assert steady.flags() == flags


def test_new_fields_leave_old_fingerprints() -> None:
    from distilledge.pipeline.steps import PROTOCOL, _downstream, _step

    data = _step("data", "data", {})
    plain = _downstream(Recipe(name="a"), data, [], "measure")["measure"]
    assert not set(PROTOCOL) & set(plain)
    asked = Recipe(name="a", measure=Measure(scenarios=(Scenario(name="offline"),)))
    assert set(_downstream(asked, data, [], "measure")["measure"]) - set(plain) == {"scenarios"}


# ---- audits


class Inside:
    """A worker in this process, so that its session can be made to cheat."""

    pid = 0

    def __init__(self) -> None:
        self._worker = worker.Worker(lambda _: None)

    def request(self, message: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        found = worker.answer(self._worker, message)
        assert found["ok"], found
        return found

    def beat(self) -> None: ...

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class InsideDevice(LocalDevice):
    def start(self) -> Inside:  # type: ignore[override]
        return Inside()


class Cheat:
    """A real session, made slow enough to be timed; ``caches``: a sample that was the last one costs nothing.

    ``stale``: what is timed returns the output of the first sample for all of them.
    """

    def __init__(self, session: Any, *, caches: bool = False, stale: bool = False) -> None:
        self._session, self._caches, self._stale = session, caches, stale
        self._last: int | None = None
        self._result: object = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def calls(self, rows: Any) -> list[Callable[[], object]]:
        real = self._session.calls(rows)
        return [self._call(i, real[0] if self._stale else call) for i, call in enumerate(real)]

    def _call(self, number: int, call: Callable[[], object]) -> Callable[[], object]:
        def run_() -> object:
            if not self._caches or self._last != number:
                time.sleep(0.002)
                self._result = call()
            self._last = number
            return self._result

        return run_


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cheat", "fails"), [({}, set()), ({"caches": True}, {"TEST04"}), ({"stale": True}, {"TEST01"})]
)
def test_a_cheating_session_is_caught(
    tmp_path: Path, pictures: list[str], monkeypatch: pytest.MonkeyPatch, cheat: dict[str, bool], fails: set[str]
) -> None:
    real = worker.open_session
    monkeypatch.setattr(worker, "open_session", lambda *given_, **named: Cheat(real(*given_, **named), **cheat))
    one = candidate("student", mean_model(tmp_path / "model.onnx"))
    found = audit(one, InsideDevice(), threads=1, inputs=samples.pictures(pictures))
    assert [a.audit for a in found] == ["TEST01", "TEST04"]
    assert {a.audit for a in found if a.outcome == "fails"} == fails


def test_audits_at_their_limits() -> None:
    scored = np.float32([[1, -4], [2, 3]])
    assert judge_outputs("a", [(1, scored[1])], scored).outcome == "passes"
    assert judge_outputs("a", [(0, scored[1])], scored).outcome == "fails"
    assert judge_outputs("a", [(0, np.float32([np.nan, -4]))], scored).outcome == "fails"
    for ratio, outcome in ((0.5, "fails"), (0.97, "passes")):
        assert judge_repeats("a", np.full((5, 8), ratio)).outcome == outcome
    mixed = np.tile([0.6, 1.2], (5, 4))
    assert judge_repeats("a", mixed).outcome == "undecided"


# ---- energy


def tree(root: Path, files: dict[str, object]) -> Path:
    for name, value in files.items():
        path = root / "sys/class" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
    return root


def test_rapl_wraps_and_counts_packages_once(tmp_path: Path) -> None:
    zones = {"intel-rapl:0": "package-0", "intel-rapl:0:0": "core", "intel-rapl:1": "psys"}
    files = {f"powercap/{z}/{k}": v for z, n in zones.items() for k, v in (("name", n), ("energy_uj", 900))}
    root = str(tree(tmp_path, {**files, "powercap/intel-rapl:0/max_energy_range_uj": 1000}))
    source, _ = energy.find(root, ("no-such-program",))
    assert source is not None
    assert (source.name, source.kind) == ("RAPL package-0", "joules")
    tree(tmp_path, {"powercap/intel-rapl:0/energy_uj": 50, "powercap/intel-rapl:1/energy_uj": 999})
    assert source.read() == pytest.approx(150e-6)


def test_sensors_and_batteries(tmp_path: Path) -> None:
    rails = {"name": "ina3221", "curr1_input": 1000, "in1_input": 5000, "in1_label": "VDD_IN", "curr2_input": 900}
    chip = {f"hwmon/hwmon2/{k}": v for k, v in {**rails, "in2_input": 1000}.items()}
    source, _ = energy.ina(str(tree(tmp_path / "jetson", chip)))
    assert source is not None
    assert source.read() == pytest.approx(5.0), "the rail that feeds the others, not their sum"
    phone = {"current_now": -400_000, "voltage_now": 4_000_000, "status": "Discharging"}
    root = tree(tmp_path / "phone", {f"power_supply/battery/{k}": v for k, v in phone.items()})
    source, _ = energy.battery(str(root))
    assert source is not None
    assert source.read() == pytest.approx(1.6)
    tree(root, {"power_supply/battery/status": "Charging"})
    assert energy.battery(str(root)) == (None, "battery: Charging, unplug it")
    text = "  VDD_CORE_A current(7)=2.0A\n  VDD_CORE_V volt(15)=0.75V\n  EXT5V_V volt(24)=5.1V\n"
    assert energy.pmic_watts(text) == pytest.approx(1.5)


def test_a_counter_that_moves_is_read_while_the_loop_runs(tmp_path: Path) -> None:
    """1 W idle, 5 W while busy: 4 W above idling over the number of inferences."""
    zone = "powercap/intel-rapl:0"
    root = tree(tmp_path, {f"{zone}/name": "package-0", f"{zone}/energy_uj": 0, f"{zone}/max_energy_range_uj": 10**6})
    busy, over = threading.Event(), threading.Event()

    def draw() -> None:
        path, value, last = root / "sys/class" / zone / "energy_uj", 0.0, time.perf_counter()
        while not over.wait(0.002):
            now = time.perf_counter()
            value = (value + (5e6 if busy.is_set() else 1e6) * (now - last)) % 10**6
            last = now
            partial = path.with_suffix(".new")
            partial.write_text(str(int(value)))
            partial.replace(path)

    def infer() -> None:
        busy.set()
        time.sleep(0.001)

    thread = threading.Thread(target=draw, daemon=True)
    thread.start()
    rounds = []
    for _ in range(3):
        busy.clear()
        rounds += energy.measured([infer], {"rounds": 1, "seconds": 0.3, "root": str(root)})["rounds"]
    over.set()
    thread.join()
    found = energy_of("a", {"source": "RAPL", "kind": "joules", "reason": "", "rounds": rounds})
    assert found.idle_watts is not None
    assert found.busy_watts is not None
    assert found.idle_watts < 2.5 < found.busy_watts


def readings(watts: float, *, step_j: float = 1e-4) -> list[tuple[int, float]]:
    return [(i * 20 * MS, math.floor(watts * i * 0.02 / step_j) * step_j) for i in range(51)]


def test_energy_arithmetic() -> None:
    rounds = [
        {"idle": readings(1.0 + d), "busy": readings(3.0 + d), "n": 100, "busy_ns": int(1e9)} for d in (0, 0.1, -0.1)
    ]
    made = {"source": "made", "kind": "joules", "reason": "", "rounds": rounds}
    found = energy_of("a", made)
    assert found.joules is not None
    assert found.joules.value == pytest.approx(0.02, rel=0.01)
    assert found.joules.low < 0.02 < found.joules.high
    same = [{**r, "busy": r["idle"]} for r in rounds]
    assert energy_of("a", {**made, "rounds": same}).reason.startswith("cannot be resolved")
    coarse = [{**r, "idle": readings(1, step_j=0.5), "busy": readings(3, step_j=0.5)} for r in rounds]
    assert "too coarse" in energy_of("a", {**made, "rounds": coarse}).reason
    assert mean_watts([(0, 1.0), (MS, 3.0), (4 * MS, 3.0)], joules=False) == pytest.approx(2.75)


def test_energy_here_is_a_figure_or_a_reason(tmp_path: Path, pictures: list[str]) -> None:
    one = candidate("student", mean_model(tmp_path / "model.onnx"))
    found = measure_energy(one, LocalDevice(), seconds=0.05, threads=1, inputs=samples.pictures(pictures), warmup=2)
    assert (found.joules is None) == bool(found.reason)


def test_the_previous_release_takes_turns(tmp_path: Path, pictures: list[str]) -> None:
    path = mean_model(tmp_path / "model.onnx")
    old = candidate("previous", path).model_copy(update={"role": "previous"})
    items = run(LocalDevice(), [candidate("teacher", path), candidate("student", path), old], pictures)
    assert [m.role for m in items] == ["teacher", "student", "previous"]
    (table, *_) = [t for t in protocol_content(Measurements(items=items), 0).tables if t.title.startswith("Against")]
    assert table.rows[0][:2] == ("student", "previous")
