"""The timed loops of the worker: a block, frames on a camera's schedule, and a fixed loop that shows the clock.

Standard library only. Clocks and sleeping are arguments, so that tests can play time.
"""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from typing import Any

Message = dict[str, Any]
Calls = Sequence[Callable[[], object]]
UNDISTURBED = 0.98
"""CPU time over wall time of one single-threaded inference, above which nothing else ran meanwhile."""
SPIN_AHEAD_NS = 300_000
"""The end of a wait is spun: sleeping overshoots by 50 to 500 us."""


def timed_block(
    calls: Calls, n: int, *, single: bool, sample: Sequence[int] = (), output: Callable[[object], Any] | None = None
) -> Message:
    """Nanoseconds of ``n`` calls in turn; ``disturbed``: those whose CPU time fell behind (None: ``single`` is False).

    ``outputs`` of the calls numbered in ``sample``, as (row, logits): read between two timed calls.
    """
    latency_ns: list[int] = []
    disturbed: list[int] = []
    outputs: list[tuple[int, Any]] = []
    wanted, now, used = frozenset(sample), time.perf_counter_ns, time.process_time_ns
    for index, call in enumerate(islice(cycle(calls), n)):
        busy = used()
        start = now()
        result = call()
        taken = now() - start
        latency_ns.append(taken)
        if used() - busy < UNDISTURBED * taken:
            disturbed.append(index)
        if index in wanted and output is not None:
            outputs.append((index % len(calls), output(result)))
    return {"latency_ns": latency_ns, "disturbed": disturbed if single else None, "outputs": outputs}


def paced(
    calls: Calls,
    request: Message,
    *,
    now: Callable[[], int] = time.perf_counter_ns,
    sleep: Callable[[float], None] = time.sleep,
    used: Callable[[], int] = time.process_time_ns,
) -> Message:
    """Serve ``n`` frames, frame i arriving at i times ``period_ns`` whatever became of those before it.

    First come, first served; a frame that arrives while ``queue`` others wait is dropped (None: never). Returns for
    each frame when it was begun and done, in nanoseconds from the first arrival; -1, -1 where it was dropped.
    """
    if not calls:
        raise ValueError("no inputs are loaded")
    period, queue = request["period_ns"], request.get("queue")
    frames: list[tuple[int, int]] = []
    waiting: deque[int] = deque()
    """When the frames begin that had not begun at the arrival at hand."""
    cpu = 0
    gc.collect()
    gc.disable()
    begin = now() + period
    for number, call in enumerate(islice(cycle(calls), request["n"])):
        arrival = number * period
        while waiting and waiting[0] <= arrival:
            waiting.popleft()
        if queue is not None and len(waiting) >= queue:
            frames.append((-1, -1))
            continue
        _wait(begin + arrival, now, sleep)
        busy, start = used(), now() - begin
        call()
        frames.append((start, now() - begin))
        cpu += used() - busy
        waiting.append(start)
    gc.enable()
    return {"frames": frames, "cpu_ns": cpu}


def _wait(until: int, now: Callable[[], int], sleep: Callable[[float], None]) -> None:
    while (left := until - now()) > 0:
        if left > SPIN_AHEAD_NS:
            sleep((left - SPIN_AHEAD_NS) / 1e9)


def spin(request: Message) -> Message:
    """CPU nanoseconds of ``repeats`` runs of one integer loop; ``n`` 0: as long as ``seconds``, and told."""
    n = request.get("n") or _long_enough(request["seconds"])
    return {"n": n, "cpu_ns": [_spun(n) for _ in range(request["repeats"])]}


def _long_enough(seconds: float) -> int:
    n, taken = 10_000, 0
    while (taken := _spun(n)) < seconds * 1e8:
        n *= 4
    return int(n * seconds * 1e9 / taken) + 1


def _spun(n: int) -> int:
    start, x = time.thread_time_ns(), 1
    for _ in range(n):
        x = (x * 1103515245 + 12345) & 0x7FFFFFFF
    return time.thread_time_ns() - start
