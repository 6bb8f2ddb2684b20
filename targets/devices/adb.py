"""A phone that is reached by adb, over USB or TCP: nothing is installed there.

The adb client of this machine runs as a subprocess, with the user's own server and keys. It is never told to end a
server; it starts one where there is none. adb waits for ever and returns 0 when the connection breaks: so each call has
a time limit, the device is asked whether it lives whenever it is silent, and only a program's own last line counts.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from distilledge.models.errors import DeviceError, DistilledgeError, MissingPackageError
from distilledge.targets.devices.adb_errors import explain, refused
from distilledge.targets.devices.base import Message, refusal
from distilledge.targets.devices.native import NativeTiming, Place, Settings, card, facts, remove_all, time_file
from distilledge.targets.devices.process import End
from distilledge.targets.devices.remote import WATCH_SECONDS, RemoteDevice

FOLDER = "/data/local/tmp/distilledge"
"""Where the user of ``adb shell`` (uid 2000) may write and run programs."""
CALL_SECONDS = 20.0
SLOWEST = 100_000.0
"""Bytes per second of a link that is not given up."""
NOT_WRITTEN = {"space": "No space left", "read-only": "Permission denied|Read-only file system"}
SETTLE_SECONDS = 5.0
"""A connection that was just made may be offline for so long."""
SERIAL = re.compile(r"[A-Za-z0-9][\w.:\-\[\]()%]*")
TCP = re.compile(r".+:\d{1,5}")


class AdbDevice(RemoteDevice):
    """``serial``: as ``adb devices`` lists it; ``HOST:PORT`` is connected to; empty: the only one that is attached.

    ``native``: runtime -> its own timing program and the libraries beside it, files of this machine.
    """

    def __init__(
        self,
        name: str,
        serial: str = "",
        *,
        python: str = "python3",
        folder: str = FOLDER,
        native: Mapping[str, Sequence[str]] | None = None,
        watch_s: float = WATCH_SECONDS,
    ) -> None:
        self._link = AdbLink(name, serial, python=python, watch_s=watch_s)
        self.native = native or {}
        super().__init__(name, self._link, python=python, folder=folder, watch_s=watch_s)

    def clean(self) -> int:
        if not self.native:
            return super().clean()
        self._link.reach()
        return remove_all(self._place)

    def shell_card(self) -> Message:
        """What can be said of a phone without Python: fields of ``facts``."""
        self._link.reach()
        return card(facts(self._shell))

    @property
    def _place(self) -> Place:
        return Place(self._shell, self._link.send, self._home, self.name)

    def time_file(self, runtime: str, model: Sequence[Path], settings: Settings) -> NativeTiming:
        """Time a file by ``native[runtime]``; needs no Python there."""
        if runtime not in self.native:
            hint = f"name one in devices.yaml, as in: native: {{{runtime}: PATH}}; docs/android.md says where from"
            raise DeviceError("E6087", f"{self.name} has no program that times files of {runtime}", hint)
        program = [Path(path).expanduser() for path in self.native[runtime]]
        return time_file(self._place, runtime, program, model, settings)


class AdbLink:
    """Each command is a stream of the connection that the adb server holds."""

    def __init__(self, name: str, serial: str, *, python: str, watch_s: float) -> None:
        if serial and not SERIAL.fullmatch(serial):
            raise DeviceError("E6081", f"not a serial number: {serial!r}", "see: adb devices -l")
        if shutil.which("adb") is None:
            hint = "install adb (Debian's package adb, or Android's platform tools)"
            raise MissingPackageError("E4055", "no adb client on this machine", hint)
        self._name, self._serial, self._python, self._watch = name, serial, python, watch_s
        self._adb = ["adb", *(("-s", serial) if serial else ())]

    def command(self, line: str) -> list[str]:
        return [*self._adb, "shell", "-T", line]

    def reach(self) -> None:
        """Raises ``DistilledgeError`` unless the device is there, lets us in, and tells exit codes apart."""
        self._call("start-server", output=False)
        if TCP.fullmatch(self._serial):
            self._connect()
        said = self._state()
        if said.stdout.strip() != "device":
            raise refused(said.stdout + said.stderr, self._words)
        if "shell_v2" not in self._call("features").stdout.split():
            what = f"{self._name} has an adb that mixes a program's output with its errors (Android before 7)"
            raise DeviceError("E6079", what, "use a phone with Android 7 or later")

    def alive(self) -> bool:
        """Whether a program can be started there."""
        try:
            return self._run(*self.command("true"), seconds=2 * self._watch / 3).returncode == 0
        except subprocess.TimeoutExpired:
            return False

    def send(self, path: Path, to: str) -> None:
        """Copy a file there. Raises ``DeviceError``; ``LostError`` where it may go better another time."""
        limit = CALL_SECONDS + path.stat().st_size / SLOWEST
        try:
            said = self._run(*self._adb, "push", str(path), to, seconds=limit)
        except subprocess.TimeoutExpired:
            raise self.explain(End(-9, None, f"sending {path.name}", "", silent=True)) from None
        if said.returncode:
            words = said.stdout + said.stderr
            kind = next((kind for kind, mark in NOT_WRITTEN.items() if re.search(mark, words)), None)
            last = words.strip().rpartition("\n")[2]
            end = End(said.returncode, None, f"sending {path.name}", words)
            raise refusal({"kind": kind, "text": last}) if kind else self.explain(end)

    def explain(self, end: End) -> DistilledgeError:
        return explain(end, self._words)

    def close(self) -> None:
        """The server and its connections are the user's."""

    @property
    def _words(self) -> dict[str, str]:
        serial = self._serial or "the only device"
        return {"name": self._name, "serial": serial, "python": self._python, "shell": f"{' '.join(self._adb)} shell"}

    def _connect(self) -> None:
        said = self._call("connect", self._serial, device=False)
        if "already connected" in said.stdout and self._call("get-state").stdout.strip() != "device":
            self._call("disconnect", self._serial, device=False)  # a connection that broke and was not noticed
            said = self._call("connect", self._serial, device=False)
        if not re.search("connected to|failed to authenticate", said.stdout):
            raise refused(said.stdout + said.stderr, self._words)

    def _state(self) -> subprocess.CompletedProcess[str]:
        end = time.monotonic() + SETTLE_SECONDS
        while "offline" in (said := self._call("get-state")).stdout + said.stderr and time.monotonic() < end:
            time.sleep(0.25)
        return said

    def _call(self, *words: str, device: bool = True, output: bool = True) -> subprocess.CompletedProcess[str]:
        command = [*(self._adb if device else ["adb"]), *words]
        try:
            return self._run(*command, seconds=CALL_SECONDS, output=output)
        except subprocess.TimeoutExpired:
            what = f"`{' '.join(command)}` gave no answer for {CALL_SECONDS:.0f} s"
            raise DeviceError("E6082", what, "see `adb devices`; restart the phone, or plug it in again") from None

    def _run(self, *command: str, seconds: float, output: bool = True) -> subprocess.CompletedProcess[str]:
        """Without ``output`` nothing is read: a server that is started would hold the pipes open."""
        pipe = subprocess.PIPE if output else subprocess.DEVNULL
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, timeout=seconds, errors="replace"
        )
