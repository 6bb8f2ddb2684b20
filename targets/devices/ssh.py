"""A board that is reached by ssh: nothing is installed there but Python and a runtime.

The OpenSSH client runs as a subprocess, so that the user's own configuration counts: jump hosts, agents, hardware keys,
known_hosts. An unknown host key is refused.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from distilledge.models.errors import DeviceError, DistilledgeError, MissingPackageError
from distilledge.targets.devices.process import End
from distilledge.targets.devices.remote import WATCH_SECONDS, RemoteDevice
from distilledge.targets.devices.ssh_errors import explain

OPTIONS = (
    "BatchMode=yes",
    "ConnectTimeout=10",
    "ControlMaster=auto",
    "ControlPersist=60",
)
TRUSTS_ANY = re.compile(r"\s*stricthostkeychecking[\s=]+[\"']?(no|off)\b", re.IGNORECASE)


class SshDevice(RemoteDevice):
    """``host``: as the ssh client takes it, also ``user@host`` or a name of ~/.ssh/config.

    ``options``: of ssh_config, such as ``IdentityFile=...``.
    """

    def __init__(
        self,
        name: str,
        host: str,
        *,
        port: int | None = None,
        options: Sequence[str] = (),
        python: str = "python3",
        folder: str = ".cache/distilledge",
        watch_s: float = WATCH_SECONDS,
    ) -> None:
        link = SshLink(name, host, port, options, python=python, watch_s=watch_s)
        super().__init__(name, link, python=python, folder=folder, watch_s=watch_s)


class SshLink:
    """One connection that all commands share."""

    alive = None

    def __init__(
        self, name: str, host: str, port: int | None, options: Sequence[str], *, python: str, watch_s: float
    ) -> None:
        check(host, options)
        if shutil.which("ssh") is None:
            raise MissingPackageError("E4047", "no ssh client on this machine", "install openssh-client")
        self._name, self._host, self._python = name, host, python
        self._sockets = Path(tempfile.mkdtemp(prefix="de-", dir="/tmp"))  # socket paths must be short
        own = (
            f"ControlPath={self._sockets}/%C",
            f"ServerAliveInterval={max(1, int(watch_s / 3))}",
            "ServerAliveCountMax=3",
        )
        given = [a for o in (*options, *OPTIONS, *own) for a in ("-o", o)]
        self._ssh = ["ssh", "-T", *given, *(("-p", str(port)) if port else ())]

    def command(self, line: str) -> list[str]:
        return [*self._ssh, "--", self._host, line]

    def reach(self) -> None:
        """The first command connects."""

    def explain(self, end: End) -> DistilledgeError:
        return explain(end, self._name, self._host, self._python)

    def close(self) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run([*self._ssh, "-O", "exit", "--", self._host], capture_output=True, timeout=10)
        shutil.rmtree(self._sockets, ignore_errors=True)


def check(host: str, options: Sequence[str]) -> None:
    """Raise ``DeviceError`` for what would not be a host, or would trust any."""
    if not host or host.startswith("-") or any(c.isspace() for c in host):
        raise DeviceError("E6027", f"not a host: {host!r}", "give user@host, or a name of ~/.ssh/config")
    wrong = next((o for o in options if TRUSTS_ANY.match(o)), None)
    if wrong:
        hint = "connect once with `ssh` and compare the key's fingerprint, or use StrictHostKeyChecking=accept-new"
        raise DeviceError("E6028", f"{wrong} would trust any host", hint)
