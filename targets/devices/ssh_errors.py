"""What went wrong on a board or on the way to it, in words: exit codes of ssh mean too many things."""

from __future__ import annotations

import re
import signal
from typing import NamedTuple

from distilledge.models.errors import DeviceError, DistilledgeError
from distilledge.targets.devices.base import death, vanished
from distilledge.targets.devices.process import End


class LostError(DeviceError):
    """The way to the device failed, not the device. ``again``: it may be another time."""

    again = False


class Cause(NamedTuple):
    what: str
    code: str
    hint: str
    pattern: str
    """Of what is printed on stderr; its group is ``{found}``."""
    again: bool = False


WAYS = (
    Cause(
        "the host key of {host} changed",
        "E6031",
        "if the board was set up anew: ssh-keygen -R {host}; else somebody may stand in between",
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
    ),
    Cause(
        "the host key of {host} is not known",
        "E6032",
        "compare it once: ssh {host}",
        "Host key verification failed",
    ),
    Cause(
        "{host} does not let us in without a password",
        "E6033",
        "ssh-copy-id {host}, or ssh-add your key",
        "Permission denied|Too many authentication failures",
    ),
    Cause("no such host: {host}", "E6034", "see host in devices.yaml", "Could not resolve hostname"),
    Cause(
        "ssh refuses an option", "E6035", "see options in devices.yaml", "Bad configuration option|command-line: line"
    ),
    Cause(
        "{host} cannot be reached",
        "E6036",
        "is it on, and on this network? try: ssh {host} true",
        "Connection refused|Connection timed out|Operation timed out|No route to host|Network is unreachable|"
        "Connection reset|kex_exchange_identification|Connection closed by",
        again=True,
    ),
    Cause(
        "{name} was lost while {doing}: the connection ended without a last word",
        "E6030",
        "run it again: what was done is kept, and nothing goes on running there",
        "",
        again=True,
    ),
)
"""To the device; the last is for all that says nothing."""
FAULTS = (
    Cause(
        "the Python of {name} has no package {found}",
        "E6038",
        "ssh {host} {python} -m pip install {found}",
        r"No module named '([^'.]+)",
    ),
    Cause(
        "the C library of {name} is too old for a package: it lacks {found}",
        "E6039",
        "install an older version of the runtime there, or a newer system",
        r"version `(GLIBC\w*_[\d.]+)' not found",
    ),
)
"""Of programs that ended with an error."""
SHELL_SIGNAL = 128
"""A shell reports a program that a signal killed as 128 and the signal."""
COMMAND_MISSING = (126, 127)


def explain(end: End, name: str, host: str, python: str) -> DistilledgeError:
    """The error for a program on the device that ended unasked, or was never reached."""
    if end.reported is None:
        return _lost(end, name, host)
    if end.reported - SHELL_SIGNAL in {s.value for s in signal.Signals}:
        return _killed(signal.Signals(end.reported - SHELL_SIGNAL).name, end, name)
    if end.reported in COMMAND_MISSING:
        what = f"{name} has no {python}: {' '.join(end.stderr.split())[-200:]}"
        return DeviceError("E6037", what, "install python3 there, or name it: `python:` in devices.yaml")
    for cause in FAULTS:
        if found := re.search(cause.pattern, end.stderr):
            words = {"name": name, "host": host, "python": python, "found": "".join(found.groups())}
            return DeviceError(cause.code, cause.what.format(**words), cause.hint.format(**words))
    return vanished(end.reported, end.doing, end.stderr)


def _lost(end: End, name: str, host: str) -> LostError:
    """What fails on the way may be another once a program runs: then the link is gone, whatever ssh calls it."""
    starting = end.doing == "starting"
    cause = next(c for c in WAYS if re.search(c.pattern, end.stderr) and (starting or not c.again or not c.pattern))
    words = {"name": name, "host": host, "doing": end.doing}
    error = LostError(cause.code, cause.what.format(**words), cause.hint.format(**words))
    error.again = cause.again and starting
    return error


def _killed(name: str, end: End, device: str) -> DistilledgeError:
    if name == "SIGILL":
        what = f"a runtime on {device} uses instructions that its CPU lacks (SIGILL while {end.doing})"
        return DeviceError("E6040", what, "install another version of that runtime there, or another runtime")
    if name == "SIGKILL":
        what = f"the worker on {device} was killed while {end.doing}: its memory ran out, most likely"
        return DeviceError("E6041", what, "use a smaller model, or see dmesg there")
    return death(name, end.doing, end.stderr)
