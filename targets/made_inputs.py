"""What a file that others made is fed: arrays of the user, or arrays made from a seed, and the hash that tells them."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distilledge.models.errors import RejectedError, UsageError
from distilledge.targets.ondevice.ports import Array, Feed, Port

ROWS = 4
"""Made feeds that the timed inferences cycle through."""
MOST_ROWS = 32
RULE = (
    "floats uniform in [0, 1); 8-bit numbers uniform in their whole range; bool uniform; wider numbers 0 or 1, "
    "the ids and types that every table has; 1 where the name says mask"
)
"""How arrays are made, in words: it is part of a result."""


def made(ports: Sequence[Port], seed: int) -> list[Feed]:
    """``ROWS`` feeds by ``RULE``; the same for the same ports and seed. Raises ``RejectedError`` for text."""
    rng = np.random.default_rng(seed)
    return [[_made(one, rng) for one in ports] for _ in range(ROWS)]


def _made(one: Port, rng: np.random.Generator) -> Array:
    kind = _number(one)
    if kind.kind == "f":
        return rng.random(one.shape, np.float32).astype(kind)
    if kind.kind == "b":
        return rng.integers(0, 2, one.shape).astype(kind)
    if kind.itemsize == 1:
        range_ = np.iinfo(kind)
        return rng.integers(range_.min, range_.max, one.shape, kind, endpoint=True)
    if "mask" in one.name.lower():
        return np.ones(one.shape, kind)
    return rng.integers(0, 2, one.shape, kind)


def _number(one: Port) -> np.dtype[Any]:
    try:
        kind = np.dtype(one.dtype)
    except TypeError:
        kind = np.dtype(object)
    if kind.kind not in "fiub":
        hint = "give a file whose inputs are numbers or bool"
        raise RejectedError("E3050", f"input {one.name} takes {one.dtype}, which cannot be fed", hint)
    return kind


def given(path: Path, ports: Sequence[Port]) -> list[Feed]:
    """Feeds from a .npy (one input) or a .npz (arrays by input name).

    An array has the input's shape, or, where its first size is 1, as many rows as there are. Raises ``UsageError``.
    """
    found = _read(path, ports)
    rows = {p.name: _rows(path, p, found[p.name]) for p in ports}
    counts = {name: len(parts) for name, parts in rows.items()}
    if len(set(counts.values())) > 1:
        what = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise UsageError("E2065", f"inputs have different numbers of rows: {what}: {path}", "give as many of each")
    return [list(feed) for feed in zip(*rows.values(), strict=True)][:MOST_ROWS]


def _read(path: Path, ports: Sequence[Port]) -> Mapping[str, Array]:
    try:
        loaded = np.load(path, allow_pickle=False)
        found = {name: loaded[name] for name in loaded.files} if hasattr(loaded, "files") else loaded
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        hint = "write one with numpy.save or numpy.savez"
        raise UsageError("E2066", f"no arrays can be read from {path}: {reason}", hint) from None
    names = [p.name for p in ports]
    if not isinstance(found, dict):
        if len(names) > 1:
            what = f"{path} is one array, the file takes {', '.join(names)}"
            raise UsageError("E2067", what, f"numpy.savez('inputs.npz', **{{'{names[0]}': ...}})")
        return {names[0]: found}
    if set(found) != set(names):
        what = f"{path} holds {', '.join(found)}, the file takes {', '.join(names)}"
        raise UsageError("E2067", what, "name the arrays as the inputs")
    return found


def _rows(path: Path, one: Port, array: Array) -> list[Array]:
    if array.dtype != _number(one):
        what = f"{one.name} is {array.dtype}, the file takes {one.dtype}: {path}"
        raise UsageError("E2068", what, f"convert it: array.astype('{one.dtype}')")
    if array.shape == one.shape:
        return [np.ascontiguousarray(array)]
    if one.shape[:1] == (1,) and array.shape[1:] == one.shape[1:] and len(array):
        return [np.ascontiguousarray(row)[None] for row in array]
    shapes = " and ".join("x".join(map(str, shape)) for shape in (array.shape, one.shape))
    raise UsageError("E2069", f"{one.name}: shape of the array and of the input: {shapes}: {path}", "give --shape too")


def digest(ports: Sequence[Port], feeds: Sequence[Feed]) -> str:
    """sha256 over names, types, shapes and bytes."""
    found = hashlib.sha256()
    for feed in feeds:
        for one, array in zip(ports, feed, strict=True):
            found.update(f"{one.name}\0{array.dtype}\0{array.shape}\0".encode())
            found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()
