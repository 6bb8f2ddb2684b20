"""What a training says when it cannot go on, and its clock."""

from __future__ import annotations

import json
import time
from pathlib import Path

from distilledge.models.errors import RejectedError
from distilledge.pipeline.disk import atomic_write
from distilledge.pipeline.training.state import Position

SHOWN = 4
"""Pictures named in a message; all are in the file."""


class EtaClock:
    """Seconds between laps; a monotonic clock, so that changed wall clocks do not matter."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def restart(self) -> None:
        self._last = time.monotonic()

    def lap(self) -> float:
        now = time.monotonic()
        passed, self._last = now - self._last, now
        return passed


def dead_worker(error: RuntimeError) -> bool:
    """Whether torch's loader says that one of its processes is gone."""
    return str(error).startswith("DataLoader worker")


def non_finite(stage: str, position: Position, names: list[str], partial: Path) -> RejectedError:
    """The error that names the batch; all its pictures are written beside the last good state."""
    where = {"epoch": position.epoch + 1, "step": position.step + 1}
    path = partial / "bad_batch.json"
    atomic_write(path, json.dumps({**where, "pictures": names}, indent=1))
    key = "teacher" if stage == "teacher" else "student"
    return RejectedError(
        "E3605",
        f"{stage}: the loss or its gradient is not finite at epoch {where['epoch']}, step {where['step']}: "
        f"{listed(names)}; all in {path}",
        f"lower {key}.training.lr, or --set {key}.training.on_nan=skip",
    )


def listed(names: list[str]) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
