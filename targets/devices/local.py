"""This machine as a device: the worker is a child process, files stay where they are."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, NoReturn, Self

from distilledge.models.errors import DeviceError, ResourceError
from distilledge.targets import ondevice
from distilledge.targets.devices.base import Message, death, refusal, vanished

START_SECONDS = 120.0
CLOSE_SECONDS = 5.0
POLL_SECONDS = 0.5


class LocalWorker:
    """A worker process; see ``ondevice/worker.py`` for what it understands."""

    def __init__(self, command: Sequence[str]) -> None:
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed in close)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # an interrupt at the terminal is for the parent
        )
        self.pid = self._process.pid
        self._lines: queue.Queue[Message | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._count = 0
        self._closed = False
        self._next(START_SECONDS, "starting")

    def request(self, message: Message, timeout_s: float) -> Message:
        self._count += 1
        doing = f"{message['op']} {self._subject(message)}".strip()
        self._write({"id": self._count, **message}, doing)
        while True:
            answer = self._next(timeout_s, doing)
            if answer.get("id") == self._count:
                break
        if not answer["ok"]:
            raise refusal(answer)
        return answer

    def beat(self) -> None:
        self._write({"op": "beat"}, "waiting")

    def close(self) -> None:
        """End the process, by force if it does not end by itself."""
        if self._closed:
            return
        self._closed = True
        if self._process.poll() is None and self._process.stdin is not None:
            try:
                self._process.stdin.write('{"op": "close"}\n')
                self._process.stdin.close()
                self._process.wait(CLOSE_SECONDS)
            except (OSError, subprocess.TimeoutExpired):
                self._kill()
        self._dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._kill()
        self.close()

    def _kill(self) -> None:
        """End the process and all of its group, which is its own (``start_new_session``)."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def _dispose(self) -> None:
        self._closed = True
        self._kill()  # also what a runtime has forked
        self._process.wait()
        self._reader.join(CLOSE_SECONDS)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None and not stream.closed:
                try:
                    stream.close()
                except BrokenPipeError:
                    continue
        self._stderr.close()

    def _subject(self, message: Message) -> str:
        files = message.get("files") or [message.get("path", "")]
        return str(files[0]) if message["op"] == "load" else ""

    def _write(self, message: Message, doing: str) -> None:
        if self._closed or self._process.stdin is None:
            raise DeviceError("E6021", "the worker is closed", "run the command again")
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            self._raise_end(doing)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                self._lines.put(json.loads(line))
        self._lines.put(None)

    def _next(self, timeout_s: float, doing: str) -> Message:
        """The next line; raises when none comes in time or the worker is gone."""
        try:
            line = self._await_line(timeout_s)
        except queue.Empty:
            self._dispose()
            hint = "the model may be too slow for this device; measure a smaller one"
            raise ResourceError("E9023", f"no answer for {timeout_s:.0f} s while {doing}", hint) from None
        if line is None or "end" in line:
            self._raise_end(doing)
        return line

    def _await_line(self, timeout_s: float) -> Message | None:
        """The next line, or None when the process is gone, even if a child of its own keeps the pipe open."""
        end = time.monotonic() + timeout_s
        while True:
            gone = self._process.poll() is not None
            try:
                return self._lines.get(timeout=max(0.0, min(POLL_SECONDS, end - time.monotonic())))
            except queue.Empty:
                if gone:
                    return None
                if time.monotonic() >= end:
                    raise

    def _raise_end(self, doing: str) -> NoReturn:
        code = self._process.wait()
        self._stderr.seek(0)
        stderr = self._stderr.read()[-4000:].decode("utf-8", "replace")
        self._dispose()
        if code < 0:
            raise death(signal.Signals(-code).name, doing, stderr)
        raise vanished(code, doing, stderr)


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
        missing = next((f for f in files if not f.is_file()), None)
        if missing is not None:
            raise DeviceError("E6022", f"no such file: {missing}", "run the stage that makes it again")
        return tuple(str(f.resolve()) for f in files)

    def pull(self, path: str, to: Path) -> None:
        shutil.copyfile(path, to)

    def scratch(self, name: str) -> str:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="distilledge-device-"))
            self._remove = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        return str(self._folder / name)

    def start(self) -> LocalWorker:
        return LocalWorker(self._command)

    def facts(self) -> Message:
        with self.start() as worker:
            card: Message = worker.request({"op": "facts"}, START_SECONDS)["card"]
        return card

    def close(self) -> None:
        if self._remove is not None:
            self._remove()
            self._folder = self._remove = None
