"""The vocabulary of the data part: rows of a listing, findings of the audit, names of splits."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from distilledge.models.base import Value
from distilledge.models.errors import RejectedError
from distilledge.pipeline.record import Split

SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "unlabelled": "unlabelled",
    "unlabeled": "unlabelled",
}
"""What people call the splits -> what we call them. Compared in lower case."""

EXAMPLES = 200
"""Examples kept with each finding."""


class Row(NamedTuple):
    """One picture as the data set lists it. ``path`` starts from ``Listing.root``; ``line``: of the manifest, or 0."""

    path: str
    label: str | None
    group: str | None
    split: Split | None
    line: int = 0
    labels: tuple[str | None, ...] = ()
    """Of each task, where the recipe names several (``data.labels``); ``label`` is then what splits go by."""


class Finding(Value):
    """One thing that the audit says."""

    kind: str
    severity: Literal["info", "warning", "error"]
    count: int
    message: str
    examples: tuple[str, ...] = ()
    """At most ``EXAMPLES``; ``count`` is the true number."""


class Listing(NamedTuple):
    """Every picture of a data set, sorted by path. ``kind`` is a key of ``FORMATS``."""

    kind: str
    root: Path
    rows: list[Row]
    source: str
    """Named in messages: the folder, or the manifest file."""
    unpacked: bool = False
    """The pictures lie in the stage's own directory."""
    synthetic: bool = False
    notes: tuple[Finding, ...] = ()


def finding(
    kind: str, severity: Literal["info", "warning", "error"], message: str, examples: Sequence[str] = ()
) -> Finding:
    """A finding that counts its examples."""
    return Finding(
        kind=kind, severity=severity, count=len(examples), message=message, examples=tuple(examples[:EXAMPLES])
    )


def shown(path: str | os.PathLike[str]) -> str:
    """A path as text that every terminal and file takes: line breaks and undecodable bytes are escaped."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def few(items: Iterable[str], most: int = 5) -> str:
    """The first of them, and how many more there are."""
    every = list(items)
    rest = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + rest


def closest(name: str, choices: Iterable[str]) -> str | None:
    """The choice that looks most like ``name``; case does not count."""
    lower = {c.lower(): c for c in choices}
    near = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.6)
    return lower[near[0]] if near else None


def expand(path: str) -> str:
    """``$NAME``, ``${NAME}`` and ``~`` replaced. Raises RejectedError that names a variable which is not set."""
    for plain, braced in re.findall(r"\$(?:(\w+)|\{([^}]*)\})", path):
        name = plain or braced
        if name not in os.environ:
            raise RejectedError(
                "E3101",
                f"data.path: ${name} is not set in the environment ({path})",
                f"export {name}=/path/to/the/data",
            )
    return os.path.expanduser(os.path.expandvars(path))


def counted(counts: dict[str, int]) -> str:
    """``crack 3, good 120``, for messages."""
    return ", ".join(f"{shown(name)} {n}" for name, n in sorted(counts.items())) or "none"
