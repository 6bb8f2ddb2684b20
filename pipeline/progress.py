"""Progress on stderr: one changing line on a terminal, one line per 30 s elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distilledge.pipeline.training.loop import ProgressEvent

QUIET_SECONDS = 30.0
TERMINAL_SECONDS = 0.2


class Progress:
    """Receives the training loop's events; a context manager, so that the last line is ended."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._next = 0.0
        self._open = False

    def update(self, event: ProgressEvent) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (TERMINAL_SECONDS if self._terminal else QUIET_SECONDS)
        line = describe(event)
        print(
            f"\r\x1b[K{line}" if self._terminal else line,
            end="" if self._terminal else "\n",
            file=sys.stderr,
            flush=True,
        )
        self._open = self._terminal

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._open:
            print(file=sys.stderr)


def describe(event: ProgressEvent) -> str:
    """One line: where the training is, how fast, and when it will be done."""
    minutes, seconds = divmod(int(event.eta_seconds), 60)
    return (
        f"  {event.stage}: epoch {event.epoch}/{event.epochs}, step {event.step}/{event.steps}, loss {event.loss:.3f}, "
        f"{event.samples_per_second:.0f} samples/s, {minutes}:{seconds:02d} left"
    )
