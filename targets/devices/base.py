"""The seam to a place where a model runs: it receives files and runs the worker."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from distilledge.models.errors import (
    DeviceError,
    DistilledgeError,
    IntegrityError,
    MissingPackageError,
    RejectedError,
    ResourceError,
)

Message = dict[str, Any]
PACKAGES = {"PIL": "pillow", "ai_edge_litert": "ai-edge-litert", "tflite_runtime": "ai-edge-litert"}
"""Module -> distribution, where the names differ."""
ON_DEVICE = {
    "integrity": ("not the file that was asked for", "E7020", "export the model again; the file changed since"),
    "picture": ("picture refused on the device", "E3020", "remove it, or run the data audit again"),
    "text": ("text refused on the device", "E3023", "remove it, or run the data audit again"),
    "shape": ("an input's shape", "E3040", "give --shape NAME=1x224x224x3 with every size"),
    "busy": ("the device is in use", "E6023", "wait for that run to end"),
    "space": ("no space left on the device", "E6024", "free some, or set another folder in devices.yaml"),
    "read-only": ("the device's folder cannot be written", "E6025", "set another folder in devices.yaml"),
    "unit": ("the device does not have the unit", "E6050", "change measure.units, or install a runtime that has it"),
    "refused": (
        "the unit does not take the file",
        "E6051",
        "choose another one in measure.units, or add one behind it that takes the rest",
    ),
    "damaged": ("a file was damaged on its way to the device", "E6026", "run it again"),
}
"""Kinds of refusals by ``ondevice/worker.py`` and ``ondevice/post.py``."""
ERRORS = {"E3": RejectedError, "E6": DeviceError, "E7": IntegrityError}
REFUSALS = ("SIGSEGV", "SIGILL", "SIGABRT", "SIGBUS", "SIGFPE")
"""Signals by which a runtime dies of its model or of the CPU."""


CHATTER = re.compile(r"INFO|WARNING|[IWE]\d{4} ")
"""Lines that runtimes print on stderr without being asked."""


class WorkerHandle(Protocol):
    """One running worker. A worker that dies never takes its parent along; what happened is raised by ``request``."""

    pid: int

    def request(self, message: Message, timeout_s: float) -> Message:
        """The answer. ``timeout_s``: longest silence; progress lines count as life.

        Raises ``IntegrityError``, ``RejectedError`` (picture, text, model, death by a fault), ``MissingPackageError``,
        ``ResourceError`` (time, memory, SIGKILL) or ``DeviceError`` (the worker is gone).
        """

    def beat(self) -> None:
        """Tell an idle worker that its parent lives."""

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Device(Protocol):
    """A place that files are pushed to and workers are started on."""

    name: str

    def push(self, files: Sequence[Path]) -> tuple[str, ...]:
        """Make files readable on the device; their paths there, in order."""

    def pull(self, path: str, to: Path) -> None:
        """Fetch a file that a worker wrote."""

    def scratch(self, name: str) -> str:
        """A path on the device where a worker may write a file."""

    def start(self) -> WorkerHandle: ...

    def facts(self) -> Message:
        """The device card (``ondevice.facts.device_card``)."""

    def clean(self) -> int:
        """Remove what was ever sent there; bytes that became free."""

    def close(self) -> None: ...


def stay(files: Sequence[Path]) -> tuple[str, ...]:
    """The places of files that need not be sent. Raises ``DeviceError`` for one that is not there."""
    missing = next((f for f in files if not f.is_file()), None)
    if missing is not None:
        raise DeviceError("E6022", f"no such file: {missing}", "run the stage that makes it again")
    return tuple(str(f.resolve()) for f in files)


def refusal(answer: Message) -> DistilledgeError:
    """The error that a worker's error record means."""
    kind, text, op = answer.get("kind"), " ".join(str(answer.get("text", "")).split()), answer.get("op")
    if kind == "missing":
        package = PACKAGES.get(text.partition(".")[0], text.partition(".")[0])
        return MissingPackageError("E4020", f"the device has no package {package}", f"pip install {package}")
    if kind == "memory":
        return ResourceError("E9020", f"out of memory in {op}: {text}", "use a smaller model or raise the memory limit")
    if kind in ON_DEVICE:
        what, code, hint = ON_DEVICE[kind]
        return ERRORS[code[:2]](code, f"{what}: {text}", hint)
    return RejectedError("E3021", f"the runtime failed in {op}: {text}", "check the file with: distilledge inspect")


def death(signal_name: str, doing: str, stderr: str) -> DistilledgeError:
    """The error for a worker that a signal ended."""
    last = _last_words(stderr)
    if "bad_alloc" in stderr or "out of memory" in stderr.lower():
        return ResourceError("E9021", f"out of memory ({signal_name}) while {doing}{last}", "raise the memory limit")
    if signal_name in REFUSALS:
        hint = "the runtime crashed on this file or this CPU; try another version of the runtime"
        return RejectedError("E3022", f"the worker was killed by {signal_name} while {doing}{last}", hint)
    hint = "SIGKILL mostly means that memory ran out: use a smaller model, or see dmesg"
    return ResourceError("E9022", f"the worker was killed by {signal_name} while {doing}{last}", hint)


def vanished(code: int | None, doing: str, stderr: str) -> DeviceError:
    """The error for a worker that is gone without having been killed or closed."""
    what = f"the worker ended (exit code {code}) while {doing}{_last_words(stderr)}"
    return DeviceError("E6020", what, "run it again with --debug")


def _last_words(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip() and not CHATTER.match(line)]
    return f": {lines[-1][:300]}" if lines else ""
