"""One file in one launch: its worker, and what has been timed of it in short blocks."""

from __future__ import annotations

import math
import statistics
from typing import Any, NamedTuple

from distilledge.targets.base import Launch, Rest
from distilledge.targets.devices.base import WorkerHandle

BLOCK_SECONDS = 0.12
"""A block's length. A switch leaves cold caches, so one untimed inference leads each block."""
ANSWER_SECONDS = 60.0


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
        self.wall_ns = 0
        self.cpu_ns: int | None = 0
        self.waited_ns: int | None = 0
        self.involuntary_switches: int | None = 0
        self.peak_rss_bytes: int | None = None
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
        self.cpu_ns = _plus(self.cpu_ns, block["cpu_ns"])
        self.wall_ns += block["wall_ns"]
        self.involuntary_switches = _plus(self.involuntary_switches, block["involuntary_switches"])
        self.peak_rss_bytes = block["peak_rss_bytes"]
        self.waited_ns = _plus(self.waited_ns, block["waited_ns"])

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


def _plus(total: int | None, more: int | None) -> int | None:
    """Unknown where a part is."""
    return None if total is None or more is None else total + more
