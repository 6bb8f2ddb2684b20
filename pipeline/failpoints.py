"""Named points where a test can kill, break or delay a run: ``DISTILLEDGE_FAILPOINT=student.built:kill``.

Syntax: ``name[@N]:action``, several separated by commas; ``@N`` fires at the N-th hit only (default: every hit).
Actions: ``kill`` (SIGKILL, as a power cut would), ``raise`` (``FailpointError``), ``sleep[:seconds]`` (default 1).
A name that does not exist is refused, so that a test cannot pass by never firing.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter

from distilledge.models.errors import UsageError

VARIABLE = "DISTILLEDGE_FAILPOINT"

STAGES = ("data", "teacher", "student", "control", "export", "verify", "measure", "predict", "score", "gate", "report")
"""Kinds of stages, in the order of a run."""

COMMIT_POINTS = ("commit.write", "commit.fsync", "commit.manifest", "commit.rename", "commit.done")
"""Each stands before the step it names, ``commit.done`` after the last."""

TRAIN_POINTS = ("train.step", "train.checkpoint", "train.epoch")

FAILPOINTS = tuple(f"{stage}.{when}" for stage in STAGES for when in ("start", "built")) + COMMIT_POINTS + TRAIN_POINTS

_hits: Counter[str] = Counter()


class FailpointError(RuntimeError):
    """What ``raise`` raises: stands for a bug, so it is no ``DistilledgeError``."""


def failpoint(name: str) -> None:
    """Do here what the environment asks for; nothing (one dictionary look-up) when it asks for nothing.

    Raises ``UsageError`` (exit 2) if the environment names a point or an action that does not exist.
    """
    asked = os.environ.get(VARIABLE)
    if not asked:
        return
    _hits[name] += 1
    for entry in asked.split(","):
        point, at, action, seconds = _parse(entry)
        if point == name and at in (None, _hits[name]):
            _act(name, action, seconds)


def _parse(entry: str) -> tuple[str, int | None, str, float]:
    name, _, action = entry.strip().partition(":")
    action, _, seconds = action.partition(":")
    point, _, at = name.partition("@")
    if point not in FAILPOINTS or action not in ("kill", "raise", "sleep"):
        raise UsageError("E2001", f"{VARIABLE}: no such failpoint: {entry!r}", f"choose from {', '.join(FAILPOINTS)}")
    try:
        return point, int(at) if at else None, action, float(seconds or 1)
    except ValueError:
        raise UsageError("E2001", f"{VARIABLE}: not a number in {entry!r}", "write name@3:sleep:0.5") from None


def _act(name: str, action: str, seconds: float) -> None:
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "raise":
        raise FailpointError(f"failpoint {name}")
    time.sleep(seconds)
