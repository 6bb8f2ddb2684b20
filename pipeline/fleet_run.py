"""Measuring on many devices at once: a thread for each, so that a slow or dead one holds up no other.

One measurement at a time runs on a device: its own lock (``ondevice/post.py``) holds others back.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from distilledge.models.errors import DistilledgeError, UsageError
from distilledge.pipeline.inventory import LOCAL, entry_of, load, opened
from distilledge.pipeline.recipe import Recipe
from distilledge.pipeline.record import RunRecord
from distilledge.pipeline.result_file import Failure, Result

T = TypeVar("T")
Say = Callable[[str], None]
WAITING, DONE = "waiting", "done"


class State(NamedTuple):
    """What a device is doing, in words, and since when (monotonic seconds)."""

    words: str
    since: float


class States:
    """By device, in the order given; any thread may say something, ``heard`` is told of each change."""

    def __init__(self, names: Sequence[str], heard: Callable[[str, str], None]) -> None:
        self._lock, self._heard = threading.Lock(), heard
        self._states = {name: State(WAITING, time.monotonic()) for name in names}

    def say(self, name: str, words: str) -> None:
        with self._lock:
            if self._states[name].words != words:
                self._states[name] = State(words, time.monotonic())
                self._heard(name, words)

    def now(self) -> dict[str, State]:
        with self._lock:
            return dict(self._states)


class Ended(NamedTuple, Generic[T]):
    """Of all devices: what was made, and why not."""

    made: dict[str, T]
    failed: dict[str, DistilledgeError]


def known(names: Sequence[str]) -> list[str]:
    """Devices of the inventory, each once. Raises ``UsageError`` for a name that is not there."""
    inventory = load()
    for name in names:
        if name != LOCAL:
            entry_of(name, inventory)
    return list(dict.fromkeys(names)) or [LOCAL]


def on_each(names: Sequence[str], work: Callable[[str, Say], T], states: States) -> Ended[T]:
    """``work(name, say)`` for each device at once. What the user can fix is kept by device; a bug is raised."""

    found: dict[str, T | BaseException] = {}

    def one(name: str) -> None:
        try:
            found[name] = work(name, lambda words: states.say(name, words))
            states.say(name, DONE)
        except DistilledgeError as error:
            found[name] = error
            states.say(name, f"failed: {error.what.splitlines()[0]}")
        except BaseException as error:  # raised below, in the thread that can
            found[name] = error

    threads = [threading.Thread(target=one, args=(name,), daemon=True) for name in names]  # an interrupt ends them too
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made: dict[str, T] = {}
    failed: dict[str, DistilledgeError] = {}
    for name in names:
        value = found[name]
        if isinstance(value, DistilledgeError):
            failed[name] = value
        elif isinstance(value, BaseException):
            raise value
        else:
            made[name] = value
    return Ended(made, failed)


def worst(failed: dict[str, DistilledgeError]) -> DistilledgeError | None:
    """The one of the largest exit code: the further down the table, the less the user's files are at fault."""
    return max(failed.values(), key=lambda error: error.exit_code, default=None)


def failure(error: DistilledgeError) -> Failure:
    return Failure(code=error.code, what=error.what, hint=error.hint, exit_code=error.exit_code)


def on_device(recipe: Recipe, device: str) -> Recipe:
    """The recipe for one device of a fleet, with a run folder of its own."""
    name = f"{recipe.name}.{device}"
    if len(name) > 64:
        raise UsageError(
            "E2073", f"{name} is longer than 64 characters", "give the recipe or the device a shorter name"
        )
    measure = recipe.measure.model_copy(update={"device": device})
    return recipe.model_copy(update={"name": name, "measure": measure})


def benchmark_fleet(
    recipe: Recipe,
    work: Path,
    devices: Sequence[str],
    *,
    command: str,
    states: States,
    run: Callable[[Recipe, Path, str, str], tuple[RunRecord, Path]],
) -> Ended[Path]:
    """Time and score a recipe's files on each device; the run folder of each.

    ``run(recipe, work, until, command)``. What does not need the device is in the store already; what a device needs
    of its own (int8 files for its CPU) is made by one thread at a time, so that no two wait for a lock of the store.
    """
    making = threading.Lock()

    def one(device: str, say: Say) -> Path:
        own = on_device(recipe, device)
        say("connecting")
        with opened(device) as reached:  # a dead one is not waited for with the others
            reached.facts()
        say("waiting for another export" if making.locked() else "exporting")
        with making:
            say("exporting")
            run(own, work, "verify", command)
        say("measuring")
        return run(own, work, "score", command)[1]

    return on_each(devices, one, states)


def gathered(results: Sequence[Result], failed: dict[str, DistilledgeError], command: str) -> Result:
    """One result of several devices."""
    first = results[0]
    return first.model_copy(
        update={
            "command": command,
            "devices": {name: card for r in results for name, card in r.devices.items()},
            "items": tuple(item for r in results for item in r.items),
            "failed": {name: failure(error) for name, error in failed.items()},
        }
    )
