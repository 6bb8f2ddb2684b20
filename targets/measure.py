"""Timing and scoring exported files on a device.

In each launch every candidate has a worker process of its own, loaded once; short timed blocks alternate between them
(A B C A B C ...), so that heat, other load and clock changes meet all of them alike. Figures are compared only within
one such group. Defaults come from MLPerf Mobile's single stream: at least 1,024 samples and 60 s.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from distilledge.models.base import Value
from distilledge.targets.base import Exported, Launch, Measurement, Predictions, Rest
from distilledge.targets.devices.base import Device, Message, WorkerHandle
from distilledge.targets.fairness import fairness_flags, machine_flags, short, warnings_of
from distilledge.targets.samples import Samples, is_text, key, timed_arrays
from distilledge.targets.steady import Steady

BLOCK_SECONDS = 0.12
"""A block's length. A switch leaves cold caches, so one untimed inference leads each block."""
ROWS = 32
"""Pictures or texts that the timed inferences cycle through."""
LOAD_SECONDS, ANSWER_SECONDS = 300.0, 60.0


class Candidate(Value):
    """A file to be timed or scored; ``exported.files`` are relative to ``directory``."""

    name: str
    role: Literal["teacher", "student", "control", "previous"]
    directory: str
    exported: Exported


class Progress(NamedTuple):
    """What one candidate has collected of what it needs, over all launches up to this one."""

    samples: int
    seconds: float

    def share(self, samples: float, seconds: float) -> float:
        """1 when both are reached."""
        return min(self.samples / samples, self.seconds / seconds if seconds > 0 else math.inf)


class Lane:
    """One candidate in one launch: its worker and what was timed so far."""

    def __init__(self, worker: WorkerHandle, loaded: dict[str, Any], before: Progress) -> None:
        self.worker, self.loaded, self.before = worker, loaded, before
        self.latency_ns: list[int] = []
        self.end_to_end_ns: list[int] = []
        self.cpu_ns = self.wall_ns = self.involuntary_switches = self.peak_rss_bytes = 0
        self.waited_ns: int | None = 0
        self.disturbed: list[int] | None = []
        self.major_faults: int | None = 0
        self.rest: Rest | None = None
        self.typical_ns = loaded["first_inference_ns"]
        self.last_block = Progress(0, 0.0)

    def warm(self, warmup: int) -> None:
        """Untimed inferences; their median says how long a block must be."""
        if warmup:
            self.typical_ns = max(1, round(statistics.median(self._block(warmup, 0)["latency_ns"])))

    def time(self) -> None:
        """One block."""
        n = max(1, round(BLOCK_SECONDS * 1e9 / self.typical_ns))
        block = self._block(n, 1 if n > 2 else 0)
        self.typical_ns = max(1, round(statistics.median(block["latency_ns"])))
        self.last_block = Progress(n, block["wall_ns"] / 1e9)
        self._note(block)
        self.latency_ns += block["latency_ns"]
        self.cpu_ns += block["cpu_ns"]
        self.wall_ns += block["wall_ns"]
        self.involuntary_switches += block["involuntary_switches"]
        self.peak_rss_bytes = block["peak_rss_bytes"]
        waited = block["waited_ns"]
        self.waited_ns = None if waited is None or self.waited_ns is None else self.waited_ns + waited

    def _note(self, block: dict[str, Any]) -> None:
        """Signs of disturbance, where the worker sees them. Before the block's latencies are added."""
        disturbed, faults, first = block.get("disturbed"), block.get("major_faults"), len(self.latency_ns)
        known = disturbed is not None and self.disturbed is not None
        self.disturbed = [*(self.disturbed or ()), *(first + i for i in disturbed or ())] if known else None
        self.major_faults = None if faults is None or self.major_faults is None else self.major_faults + faults

    def _block(self, n: int, lead: int) -> dict[str, Any]:
        timeout = ANSWER_SECONDS + 50 * (n + lead) * self.typical_ns / 1e9
        return self.worker.request({"op": "block", "n": n, "lead": lead}, timeout)

    @property
    def progress(self) -> Progress:
        return Progress(self.before.samples + len(self.latency_ns), self.before.seconds + self.wall_ns / 1e9)

    def launch(self) -> Launch:
        return Launch(
            load_ns=self.loaded["load_ns"],
            first_inference_ns=self.loaded["first_inference_ns"],
            peak_rss_bytes=self.peak_rss_bytes,
            latency_ns=tuple(self.latency_ns),
            end_to_end_ns=tuple(self.end_to_end_ns),
            cpu_ns=self.cpu_ns,
            wall_ns=self.wall_ns,
            waited_ns=self.waited_ns,
            involuntary_switches=self.involuntary_switches,
            disturbed=None if self.disturbed is None else tuple(self.disturbed),
            major_faults=self.major_faults,
            rest=self.rest,
        )


def measure(  # noqa: PLR0913 (a protocol's settings, all by keyword)
    candidates: Sequence[Candidate],
    device: Device,
    *,
    threads: int,
    samples: int,
    min_seconds: float,
    launches: int,
    warmup: int,
    end_to_end: int,
    quick: bool,
    inputs: Samples,
    length: int | None = None,
    steady: Steady | None = None,
) -> tuple[Measurement, ...]:
    """Time one runtime's candidates, interleaved, until each has ``samples`` and ``min_seconds`` over all launches.

    ``threads`` 0: all cores. ``inputs``: read by each candidate's own input spec; ``end_to_end`` of them are timed from
    file or string to class in each launch, after peak memory is read. ``length``: every text has so many tokens.
    ``quick`` only labels. ``steady``: cools down and watches the clock. Raises what ``WorkerHandle.request`` raises.
    """
    if not inputs.rows:
        raise ValueError("pictures or texts are needed to be timed on")
    collected: list[list[Lane]] = [[] for _ in candidates]
    steady = steady or Steady(clock=False)
    steady.begin()
    with tempfile.TemporaryDirectory(prefix="distilledge-measure-") as folder:
        requests = _inputs(candidates, device, inputs.spread(ROWS), length, Path(folder))
        whole = inputs.cycled(end_to_end)
        pushed = whole.pushed(device, Path(folder))
        facts: list[dict[str, Any]] = []
        for number in range(launches):
            goal = samples * (number + 1) / launches, min_seconds * (number + 1) / launches
            with ExitStack() as stack:
                lanes = [
                    _open(stack, c, device, request, threads, _sum(done))
                    for c, request, done in zip(candidates, requests, collected, strict=True)
                ]
                rest = steady.before([lane.worker for lane in lanes])
                for lane in lanes:
                    _beat(lanes)
                    lane.rest = rest
                    lane.warm(warmup)
                facts.append(lanes[0].worker.request({"op": "facts"}, ANSWER_SECONDS))
                interleave(lanes, *goal)
                facts.append(lanes[0].worker.request({"op": "facts"}, ANSWER_SECONDS))
                steady.spin(lanes[0].worker)
                _end_to_end(lanes, candidates, list(whole.parts(pushed, 8)))
            for done, lane in zip(collected, lanes, strict=True):
                done.append(lane)
    flags = machine_flags(facts[0]["counters"], facts[-1]["counters"], emulated=facts[0]["card"]["emulated"])
    flags += steady.flags() + warnings_of(facts[0], facts[-1])
    pairs = zip(candidates, collected, strict=True)
    made = [_measurement(c, lanes, warmup, quick=quick, card=facts[0]["card"], machine=flags) for c, lanes in pairs]
    return mark_slow_int8([m.model_copy(update={"length": length}) for m in made])


@contextmanager
def opened(candidate: Candidate, device: Device, *, threads: int, inputs: Samples) -> Iterator[Lane]:
    """One file by itself: a worker that has loaded it and ``ROWS`` of its inputs."""
    with tempfile.TemporaryDirectory(prefix="distilledge-alone-") as folder, ExitStack() as stack:
        (rows,) = _inputs([candidate], device, inputs.spread(ROWS), None, Path(folder))
        yield _open(stack, candidate, device, rows, threads, Progress(0, 0.0))


def interleave(lanes: Sequence[Lane], samples: float, seconds: float) -> None:
    """Blocks in turn, at least one of each, until each lane has reached the goal.

    A lane that needs less time than the slowest is passed over while it is ahead by more than a block, so that all
    lanes end together and each is spread over the whole time.
    """
    while True:
        shares = [lane.progress.share(samples, seconds) for lane in lanes]
        if min(shares) >= 1 and all(lane.latency_ns for lane in lanes):
            return
        behind = min(shares)
        for lane, share in zip(lanes, shares, strict=True):
            if not lane.latency_ns or share - behind <= lane.last_block.share(samples, seconds):
                lane.time()


def mark_slow_int8(measurements: Sequence[Measurement]) -> tuple[Measurement, ...]:
    """Set ``int8_slower_than_float`` where the p50 is above that of the same role, runtime and threads in fp32."""
    float_p50 = {_peer(m): p50(m) for m in measurements if m.precision == "fp32"}
    return tuple(
        m.model_copy(update={"int8_slower_than_float": _peer(m) in float_p50 and p50(m) > float_p50[_peer(m)]})
        if m.precision.startswith("w8")
        else m
        for m in measurements
    )


def p50(measurement: Measurement) -> float:
    """Nanoseconds, model only, over all launches."""
    return statistics.median([ns for launch in measurement.launches for ns in launch.latency_ns])


def score(candidate: Candidate, device: Device, *, inputs: Samples, out: Path) -> Predictions:
    """Predict every picture or text with the exported file itself, on the device, through its own preprocessing.

    The logits lie in ``out / <name>.npy``, float32 (N, classes), in the order of ``inputs``; of tokens
    (N, max_length, K) with zeros behind the end of each text.
    """
    name = f"{candidate.name.replace(' ', '-').replace('/', '-')}.npy"
    with tempfile.TemporaryDirectory(prefix="distilledge-score-") as folder, device.start() as worker:
        _load(worker, candidate, device, 0)
        written = device.scratch(name)
        request = {"op": "score", **inputs.pushed(device, Path(folder)), "out": written}
        answer = worker.request({**request, "spec": candidate.exported.input_spec}, ANSWER_SECONDS)
    device.pull(written, out / name)
    return Predictions(
        name=candidate.name,
        runtime=candidate.exported.runtime,
        precision=candidate.exported.precision,
        role=candidate.role,
        split="test",
        logits=name,
        seconds=answer["seconds"],
    )


def _peer(measurement: Measurement) -> tuple[str, str, int, int | None]:
    return measurement.runtime, measurement.role, measurement.threads, measurement.length


def _load(worker: WorkerHandle, candidate: Candidate, device: Device, threads: int) -> dict[str, Any]:
    exported, directory = candidate.exported, Path(candidate.directory)
    files = list(device.push([directory / f for f in exported.files]))
    request = {
        "op": "load",
        "files": files,
        "tokenizer": files[-1] if is_text(exported) else "",
        "sha256": list(exported.sha256),
        "runtime": exported.runtime,
        "precision": exported.precision,
        "threads": threads,
    }
    return worker.request(request, LOAD_SECONDS)


def _open(stack: ExitStack, one: Candidate, device: Device, rows: Message, threads: int, before: Progress) -> Lane:
    worker = stack.enter_context(device.start())
    lane = Lane(worker, _load(worker, one, device, threads), before)
    worker.request({"op": "inputs", **rows}, ANSWER_SECONDS)
    return lane


def _sum(lanes: Sequence[Lane]) -> Progress:
    return lanes[-1].progress if lanes else Progress(0, 0.0)


def _beat(lanes: Sequence[Lane]) -> None:
    for lane in lanes:
        lane.worker.beat()


def _inputs(
    candidates: Sequence[Candidate], device: Device, samples: Samples, length: int | None, folder: Path
) -> list[Message]:
    """For each candidate the fields that name what it is timed on; one file for all that read it alike.

    Texts as they are go to the device, which makes their ids; pictures, and ids of one length, as a .npy.
    """
    if samples.text and length is None:
        texts = samples.pushed(device, folder)
        return [{**texts, "spec": c.exported.input_spec} for c in candidates]
    made: dict[str, Message] = {}
    for candidate in candidates:
        spec = candidate.exported.input_spec
        if key(spec, candidate.directory) not in made:
            path = folder / f"inputs-{len(made)}.npy"
            np.save(path, timed_arrays(samples, spec, Path(candidate.directory), length))
            made[key(spec, candidate.directory)] = {"path": device.push([path])[0]}
    return [made[key(c.exported.input_spec, c.directory)] for c in candidates]


def _end_to_end(lanes: Sequence[Lane], candidates: Sequence[Candidate], parts: Sequence[Message]) -> None:
    """Time files or texts to classes, a few of each lane in turn."""
    for part in parts:
        for lane, candidate in zip(lanes, candidates, strict=True):
            request = {"op": "end_to_end", **part, "spec": candidate.exported.input_spec}
            lane.end_to_end_ns += lane.worker.request(request, ANSWER_SECONDS)["latency_ns"]


def _measurement(
    candidate: Candidate,
    lanes: Sequence[Lane],
    warmup: int,
    *,
    quick: bool,
    card: dict[str, Any],
    machine: tuple[str, ...],
) -> Measurement:
    if candidate.role == "control":
        raise ValueError("the control is scored, not timed: it is the student's architecture")
    launches, loaded = tuple(lane.launch() for lane in lanes), lanes[0].loaded
    return Measurement(
        name=candidate.name,
        runtime=candidate.exported.runtime,
        precision=candidate.exported.precision,
        role=candidate.role,
        device=card,
        threads=loaded["threads"],
        warmup=warmup,
        quick=quick,
        launches=launches,
        runtime_version=loaded["runtime_version"],
        execution_precision=loaded["execution_precision"],
        flags=tuple(dict.fromkeys(fairness_flags(launches, threads=loaded["threads"]) + machine + short(launches))),
    )
