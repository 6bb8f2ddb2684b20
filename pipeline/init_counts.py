"""What a drafted recipe says of numbers, be it of pictures or of texts."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

UNBALANCED = 3.0
"""Largest class over smallest, from which accuracy hides the small classes."""
FEW = 50
"""Pictures or texts of a class below which its test result has a wide interval."""

Counts = Mapping[str, Mapping[str, int]]
"""Split, class, number."""


def totals(counts: Counts, classes: Sequence[str]) -> dict[str, int]:
    """Of each class over all splits, without the unlabelled."""
    return {name: sum(split.get(name, 0) for split in counts.values()) for name in classes}


def imbalance(of: Mapping[str, int]) -> float:
    return max(of.values()) / max(1, min(of.values()))


def metric(of: Mapping[str, int], noun: str) -> str:
    if (ratio := imbalance(of)) < UNBALANCED:
        return "accuracy"
    return f"balanced_accuracy  # the largest class has {ratio:.0f} times the {noun} of the smallest"


def train_share(in_train: int, every: int) -> int:
    """What training will see, before a missing validation part is cut from it."""
    return max(1, in_train or round(0.7 * every))


def epochs(seen: int, least: int, most: int, train: int) -> int:
    return min(most, max(least, math.ceil(seen / train)))


def split_line(splits: Sequence[str]) -> str:
    given = [name for name in splits if name != "unlabelled"]
    if "train" in given and "test" in given:
        return f"  # splits are given by the data: {', '.join(given)}\n"
    why = f"the data brings {', '.join(given)}; the rest is cut" if given else "the data brings no split of its own"
    return f"  splits: {{train: 0.7, validation: 0.15, test: 0.15}}  # {why}\n"


def recipe_name(place: str, suffixes: Sequence[str]) -> str:
    """Of the folder or file, with what a recipe's name may hold."""
    stem = Path(place).stem if Path(place).suffix.lower() in suffixes else Path(place).name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:64] or "recipe"
