"""Ratios of two lanes that took turns: blocks of the same moment are compared, so that what met both cancels out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from distilledge.targets.protocol import Interval

Floats = npt.NDArray[np.float64]
PIECES = 40
"""Pieces that each launch is cut into at most."""
LEAST = 5
"""Samples of a piece, of either lane, at least."""
REPLICATES = 2000


def paired_ratio(
    numerator: Sequence[npt.ArrayLike], denominator: Sequence[npt.ArrayLike], *, seed: int = 0
) -> Interval | None:
    """Median over pieces of the ratio of the two medians within a piece, with a bootstrap interval.

    ``numerator[i]`` and ``denominator[i]`` are the latencies of one launch, in which the lanes took turns. Launches are
    drawn, then pieces within them. None without samples in both.
    """
    pairs = zip(numerator, denominator, strict=True)
    pieces = [
        _pieces(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in pairs if np.size(a) and np.size(b)
    ]
    return bootstrapped(pieces, seed=seed) if pieces else None


def bootstrapped(groups: Sequence[Floats], *, seed: int = 0) -> Interval:
    """The median of all values; its 95 % interval by drawing groups, then values within each."""
    rng = np.random.default_rng(seed)
    size = max(len(g) for g in groups)
    table = np.stack([np.resize(g, size) for g in groups]) if len(groups) > 1 else groups[0][None]
    lengths = np.array([len(g) for g in groups])
    chosen = rng.integers(len(groups), size=(REPLICATES, len(groups)))
    column = (rng.random((REPLICATES, len(groups), size)) * lengths[chosen][..., None]).astype(np.int64)
    medians = np.median(table[chosen[..., None], column].reshape(REPLICATES, -1), axis=1)
    value = float(np.median(np.concatenate(list(groups))))
    low, high = np.quantile(medians, (0.025, 0.975))
    return Interval(value=value, low=min(value, float(low)), high=max(value, float(high)))


def _pieces(a: Floats, b: Floats) -> Floats:
    """Ratios of medians of the same shares of the launch: each lane is spread over the whole of it."""
    count = max(1, min(PIECES, len(a) // LEAST, len(b) // LEAST))
    medians = [[float(np.median(piece)) for piece in np.array_split(lane, count)] for lane in (a, b)]
    return np.asarray(np.array(medians[0]) / np.array(medians[1]), np.float64)
