"""Several tasks on one network: the columns of its logits by task. Without torch: records hold them.

While it is trained, verified and scored, the network has one head as wide as all tasks together; a record says which
columns are whose. One linear layer of all columns is the same function as a layer for each task. A file that leaves has
a layer and a named output for each task (``outputs``), so that int8 has ranges for each of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from distilledge.models.base import Value

INPUT_NAMES = ("image", "ids", "logits")
"""Names of tensors in a file that no task may have."""


class Head(Value):
    """One task of a network with several. The first of a network is its primary one: splits are stratified by it."""

    name: str
    classes: tuple[str, ...]


Heads = tuple[Head, ...]
"""Empty: a network of one task."""


def spans(heads: Sequence[Head]) -> tuple[slice, ...]:
    """The columns of each head in the joined logits (N, sum of classes)."""
    ends = list(accumulate(len(head.classes) for head in heads))
    return tuple(slice(end - len(head.classes), end) for head, end in zip(heads, ends, strict=True))


def joined(heads: Sequence[Head]) -> tuple[str, ...]:
    """A name for each column, such as ``texture: cast``."""
    return tuple(f"{head.name}: {name}" for head in heads for name in head.classes)
