"""What went wrong on a board or on the way to it, in words: exit codes of ssh mean too many things."""

from __future__ import annotations

from distilledge.models.errors import DistilledgeError
from distilledge.targets.devices.endings import Cause, LostError, lost, program_end
from distilledge.targets.devices.process import End

__all__ = ["LostError", "explain"]

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
NO_PYTHON = "install python3 there, or name it: `python:` in devices.yaml"


def explain(end: End, name: str, host: str, python: str) -> DistilledgeError:
    """The error for a program on the device that ended unasked, or was never reached."""
    words = {"name": name, "host": host, "python": python, "shell": f"ssh {host}", "no_python": NO_PYTHON}
    return lost(end, WAYS, words) if end.reported is None else program_end(end, words)
