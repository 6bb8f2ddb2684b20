"""Audits after MLPerf's inference compliance: are timed inferences real ones?

TEST01: outputs of timed inferences equal those of an accuracy run of the same samples, through the device's own
decoding. TEST04: a sample that is repeated takes no less time than the same sample among others, else it is cached.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from distilledge.models.errors import DeviceError
from distilledge.targets.devices.base import Device, WorkerHandle
from distilledge.targets.lane import ANSWER_SECONDS, Lane
from distilledge.targets.measure import ROWS, Candidate, opened, score
from distilledge.targets.paired import bootstrapped
from distilledge.targets.protocol import Audit, AuditOutcome, Interval
from distilledge.targets.samples import Samples

TOLERANCE = 1e-4
"""Of TEST01, relative to the largest logit: threads may sum in another order, nothing else may differ."""
MOST_FASTER = 0.9
"""Of TEST04: MLPerf lets the repeated sample be 10 % faster."""
OUTPUTS = 8
"""Outputs read in each timed block of TEST01."""
BLOCKS = 4
REPEATS = 8
"""Inferences of one repeated sample in a row."""
ROUNDS = 5
Array = npt.NDArray[np.float32]


def audit(candidate: Candidate, device: Device, *, threads: int, inputs: Samples, seed: int = 0) -> tuple[Audit, ...]:
    """Both audits of a file. Raises ``DeviceError`` where the device's worker cannot return timed outputs."""
    with opened(candidate, device, threads=threads, inputs=inputs) as lane:
        lane.warm(ROWS)
        timed = _outputs(lane, device, min(ROWS, len(inputs.rows)), seed)
        ratios = _repeated(lane.worker, min(ROWS, len(inputs.rows)), lane.typical_ns)
    with tempfile.TemporaryDirectory(prefix="distilledge-audit-") as folder:
        found = score(candidate, device, inputs=inputs.spread(ROWS), out=Path(folder))
        scored: Array = np.load(Path(folder) / found.logits)
    return judge_outputs(candidate.name, timed, scored), judge_repeats(candidate.name, ratios)


def judge_outputs(name: str, timed: list[tuple[int, Array]], scored: Array) -> Audit:
    """``timed``: (row of ``scored``, logits). Tokens: of the length that the timed inference had."""
    largest = float(np.abs(scored).max()) or 1.0
    worst = 0.0
    for row, logits in timed:
        expected = scored[row][: len(logits)] if logits.ndim == 2 else scored[row]
        apart = float(np.abs(logits - expected).max()) if logits.shape == expected.shape else np.inf
        worst = max(worst, apart if np.isfinite(apart) else np.inf)  # max() would pass over a NaN
    worst = min(worst / largest, 1e9) if np.isfinite(worst) else 1e9
    outcome: AuditOutcome = "passes" if worst <= TOLERANCE else "fails"
    figure = Interval(value=worst, low=worst, high=worst)
    return Audit(name=name, audit="TEST01", outcome=outcome, compared=len(timed), figure=figure, limit=TOLERANCE)


def judge_repeats(name: str, ratios: npt.NDArray[np.float64]) -> Audit:
    """``ratios`` (rounds, samples): time of a repeated sample over its time among others.

    It fails where the whole interval lies below 0.9, passes where the whole of it lies above, and is undecided else.
    """
    figure = bootstrapped(list(ratios))
    outcome: AuditOutcome = "undecided"
    if figure.high < MOST_FASTER or figure.low >= MOST_FASTER:
        outcome = "fails" if figure.high < MOST_FASTER else "passes"
    return Audit(name=name, audit="TEST04", outcome=outcome, compared=ratios.shape[1], figure=figure, limit=MOST_FASTER)


def audit_flags(audits: tuple[Audit, ...]) -> tuple[str, ...]:
    """Names of the audits that failed: a file with one is not compared."""
    return tuple(a.audit for a in audits if a.outcome == "fails")


def _outputs(lane: Lane, device: Device, rows: int, seed: int) -> list[tuple[int, Array]]:
    rng = np.random.default_rng(seed)
    found: list[tuple[int, Array]] = []
    n = 2 * rows
    for _ in range(BLOCKS):
        chosen = [int(i) for i in rng.choice(n, size=min(OUTPUTS, n), replace=False)]
        timeout = ANSWER_SECONDS + 50 * n * lane.typical_ns / 1e9
        block = lane.worker.request({"op": "block", "n": n, "sample": chosen}, timeout)
        if "outputs" not in block:
            raise DeviceError("E6061", f"{device.name} does not return timed outputs", "set measure.audits to false")
        found += [(row, np.array(logits, np.float32)) for row, logits in block["outputs"]]
    return found


def _repeated(worker: WorkerHandle, rows: int, typical_ns: int) -> npt.NDArray[np.float64]:
    """(rounds, rows): in each round all samples in turn twice, then each by itself; the medians of both."""
    ratios = np.zeros((ROUNDS, rows))
    timeout = ANSWER_SECONDS + 50 * rows * REPEATS * typical_ns / 1e9
    for number in range(ROUNDS):
        n = rows * (REPEATS // 2)
        mixed = worker.request({"op": "block", "n": n, "lead": 1}, timeout)["latency_ns"]
        again = [
            worker.request({"op": "block", "n": REPEATS, "lead": 1, "only": row}, timeout)["latency_ns"]
            for row in range(rows)
        ]
        among = np.array(mixed, np.float64).reshape(REPEATS // 2, rows)
        ratios[number] = np.median(np.array(again, np.float64), axis=1) / np.median(among, axis=0)
    return ratios
