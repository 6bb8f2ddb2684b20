"""Pictures that occur twice: identical after decoding, saved again, or merely alike.

Three degrees, because surfaces under a fixed camera look alike without being the same picture:

- *identical*: the same decoded pixels, whatever the file. Certain.
- *copy*: near by perceptual hash, of the same size, and equal up to what saving again as JPEG changes. That is
  asked of the fine detail, where the noise of a second exposure differs but that of a copy does not.
- *near*: perceptual hashes within ``near_duplicate_bits``. On low-texture surfaces most of these are different parts
  (magnetic-tile: 632 pairs, no copy by the rule below), so they are told and never stop a run.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence, Set
from itertools import pairwise, product
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

COPY_DIFFERENCE = 1.5
"""Largest mean difference of a copy, gray levels: JPEG at quality 95 gives 0.05 to 1.2, a second shot 1.6 and up."""

COPY_BITS = 4
"""Bits of the perceptual hash that a copy may differ in, even where ``near_duplicate_bits`` is less (JPEG at 95 up)."""

COPY_DETAIL = 0.95
"""Smallest correlation of the detail (picture minus its 5x5 mean) of a copy."""

MOST_PAIRS = 5000
"""Near pairs that are looked at; a data set with more has a texture that perceptual hashes cannot tell apart."""

MEMBERS = 8
"""Pictures of one hash value that are paired with those of another."""

MOST_ALIKE = 12
"""Pictures that a cut of ours keeps together because they look alike; chains on low texture would be endless."""

Hashes = npt.NDArray[np.uint64]
Gray = npt.NDArray[np.float32]


class Pair(NamedTuple):
    """Two pictures or texts by index, first < second."""

    first: int
    second: int
    distance: int
    """Differing bits of perceptual hashes; of texts, percent of their word 3-grams that are not in both."""


def same(keys: Iterable[Hashable]) -> list[list[int]]:
    """Sets of two or more indices with equal keys."""
    sets: dict[Hashable, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        sets[key].append(index)
    return [members for members in sets.values() if len(members) > 1]


def near_values(values: Hashes, bits: int) -> list[Pair]:
    """Pairs of the distinct, sorted ``values`` that differ in at most ``bits`` bits; stops after ``MOST_PAIRS``.

    Two such values agree in at least one of bits + 1 bands, so only values with an equal band are compared
    (multi-index hashing, Norouzi et al. 2012, section 2). Many bits make short bands: then all are compared.
    """
    found: dict[tuple[int, int], int] = {}
    edges = np.linspace(0, 64, bits + 2).astype(int) if bits < 8 else np.array([0, 0])
    for low, high in pairwise(edges.tolist()) if bits else ():
        keys = (values >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        order = np.argsort(keys, kind="stable")
        for first, second, distance in _in_buckets(values, keys[order], order, bits):
            found[min(first, second), max(first, second)] = distance
            if len(found) > MOST_PAIRS:
                return _pairs(found)
    return _pairs(found)


def _pairs(found: dict[tuple[int, int], int]) -> list[Pair]:
    return [Pair(first, second, distance) for (first, second), distance in sorted(found.items())]


def _in_buckets(values: Hashes, keys: Hashes, order: npt.NDArray[np.intp], bits: int) -> Iterable[tuple[int, int, int]]:
    """Compares each value with its 1st, 2nd, ... neighbour of the same key; vectorised over all buckets at once."""
    starts = np.arange(len(keys))
    for step in range(1, len(keys)):
        starts = starts[: np.searchsorted(starts, len(keys) - step)]
        starts = starts[keys[starts] == keys[starts + step]]
        if not len(starts):
            return
        left, right = order[starts], order[starts + step]
        distance = np.bitwise_count(values[left] ^ values[right])
        for k in np.flatnonzero(distance <= bits):
            yield int(left[k]), int(right[k]), int(distance[k])


def near(phashes: Sequence[int], parts: Sequence[str], bits: int, within: Set[str]) -> tuple[list[Pair], bool]:
    """Pairs of pictures with near hashes that lie in two parts, or both in one of ``within``.

    ``parts`` has the name of each picture's part. True where ``MOST_PAIRS`` cut the list.
    """
    values, inverse = np.unique(np.array(phashes, np.uint64), return_inverse=True)
    members: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, (value, part) in enumerate(zip(inverse.tolist(), parts, strict=True)):
        if len(members[value][part]) < MEMBERS:
            members[value][part].append(index)
    equal = [Pair(value, value, 0) for value, of in members.items() if sum(map(len, of.values())) > 1]
    pairs: set[Pair] = set()
    for a, b, distance in (*equal, *near_values(values, bits)):
        for (part, left), (other, right) in product(members[a].items(), members[b].items()):
            if part != other or part in within:
                pairs |= {Pair(min(i, j), max(i, j), distance) for i, j in product(left, right) if i != j}
        if len(pairs) > MOST_PAIRS:
            break
    ordered = sorted(pairs, key=lambda pair: (pair.distance, pair.first, pair.second))
    return ordered[:MOST_PAIRS], len(ordered) > MOST_PAIRS


def is_copy(first: Gray, second: Gray) -> bool:
    """Whether one of two gray pictures (H, W), 0..255, of the same size is the other one saved again."""
    if first.shape != second.shape or float(np.abs(first - second).mean()) > COPY_DIFFERENCE:
        return False
    a, b = _detail(first), _detail(second)
    return float((a * b).sum()) >= COPY_DETAIL * float(np.sqrt((a * a).sum() * (b * b).sum())) > 0


def _detail(picture: Gray) -> Gray:
    smooth = Image.fromarray(picture.astype(np.uint8)).filter(ImageFilter.BoxBlur(2))
    detail: Gray = picture - np.asarray(smooth, np.float32)
    detail -= detail.mean()
    return detail


def join(count: int, sets: Iterable[Iterable[int]], weak: Iterable[Pair] = ()) -> list[int]:
    """For each of ``count`` indices, the smallest index that it is connected with through ``sets``.

    A ``weak`` pair connects too, unless more than ``MOST_ALIKE`` indices would hang together.
    """
    parent, size = list(range(count)), [1] * count

    def top(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    def connect(first: int, second: int, most: int) -> None:
        low, high = sorted((top(first), top(second)))
        if low != high and size[low] + size[high] <= most:
            parent[high] = low
            size[low] += size[high]

    for members in sets:
        first, *others = members
        for other in others:
            connect(first, other, count)
    for pair in weak:
        connect(pair.first, pair.second, MOST_ALIKE)
    return [top(index) for index in range(count)]
