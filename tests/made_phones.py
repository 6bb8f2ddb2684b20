"""Phones on the loopback interface, for tests: the real adb client and server, and a stand-in for a phone's daemon.

The stand-in speaks the protocol and runs this machine's own programs: it proves nothing of Android itself.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from made_boards import SCRIPTS, free_port

from distilledge.targets.devices.adb import AdbDevice

WATCH_SECONDS = 3.0
MARK = "DISTILLEDGE_TEST_PHONE"
"""In the environment of all that a phone runs."""
SHELL = "DISTILLEDGE_PHONE_SHELL"
"""What phones run lines with instead of this machine's shell: Android's own are mksh and toybox, which Debian has, such
as ``/usr/bin/env PATH=TOYBOX_LINKS /bin/mksh -c``.
"""


class Phone(NamedTuple):
    root: Path
    port: int
    pid: int

    @property
    def serial(self) -> str:
        return f"127.0.0.1:{self.port}"

    def device(self, **changes: Any) -> AdbDevice:
        given: dict[str, Any] = {"python": sys.executable, "folder": str(self.folder), "watch_s": WATCH_SECONDS}
        return AdbDevice("phone", **{"serial": self.serial, **given, **changes})

    def fault(self, command: str) -> None:
        with socket.socket(socket.AF_UNIX) as control:
            control.connect(str(self.root / "control"))
            control.sendall(f"{command}\n".encode())
            assert control.recv(100) == b"ok\n", command

    @property
    def folder(self) -> Path:
        return self.root / "disk" / "distilledge"

    @property
    def files(self) -> list[Path]:
        return [p for p in self.folder.rglob("*") if p.is_file()]

    def programs(self, *, within: float = 0.0) -> dict[int, str]:
        """What still runs there, waiting so long for it to end."""
        end = time.monotonic() + within
        while (found := self._programs()) and time.monotonic() < end:
            time.sleep(0.2)
        return found

    def _programs(self) -> dict[int, str]:
        found = {}
        for place in Path("/proc").glob("[0-9]*"):
            try:
                marked = f"{MARK}={self.port}".encode() in (place / "environ").read_bytes().split(b"\0")
                line = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if marked and line and int(place.name) != self.pid:
                found[int(place.name)] = line
        return found


@contextmanager
def adb_server(folder: Path) -> Iterator[None]:
    """An adb server and keys of our own; those of the user are not touched."""
    missing = [p for p in ("adb",) if shutil.which(p) is None]
    if missing or not (SCRIPTS / "fake_adbd.py").is_file():
        pytest.skip(f"not there: {', '.join(missing) or SCRIPTS / 'fake_adbd.py'}")
    ours = {"HOME": str(folder), "ANDROID_ADB_SERVER_PORT": str(free_port())}
    unset = ("ANDROID_SERIAL", "ADB_SERVER_SOCKET", "ADB_VENDOR_KEYS", "ANDROID_SDK_HOME")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ours.items():
            patch.setenv(name, value)
        for name in unset:
            patch.delenv(name, raising=False)
        try:
            yield
        finally:
            subprocess.run(["adb", "kill-server"], capture_output=True, timeout=20)


@contextmanager
def started(folder: Path, *options: str, before: str = "", root: Path | None = None) -> Iterator[Phone]:
    """``before``: a shell line in a mount name space of the phone's own (needs root), before its daemon starts.

    ``root``: where paths of ``adb push`` start.
    """
    port = free_port()
    (folder / "disk").mkdir(parents=True)
    words = [
        "--port",
        str(port),
        "--root",
        str(root or folder / "disk"),
        "--control",
        str(folder / "control"),
        *options,
    ]
    words += ["--shell", os.environ[SHELL]] if SHELL in os.environ else []
    daemon = [sys.executable, str(SCRIPTS / "fake_adbd.py"), *words]
    if before:
        daemon = ["unshare", "-m", "sh", "-c", f'{before} && exec "$@"', "phone", *daemon]
    process = subprocess.Popen(
        daemon, stdout=subprocess.PIPE, env={**os.environ, MARK: str(port)}, start_new_session=True
    )
    assert process.stdout is not None
    if not process.stdout.readline():
        pytest.fail(f"the stand-in did not start: {daemon}")
    phone = Phone(folder, port, process.pid)
    try:
        yield phone
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        for left in phone.programs():
            os.kill(left, signal.SIGKILL)
