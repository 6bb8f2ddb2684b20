"""How programs on a device end, in words: one table of causes for each way to a device, one for what all share."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
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
    """Of what is printed on stderr; ``{found}`` is what it matched, or its groups where it has some."""
    again: bool = False


FAULTS = (
    Cause(
        "the Python of {name} has no package {found}",
        "E6038",
        "{shell} {python} -m pip install {found}",
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


def program_end(end: End, words: dict[str, str]) -> DistilledgeError:
    """The error for a program whose end the device reported.

    ``words``: ``name`` of the device, ``python`` there, ``shell``: the command that runs others there, and
    ``no_python``: what to do where there is none.
    """
    assert end.reported is not None
    name = words["name"]
    if end.reported - SHELL_SIGNAL in {s.value for s in signal.Signals}:
        return _killed(signal.Signals(end.reported - SHELL_SIGNAL).name, end, name)
    if end.reported in COMMAND_MISSING:
        what = f"{name} has no {words['python']}: {' '.join(end.stderr.split())[-200:]}"
        return DeviceError("E6037", what, words["no_python"])
    for cause in FAULTS:
        if re.search(cause.pattern, end.stderr):
            given = {**words, "found": _found(cause, end.stderr)}
            return DeviceError(cause.code, cause.what.format(**given), cause.hint.format(**given))
    return vanished(end.reported, end.doing, end.stderr)


def lost(end: End, ways: Sequence[Cause], words: dict[str, str]) -> LostError:
    """The error for a program that the device reported nothing of; the last of ``ways`` is for all that say nothing.

    What fails on the way may be another once a program runs: then the link is gone, whatever the client calls it.
    """
    starting = end.doing == "starting"
    cause = next(c for c in ways if re.search(c.pattern, end.stderr) and (starting or not c.again or not c.pattern))
    given = {**words, "doing": end.doing, "found": _found(cause, end.stderr)}
    error = LostError(cause.code, cause.what.format(**given), cause.hint.format(**given))
    error.again = cause.again and starting
    return error


def _found(cause: Cause, said: str) -> str:
    match = re.search(cause.pattern, said)
    return "" if match is None else "".join(filter(None, match.groups())) or match.group()


def _killed(name: str, end: End, device: str) -> DistilledgeError:
    if name == "SIGILL":
        what = f"a runtime on {device} uses instructions that its CPU lacks (SIGILL while {end.doing})"
        return DeviceError("E6040", what, "install another version of that runtime there, or another runtime")
    if name == "SIGKILL":
        what = f"the worker on {device} was killed while {end.doing}: its memory ran out, most likely"
        return DeviceError("E6041", what, "use a smaller model, or see dmesg there")
    return death(name, end.doing, end.stderr)
