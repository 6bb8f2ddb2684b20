"""What devices are doing, on stderr: a live table on a terminal, elsewhere a line for each change and each 30 s."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from distilledge.pipeline.fleet_run import States

QUIET_SECONDS = 30.0


@contextmanager
def shown(names: Sequence[str]) -> Iterator[States]:
    """The states to speak to, shown as long as the block runs."""
    if not sys.stderr.isatty():
        yield States(names, Lines().heard)
        return
    from rich.console import Console
    from rich.live import Live

    states = States(names, lambda _name, _words: None)
    with Live(get_renderable=lambda: table(states), console=Console(stderr=True), refresh_per_second=4):
        yield states


class Lines:
    """A line where the kind of work changes; of a share that grows one each 30 s."""

    def __init__(self) -> None:
        self._said: dict[str, tuple[str, float]] = {}

    def heard(self, name: str, words: str) -> None:
        kind, now = words.partition(" ")[0], time.monotonic()
        before = self._said.get(name, ("", 0.0))
        if kind == before[0] and now - before[1] < QUIET_SECONDS:
            return
        self._said[name] = kind, now
        print(f"{name}: {words}", file=sys.stderr, flush=True)


def table(states: States) -> Any:
    """Device, state, seconds in it."""
    from rich.table import Table

    made = Table("device", "state", "", box=None, pad_edge=False)
    for name, (words, since) in states.now().items():
        ended = words == "done" or words.startswith("failed")
        style = {"d": "green", "f": "red"}.get(words[0], "") if ended else ""
        made.add_row(name, words, "" if ended else f"{time.monotonic() - since:.0f} s", style=style)
    return made
