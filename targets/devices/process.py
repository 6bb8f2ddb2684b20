"""A worker as a child process of ours, here or behind a client such as ssh: JSON lines to it and back."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import IO, NamedTuple, NoReturn, Self

from distilledge.models.errors import DeviceError, DistilledgeError, ResourceError
from distilledge.targets.devices.base import Message, refusal

START_SECONDS = 120.0
CLOSE_SECONDS = 5.0
POLL_SECONDS = 0.5
BEAT_SECONDS = 1.0


class End(NamedTuple):
    """How a worker went, unasked."""

    code: int
    """Exit code of the child process; negative: the signal that killed it."""
    reported: int | None
    """What the far side reported of its program, as a shell counts it; None: it reported nothing."""
    doing: str
    stderr: str
    silent: bool = False
    """We ended it, because its device gave no sign any more."""


class WorkerProcess:
    """A running program that speaks as ``ondevice/worker.py``; ``ended`` says which error its unasked end is.

    ``beats``: tell it once a second that we live, also while it is busy. ``alive``: asked whether the device answers
    whenever the worker owes us an answer and said nothing for ``silence_s``; if not, its end is ``silent``.
    """

    def __init__(
        self,
        command: Sequence[str],
        ended: Callable[[End], DistilledgeError],
        *,
        beats: bool = False,
        alive: Callable[[], bool] | None = None,
        silence_s: float = 5.0,
    ) -> None:
        self._ended = ended
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
        self._writing = threading.Lock()
        self._count = 0
        self._reported: int | None = None
        self._closed = self._silent = False
        self._heard, self._owing = time.monotonic(), True
        if alive is not None:
            threading.Thread(target=self._keep_watch, args=(alive, silence_s), daemon=True).start()
        self._next(START_SECONDS, "starting")
        self._owing = False
        if beats:
            threading.Thread(target=self._keep_beating, daemon=True).start()

    def request(self, message: Message, timeout_s: float) -> Message:
        self._count += 1
        doing = f"{message['op']} {self._subject(message)}".strip()
        self._heard, self._owing = time.monotonic(), True
        self._write({"id": self._count, **message}, doing)
        while True:
            answer = self._next(timeout_s, doing)
            if answer.get("id") == self._count:
                break
        self._owing = False
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
                with self._writing:
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
            with self._writing:
                self._process.stdin.write(json.dumps(message) + "\n")
                self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            self._raise_end(doing)

    def _keep_beating(self) -> None:
        """Until the worker is gone; what it went of is for the next request to say."""
        while not self._closed and self._process.poll() is None and self._process.stdin is not None:
            with self._writing, contextlib.suppress(OSError, ValueError):
                self._process.stdin.write('{"op": "beat"}\n')
                self._process.stdin.flush()
            time.sleep(BEAT_SECONDS)

    def _keep_watch(self, alive: Callable[[], bool], silence_s: float) -> None:
        """End the process when its device does not answer. A thread, since writing to it may block for ever too."""
        while not self._closed and self._process.poll() is None:
            time.sleep(min(POLL_SECONDS, silence_s))
            heard = self._heard
            if not self._owing or time.monotonic() - heard < silence_s:
                continue
            if alive():
                self._heard = time.monotonic()
            elif self._owing and self._heard == heard:
                self._silent = True
                self._kill()
                return

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._heard = time.monotonic()
            if line.startswith("{") and line.endswith("\n"):  # not one that a lost connection cut
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
        if line is None or "end" in line or "exit" in line:
            self._reported = (line or {}).get("exit", self._reported)
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
        while self._reported is None and not self._lines.empty():
            self._reported = (self._lines.get() or {}).get("exit")
        raise self._ended(End(code, self._reported, doing, stderr, self._silent))
