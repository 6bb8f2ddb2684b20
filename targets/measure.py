"""Timing and scoring exported files on a device.

In each launch every candidate has a worker process of its own, loaded once; short timed blocks alternate between them
(A B C A B C ...), so that heat, other load and clock changes meet all of them alike. Figures are compared only within
one such group. Defaults come from MLPerf Mobile's single stream: at least 1,024 samples and 60 s.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from distilledge.models.base import Value
from distilledge.targets.base import Exported, Measurement, Predictions
from distilledge.targets.devices.base import Device, Message, WorkerHandle
from distilledge.targets.fairness import fairness_flags, machine_flags, short, warnings_of
from distilledge.targets.lane import ANSWER_SECONDS, Lane, Progress
from distilledge.targets.ondevice.units import ON_CPU
from distilledge.targets.samples import Samples, is_text, key, timed_arrays
from distilledge.targets.steady import Steady

ROWS = 32
"""Pictures or texts that the timed inferences cycle through."""
LOAD_SECONDS = 300.0
ARRAYS = "arrays"
"""Kind of the input spec of a file that others made (``foreign.py``)."""


class Candidate(Value):
    """A file to be timed or scored; ``exported.files`` are relative to ``directory``."""

    name: str
    role: Literal["teacher", "student", "control", "previous"]
    directory: str
    exported: Exported
    units: dict[str, Any] | None = None
    """What it is run on, see ``ondevice.units.chosen``; None: the runtime's default."""


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
    progress: Callable[[float], None] | None = None,
    steady: Steady | None = None,
) -> tuple[Measurement, ...]:
    """Time one runtime's candidates, interleaved, until each has ``samples`` and ``min_seconds`` over all launches.

    ``threads`` 0: all cores. ``inputs``: read by each candidate's own input spec; ``end_to_end`` of them are timed from
    file or string to class in each launch, after peak memory is read. ``length``: every text has so many tokens.
    ``quick`` only labels. ``steady``: cools down and watches the clock. ``progress`` is told the share done, 0 to 1.
    Raises what ``WorkerHandle.request`` raises.
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
                interleave(lanes, *goal, (number, launches, progress))
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


Told = tuple[int, int, Callable[[float], None] | None]
"""Launches done, launches in all, and who is told the share."""


def interleave(lanes: Sequence[Lane], samples: float, seconds: float, told: Told = (0, 1, None)) -> None:
    """Blocks in turn, at least one of each, until each lane has reached the goal.

    A lane that needs less time than the slowest is passed over while it is ahead by more than a block, so that all
    lanes end together and each is spread over the whole time.
    """
    while True:
        shares = [lane.progress.share(samples, seconds) for lane in lanes]
        behind = min(shares)
        if told[2] is not None:
            told[2](min(1.0, behind) * (told[0] + 1) / told[1])
        if behind >= 1 and all(lane.latency_ns for lane in lanes):
            return
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
        load(worker, candidate, device, 0)
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


def _cpu_threads(candidate: Candidate, loaded: dict[str, Any]) -> int:
    """0, of which CPU time says nothing, where another unit computes."""
    on_cpu = candidate.units is None or set(candidate.units["names"]) <= ON_CPU
    return int(loaded["threads"]) if on_cpu else 0


def _peer(measurement: Measurement) -> tuple[str, str, int, int | None]:
    return measurement.runtime, measurement.role, measurement.threads, measurement.length


def load(worker: WorkerHandle, candidate: Candidate, device: Device, threads: int) -> dict[str, Any]:
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
        "units": candidate.units,
        **({"shapes": exported.input_spec["shapes"]} if exported.input_spec.get("kind") == ARRAYS else {}),
    }
    return worker.request(request, LOAD_SECONDS)


def _open(stack: ExitStack, one: Candidate, device: Device, rows: Message, threads: int, before: Progress) -> Lane:
    worker = stack.enter_context(device.start())
    loaded = load(worker, one, device, threads)
    told = worker.request({"op": "inputs", **rows}, ANSWER_SECONDS)  # a file of others is first run here
    return Lane(worker, {**loaded, **{k: v for k, v in told.items() if k == "first_inference_ns"}}, before)


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
    if samples.arrays:
        return [{"arrays": device.push([Path(samples.arrays[c.name])])[0]} for c in candidates]
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
    own = fairness_flags(launches, threads=_cpu_threads(candidate, loaded))
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
        flags=tuple(dict.fromkeys((*loaded.get("flags", ()), *own, *machine, *short(launches)))),
    )
