"""This machine as a device: the worker is a child process, files stay where they are."""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path

from distilledge.models.errors import DistilledgeError
from distilledge.targets import ondevice
from distilledge.targets.devices.base import Message, death, stay, vanished
from distilledge.targets.devices.process import START_SECONDS, End, WorkerProcess


class LocalDevice:
    """``memory_bytes``: limit of each worker's address space (RLIMIT_AS), None for no limit."""

    name = "local"

    def __init__(
        self, *, python: str = sys.executable, memory_bytes: int | None = None, silence_s: float = 300
    ) -> None:
        worker = Path(ondevice.__path__[0]) / "worker.py"
        self._command = [python, str(worker), "--silence", str(silence_s), "--memory", str(memory_bytes or 0)]
        self._folder: Path | None = None
        self._remove: weakref.finalize[..., LocalDevice] | None = None

    def push(self, files: Sequence[Path]) -> tuple[str, ...]:
        return stay(files)

    def pull(self, path: str, to: Path) -> None:
        shutil.copyfile(path, to)

    def scratch(self, name: str) -> str:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="distilledge-device-"))
            self._remove = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        return str(self._folder / name)

    def start(self) -> WorkerProcess:
        return WorkerProcess(self._command, ended)

    def facts(self) -> Message:
        with self.start() as worker:
            card: Message = worker.request({"op": "facts"}, START_SECONDS)["card"]
        return card

    def clean(self) -> int:
        return 0  # nothing is sent

    def close(self) -> None:
        if self._remove is not None:
            self._remove()
            self._folder = self._remove = None


def ended(end: End) -> DistilledgeError:
    if end.code < 0:
        return death(signal.Signals(-end.code).name, end.doing, end.stderr)
    return vanished(end.code, end.doing, end.stderr)
