"""The worker's ear: requests from stdin, and ends that nobody asks for. Standard library only."""

from __future__ import annotations

import json
import os
import queue
import threading
import time
from collections.abc import Callable
from typing import IO, Any

Message = dict[str, Any]
GRACE_SECONDS = 2.0
"""After the end of stdin, a request in progress gets so long before the process ends."""


def read_requests(
    source: IO[str], requests: queue.Queue[Message | None], report: Callable[[Message], None], heard: Callable[[], None]
) -> None:
    """Fill the queue; None at the end of stdin, after which the process ends even if a request hangs."""
    for line in source:
        heard()
        try:
            requests.put(json.loads(line))
        except ValueError:
            requests.put({"op": "not JSON"})
    requests.put(None)
    time.sleep(GRACE_SECONDS)
    report({"end": "end of input"})
    os._exit(0)


class Watch:
    """Ends the process ``seconds`` after the last line that was heard; 0: never."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._last = seconds, time.monotonic()
        if seconds:
            threading.Thread(target=self._look, daemon=True).start()

    def heard(self) -> None:
        self._last = time.monotonic()

    def _look(self) -> None:
        while time.monotonic() - self._last < self._seconds:
            time.sleep(min(1.0, self._seconds / 4))
        os._exit(0)
