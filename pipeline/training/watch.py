"""What a training says when it cannot go on, and its clock."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from distilledge.models.errors import RejectedError, ResourceError
from distilledge.pipeline.disk import atomic_write
from distilledge.pipeline.training.state import Position

ALLOCATION_FAILURES = ("can't allocate memory", "not enough memory", "out of memory")
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


@contextmanager
def resource_errors(names: Callable[[], list[str]]) -> Iterator[None]:
    """Inside, a loader process that died and memory that ended become ``ResourceError`` (exit 9).

    ``names``: the pictures of the step under way.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if str(error).startswith("DataLoader worker"):
            raise ResourceError(
                "E9603",
                f"a loader process died: {error}; the step under way: {listed(names())}",
                "run again to go on from the last checkpoint; where memory is short set `data.workers: 0`",
            ) from error
        if is_out_of_memory(error):
            raise ResourceError("E9604", f"out of memory: {error}", "close other programs, and run again") from error
        raise


def is_out_of_memory(error: BaseException) -> bool:
    """A GPU's or the host's allocator gave up (torch reports the latter as a plain ``RuntimeError``)."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in ALLOCATION_FAILURES)


def non_finite(stage: str, position: Position, names: list[str], partial: Path) -> RejectedError:
    """The error that names the batch; all its pictures are written beside the last good state."""
    where = {"epoch": position.epoch + 1, "step": position.step + 1}
    path = partial / "bad_batch.json"
    atomic_write(path, json.dumps({**where, "pictures": names}, indent=1))
    role = stage.removeprefix("pretrain-")
    key = ("teacher" if role in ("teacher", "scratch") else "student") + (".pretraining" if role != stage else "")
    return RejectedError(
        "E3605",
        f"{stage}: the loss or its gradient is not finite at epoch {where['epoch']}, step {where['step']}: "
        f"{listed(names)}; all in {path}",
        f"lower {key}.training.lr, or --set {key}.training.on_nan=skip",
    )


def listed(names: list[str]) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
