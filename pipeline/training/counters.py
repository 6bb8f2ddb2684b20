"""Random numbers from counters: every draw is a function of (purpose, seed, counters), never of what was drawn before.

That is what makes a killed and resumed training bit-identical, and the number of loader processes irrelevant.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import numpy as np
import numpy.typing as npt
import torch

IntArray = npt.NDArray[np.int64]


class Purpose(IntEnum):
    """Keeps the streams of different uses apart. The numbers are part of every trained weight: never renumber."""

    ORDER = 0
    VIEW = 1
    MIX = 2
    STEP = 3
    WEIGHTS = 4


def generator(purpose: Purpose, seed: int, *counters: int) -> np.random.Generator:
    """A numpy generator that depends on its arguments alone."""
    return np.random.default_rng((int(purpose), seed, *counters))


def torch_seed(purpose: Purpose, seed: int, *counters: int) -> int:
    """A seed for torch, in 0..2**63 - 1."""
    word = np.random.SeedSequence((int(purpose), seed, *counters)).generate_state(1, np.uint64)[0]
    return int(word) >> 1


ADAPTERS, PROJECTIONS = 1, 2
"""Parts of a training that start at random, beside the network (0)."""


@contextmanager
def weights_drawn(seed: int, part: int = 0) -> Iterator[None]:
    """Torch's draws inside depend on the arguments alone, those after it not on it. Parts draw different numbers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(Purpose.WEIGHTS, seed, *((part,) if part else ())))
        yield


def epoch_order(labels: IntArray, seed: int, epoch: int, *, balanced: bool) -> IntArray:
    """Indices of one epoch: a permutation, or (``balanced``) as many draws in which each class is equally frequent.

    Unlabelled pictures (label -1) are in every epoch once either way.
    """
    random = generator(Purpose.ORDER, seed, epoch)
    if not balanced:
        return random.permutation(len(labels))
    labelled = np.flatnonzero(labels >= 0)
    draws = [np.flatnonzero(labels < 0), _balanced(labels, labelled, random)]
    return random.permutation(np.concatenate(draws))


def _balanced(labels: IntArray, labelled: IntArray, random: np.random.Generator) -> IntArray:
    """len(labelled) indices; each class's pictures are used up before one is drawn again."""
    classes = random.permutation(np.unique(labels[labelled]))
    counts = np.full(len(classes), len(labelled) // max(len(classes), 1))
    counts[: len(labelled) - counts.sum()] += 1
    drawn = []
    for label, count in zip(classes, counts, strict=True):
        members = np.flatnonzero(labels == label)
        rounds = -(-int(count) // len(members))
        drawn.append(np.concatenate([random.permutation(members) for _ in range(rounds)])[:count])
    return np.concatenate(drawn) if drawn else labelled
