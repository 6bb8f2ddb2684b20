"""Starting a browser of this machine with a profile of its own, and leaving nothing of it behind."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from distilledge.models.errors import MissingPackageError

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
FIREFOX = ("firefox", "firefox-esr")
CHROMIUM_OPTIONS = (
    "--headless=new",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-breakpad",
    "--disable-crash-reporter",
    "--disable-dev-shm-usage",
    "--disable-background-timer-throttling",
    "--disable-renderer-backgrounding",
    "--metrics-recording-only",
    "--password-store=basic",
)
KEEPER = """
import os, signal, subprocess, sys, threading
child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
def wait():
    code = child.wait()
    if code < 0:
        os.kill(os.getpid(), -code)
    os._exit(code)
threading.Thread(target=wait, daemon=True).start()
sys.stdin.read()
os.killpg(0, signal.SIGKILL)
"""
"""Ends the browser, and all of its group, when we end, in whatever way: then its stdin ends."""
LAST_WORDS, CHATTER = 2000, ":ERROR:dbus"
"""Of stderr. A headless Chromium complains of each desktop service that it does not find."""


class Browser:
    """A running browser. ``command``: words; ``{url}`` and ``{profile}`` are filled in, the address else comes last."""

    def __init__(self, command: Sequence[str], url: str) -> None:
        self._profile = tempfile.mkdtemp(prefix="distilledge-browser-")
        words = [word.replace("{profile}", self._profile).replace("{url}", url) for word in command]
        given = words if any("{url}" in word for word in command) else [*words, url]
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (closed in close)
        self._process = subprocess.Popen(
            [sys.executable, "-c", KEEPER, *given],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._stderr,
            start_new_session=True,
        )
        self.pid = self._process.pid

    def ended(self) -> str:
        """How it ended; empty while it runs."""
        code = self._process.poll()
        if code is None:
            return ""
        self._stderr.seek(0)
        lines = self._stderr.read()[-LAST_WORDS:].decode("utf-8", "replace").split("\n")
        if code < 0:
            return f"the browser was killed by {signal.Signals(-code).name}"
        last = next((line.strip() for line in reversed(lines) if line.strip() and CHATTER not in line), "")
        return f"the browser ended with exit code {code}{f': {last[:300]}' if last else ''}"

    def close(self) -> None:
        """End it and what it started, also what left its group; its profile goes too."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        for _ in range(50):
            left = processes_with(self._profile)
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if not left:
                break
            time.sleep(0.05)
        self._stderr.close()
        shutil.rmtree(self._profile, ignore_errors=True)


def processes_with(word: str) -> list[int]:
    """Processes that have the word, a path that is ours alone, in their command line; empty where there is no /proc."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if word.encode() in place.read_bytes():
                found.append(int(place.parent.name))
    return found


def command_of(given: str) -> list[str]:
    """``given`` as words, or the first browser on PATH with its options. Raises ``MissingPackageError``."""
    words = shlex.split(given)
    if len(words) > 1:
        _find(words[0])
        return words
    name = words[0] if words else next((n for n in (*CHROMIUM, *FIREFOX) if shutil.which(n)), "")
    if not name:
        what = f"no browser on PATH: {', '.join((*CHROMIUM, *FIREFOX))}"
        raise MissingPackageError("E4064", what, "install chromium, or set `open: manual` and open it anywhere")
    program = _find(name)
    if Path(name).name in FIREFOX:
        return [program, "--headless", "--no-remote", "--profile", "{profile}"]
    root = os.name == "posix" and os.geteuid() == 0  # Chromium's sandbox refuses root
    return [program, *CHROMIUM_OPTIONS, *(("--no-sandbox",) if root else ()), "--user-data-dir={profile}"]


def _find(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise MissingPackageError("E4065", f"no such browser: {name}", "see `command` in devices.yaml")
    return found
