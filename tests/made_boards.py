"""Real boards on the loopback interface, for tests: started by the scripts of the shared folder, stopped after."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from distilledge.targets.devices.ssh import SshDevice

SCRIPTS = Path(os.environ.get("DISTILLEDGE_SHARED", Path(__file__).parents[2] / "shared")).resolve() / "boards"
WATCH_SECONDS = 3.0


class Board(NamedTuple):
    directory: Path
    port: int
    key: Path
    fields: dict[str, str]

    def device(self, **changes: Any) -> SshDevice:
        given: dict[str, Any] = {
            "port": self.port,
            "options": (f"UserKnownHostsFile={self.directory}/known_hosts", f"IdentityFile={self.key}"),
            "python": self.fields["BOARD_PYTHON"],
            "watch_s": WATCH_SECONDS,
        }
        return SshDevice("board", f"{self.fields['BOARD_USER']}@127.0.0.1", **{**given, **changes})

    def fault(self, *words: str) -> str:
        command = [str(SCRIPTS / "board-fault.sh"), str(self.directory), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout

    def programs(self, *, within: float = 0.0) -> str:
        """What logins have started and still runs, waiting so long for it to end."""
        end = time.monotonic() + within
        while (found := self.fault("programs")) and time.monotonic() < end:
            time.sleep(0.2)
        return found

    @property
    def files(self) -> list[Path]:
        """All that lies in the folder on the board, seen from here."""
        init = subprocess.run(
            ["pgrep", "-P", (self.directory / "pid").read_text().strip()], capture_output=True, text=True
        )
        home = Path(f"/proc/{init.stdout.split()[0]}/root{self.directory}/rootfs/home/{self.fields['BOARD_USER']}")
        return [p for p in (home / ".cache" / "distilledge").rglob("*") if p.is_file()]


def needs(*programs: str) -> None:
    """Skip with the reason where a board cannot be started."""
    missing = [p for p in programs if shutil.which(p) is None and not Path("/usr/sbin", p).exists()]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    if os.geteuid() != 0:
        pytest.skip("a board needs root: mounts and chroot")
    if not SCRIPTS.is_dir():
        pytest.skip(f"no board scripts: {SCRIPTS}")


@contextmanager
def started(folder: Path, kind: str, *options: str, **environment: str) -> Iterator[Board]:
    """``kind``: ssh (this machine's own processor) or arm64 (emulated)."""
    key = folder / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    port = free_port()
    command = [str(SCRIPTS / f"setup-{kind}-board.sh"), str(folder / "board"), str(port), f"{key}.pub", *options]
    made = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=900)
    if made.returncode:
        pytest.fail(f"{command[0]}: {made.stderr[-2000:]}")
    lines = (folder / "board" / "board.env").read_text().splitlines()
    fields = dict(line.strip().split("=", 1) for line in lines if "=" in line)
    try:
        yield Board(folder / "board", port, key, fields)
    finally:
        subprocess.run([str(SCRIPTS / f"stop-{kind}-board.sh"), str(folder / "board")], capture_output=True, timeout=60)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
