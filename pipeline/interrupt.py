"""SIGINT and SIGTERM: once asks the running stage to save and stop, twice ends the process at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A stage stopped because it was asked to, its state kept. ``exit_code`` is 130 (SIGINT) or 143 (SIGTERM)."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}; the same command goes on from here")
        self.number = number
        self.exit_code = 128 + number


class Interrupt:
    """What has been asked for so far; a stage polls ``requested`` where it can stop."""

    def __init__(self) -> None:
        self.requested: int | None = None

    def receive(self, number: int, _frame: FrameType | None) -> None:
        if self.requested is not None:
            os._exit(128 + number)  # nothing is written to a final name except by a rename, so nothing can be torn
        self.requested = number

    def raise_if_requested(self) -> None:
        if self.requested is not None:
            raise Interrupted(self.requested)


@contextmanager
def graceful() -> Iterator[Interrupt]:
    """Install the handlers for a block and put the former ones back. Outside the main thread signals are left alone."""
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    former = {number: signal.signal(number, interrupt.receive) for number in SIGNALS}
    try:
        yield interrupt
    finally:
        for number, action in former.items():
            signal.signal(number, action)
