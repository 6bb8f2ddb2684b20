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

from distilledge.models.errors import DeviceError, DistilledgeError, MissingPackageError
from distilledge.targets.devices.adb_errors import explain, refused
from distilledge.targets.devices.process import End
from distilledge.targets.devices.remote import WATCH_SECONDS, RemoteDevice

FOLDER = "/data/local/tmp/distilledge"
"""Where the user of ``adb shell`` (uid 2000) may write and run programs."""
CALL_SECONDS = 20.0
SETTLE_SECONDS = 5.0
"""A connection that was just made may be offline for so long."""
SERIAL = re.compile(r"[A-Za-z0-9][\w.:\-\[\]()%]*")
TCP = re.compile(r".+:\d{1,5}")


class AdbDevice(RemoteDevice):
    """``serial``: as ``adb devices`` lists it; ``HOST:PORT`` is connected to; empty: the only one that is attached."""

    def __init__(
        self,
        name: str,
        serial: str = "",
        *,
        python: str = "python3",
        folder: str = FOLDER,
        watch_s: float = WATCH_SECONDS,
    ) -> None:
        super().__init__(
            name, AdbLink(name, serial, python=python, watch_s=watch_s), python=python, folder=folder, watch_s=watch_s
        )


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
