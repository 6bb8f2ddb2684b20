"""What went wrong on a phone or on the way to it, in words: adb returns 0 when the connection breaks."""

from __future__ import annotations

from distilledge.models.errors import DistilledgeError
from distilledge.targets.devices.endings import Cause, LostError, lost, program_end
from distilledge.targets.devices.process import End

WAYS = (
    Cause(
        "{name} does not trust this machine's adb key",
        "E6071",
        "unlock the phone, accept the question it shows, then run this again",
        "unauthorized|failed to authenticate",
    ),
    Cause(
        "several devices are attached, and {name} says none of them",
        "E6073",
        "see: adb devices -l; then write its serial number into devices.yaml",
        "more than one device",
    ),
    Cause(
        "this user may not use {serial} over USB",
        "E6075",
        "add yourself to the group plugdev and install the udev rules (Debian: android-sdk-platform-tools-common)",
        "no permissions|insufficient permissions",
    ),
    Cause(
        "the adb server of this machine does not start or answer",
        "E6076",
        "see: adb start-server; ANDROID_ADB_SERVER_PORT must be a free port or that of an adb server",
        "cannot connect to daemon|failed to start daemon|failed to check server version|protocol fault",
    ),
    Cause(
        "{serial} cannot be reached",
        "E6074",
        "is it on this network, with debugging over TCP on? try: adb connect {serial}",
        "failed to connect|unable to connect|cannot connect|Connection refused|No route to host|timed out|resolve host",
        again=True,
    ),
    Cause(
        "{name} is offline",
        "E6072",
        "wake it up, plug it in again, or restart it",
        r"device (is )?(still )?offline|^offline",
        again=True,
    ),
    Cause(
        "{serial} is not attached",
        "E6070",
        "see: adb devices -l; plug it in and allow USB debugging in its developer options",
        "device .*not found|no devices",
        again=True,
    ),
    Cause(
        "{name} has started something else than Android: {found}",
        "E6083",
        "restart it: adb reboot",
        r"^(recovery|sideload|bootloader|rescue|host)\b",
    ),
    Cause(
        "{name} was lost while {doing}: the connection ended without a last word",
        "E6078",
        "run it again: what was done is kept, and nothing goes on running there",
        "",
        again=True,
    ),
)
"""To the device; the last is for all that says nothing."""
SILENT = Cause(
    "{name} gives no sign of life while {doing}",
    "E6077",
    "is it asleep, or hung? wake it up or restart it, then run this again",
    "",
)
NO_PYTHON = "most phones have none: name one in `python:` of devices.yaml; docs/android.md says what else can be done"


def refused(said: str, words: dict[str, str]) -> LostError:
    """The error for an adb that cannot start anything on the device."""
    return lost(End(1, None, "starting", said.strip()), WAYS, words)


def explain(end: End, words: dict[str, str]) -> DistilledgeError:
    """The error for a program on the phone that ended unasked, or was never reached.

    ``words``: ``name``, ``serial``, ``python``, ``shell``.
    """
    if end.silent:
        return lost(end, (SILENT,), words)
    if end.reported is not None:
        return program_end(end, {**words, "no_python": NO_PYTHON})
    return lost(end, WAYS, words)
