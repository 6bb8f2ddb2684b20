"""Inputs and outputs of any model file: names, types, shapes, and the arrays that are fed to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]
Feed = list[Array]
"""One array for each input, in the order of the ports, batch included."""

NUMPY_TYPES = {
    "float": "float32",
    "double": "float64",
    "f16": "float16",
    "f32": "float32",
    "f64": "float64",
    "boolean": "bool",
    **{f"{sign}{bits}": f"{'u' * (sign == 'u')}int{bits}" for sign in "iu" for bits in (8, 16, 32, 64)},
}
"""A runtime's word for a type -> numpy's, where they differ."""


class BadShape(ValueError):  # noqa: N818
    """A shape must be given, or the one that was given does not fit."""


class Port(NamedTuple):
    name: str
    dtype: str
    """As numpy names it; a word that numpy lacks (``string``, ``bfloat16``) as the runtime says it."""
    shape: tuple[int, ...]
    """-1: any."""


def port(name: str, kind: str, shape: Sequence[Any]) -> Port:
    """``kind``: the runtime's word, such as ``tensor(float)``, ``u8``, ``int8``; what is no size in ``shape`` is -1."""
    word = kind.removeprefix("tensor(").rstrip(")")
    sizes = tuple(int(d) if isinstance(d, (int, np.integer)) and d >= 0 else -1 for d in shape)
    return Port(name, NUMPY_TYPES.get(word, word), sizes)


def fixed(ports: Sequence[Port], shapes: Mapping[str, Sequence[int]]) -> tuple[Port, ...]:
    """The ports with a size in every place: those of ``shapes`` (by name; "" where there is one input), batch 1.

    Raises ``BadShape`` where another dimension than the batch is open, or a shape does not fit.
    """
    names = [p.name for p in ports]
    given = {(names[0] if not name and len(names) == 1 else name): tuple(shape) for name, shape in shapes.items()}
    strange = [name or "(no name)" for name in given if name not in names]
    if strange:
        raise BadShape(f"no input {', '.join(strange)}; there are {', '.join(names)}")
    return tuple(p._replace(shape=_size(p, given.get(p.name))) for p in ports)


def _size(one: Port, given: tuple[int, ...] | None) -> tuple[int, ...]:
    words = "x".join("?" if d < 0 else str(d) for d in one.shape)
    if given is not None:
        fits = len(given) == len(one.shape) and all(d in (-1, g) for d, g in zip(one.shape, given, strict=True))
        if not fits or min(given, default=1) < 1:
            raise BadShape(f"{one.name} is {words}, which {'x'.join(map(str, given))} does not fit")
        return given
    if -1 in one.shape[1:]:
        raise BadShape(f"{one.name} is {words}: say with --shape {one.name}=... what stands for each ?")
    return tuple(1 if d < 0 else d for d in one.shape)


def write_feeds(path: str, feeds: Sequence[Feed]) -> None:
    """A .npz whose names are row and input by number: names of inputs hold any character."""
    np.savez(path, **{f"{row}.{place}": one for row, feed in enumerate(feeds) for place, one in enumerate(feed)})  # type: ignore[arg-type]


def read_feeds(path: str) -> list[Feed]:
    """What ``write_feeds`` wrote."""
    feeds: dict[int, dict[int, Array]] = {}
    with np.load(path, allow_pickle=False) as found:
        for name in found.files:
            row, place = map(int, name.split("."))
            feeds.setdefault(row, {})[place] = np.ascontiguousarray(found[name])
    return [[feeds[row][place] for place in sorted(feeds[row])] for row in sorted(feeds)]
