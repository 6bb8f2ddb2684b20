"""Ranges of activations for static int8: observed once on the float file, then estimated in one of four ways.

The same numbers are given to every runtime's quantizer, so that a range means the same in all three formats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from distilledge.models.metrics import kl
from distilledge.targets.base import FloatArray, Inputs
from distilledge.targets.scheme import LayerError

Floats = npt.NDArray[np.float64]
Range = tuple[float, float]
Tensors = Callable[[Inputs], Mapping[str, FloatArray]]
"""Rows (N, ...) -> every float tensor of a file by name, (N, ...)."""

KEPT = 1024
"""Values kept of each tensor of each row, at even distances."""
AT_ONCE = 1 << 28
"""Bytes of tensors held at a time."""
BINS, LEVELS = 2048, 255
PERCENTILE = 99.99
SHRINK = np.linspace(1.0, 0.1, 46)
"""Shares of the whole range that ``mse`` tries for each end."""
FEWEST = 128
"""Bins of the narrowest range that ``entropy`` tries: the levels of one side of int8."""


class Observed(NamedTuple):
    """What was seen of one tensor."""

    low: Floats
    """(N,): smallest value of each row."""
    high: Floats
    values: FloatArray
    """(N x at most ``KEPT``,): some of the values of all rows."""


def observe(tensors: Tensors, rows: Sequence[Inputs]) -> dict[str, Observed]:
    """Run ``rows`` (each (1, ...)) through the float file, a few of one shape at a time by their size."""
    found: dict[str, list[tuple[Floats, Floats, FloatArray]]] = {}
    start, step = 0, 1
    while start < len(rows):
        alike = list(takewhile(lambda row: row.shape == rows[start].shape, rows[start : start + step]))  # noqa: B023
        made = tensors(np.concatenate(alike))
        for name, array in made.items():
            found.setdefault(name, []).append(_seen(array))
        size = sum(array.nbytes for array in made.values()) // len(alike)
        start, step = start + len(alike), max(1, min(32, AT_ONCE // max(1, size)))
    return {name: Observed(*(np.concatenate([p[k] for p in parts]) for k in range(3))) for name, parts in found.items()}


def _seen(array: FloatArray) -> tuple[Floats, Floats, FloatArray]:
    flat = array.reshape(len(array), -1)
    step = -(-flat.shape[1] // KEPT)
    return flat.min(1).astype(np.float64), flat.max(1).astype(np.float64), flat[:, ::step].reshape(-1).copy()


def minmax(seen: Observed) -> Range:
    """The smallest and largest value of all rows. Every range holds 0, which int8 must represent exactly."""
    return min(0.0, float(seen.low.min())), max(0.0, float(seen.high.max()))


def percentile(seen: Observed) -> Range:
    """Without the outermost 0.01 % of the values of each side."""
    low, high = np.percentile(seen.values, (100 - PERCENTILE, PERCENTILE))
    return min(0.0, float(low)), max(0.0, float(high))


def mse(seen: Observed) -> Range:
    """The ends that make the mean squared error of clipping and rounding smallest: first the upper, then the lower."""
    low, high = minmax(seen)
    counts, centres = _histogram(seen.values, low, high)
    upper = min((high * s for s in SHRINK), key=lambda h: squared_error(centres, counts, low, h))
    lower = min((low * s for s in SHRINK), key=lambda lo: squared_error(centres, counts, lo, upper))
    return lower, upper


def squared_error(values: Floats, counts: Floats, low: float, high: float) -> float:
    """Mean squared error of ``values`` in ``LEVELS`` steps from ``low`` to ``high``, the zero point rounded."""
    if high <= low:
        return float(np.average(values**2, weights=counts))
    scale = (high - low) / LEVELS
    zero = round(-low / scale)
    steps = np.clip(np.round(values / scale) + zero, 0, LEVELS) - zero
    return float(np.average((values - steps * scale) ** 2, weights=counts))


def entropy(seen: Observed) -> Range:
    """The threshold on |x| whose quantised distribution is nearest to the clipped one (KL; Migacz 2017, TensorRT)."""
    low, high = minmax(seen)
    top = max(-low, high)
    if top == 0:
        return low, high
    counts, _ = _histogram(np.abs(seen.values), 0.0, top)
    levels = FEWEST if low < 0 else LEVELS + 1
    widths = range(levels, BINS + 1, 16)
    best = min(widths, key=lambda width: _clipped_divergence(counts, width, levels))
    limit = top * best / BINS
    return max(low, -limit), min(high, limit)


def _clipped_divergence(counts: Floats, width: int, levels: int) -> float:
    """KL of the first ``width`` bins, what lies beyond added to the last, from themselves in ``levels`` steps."""
    inside = counts[:width]
    clipped = inside.copy()
    clipped[-1] += counts[width:].sum()
    owner = np.arange(width) * levels // width
    filled = inside > 0
    total = np.bincount(owner, weights=inside, minlength=levels)
    many = np.bincount(owner, weights=filled, minlength=levels)
    spread = np.where(filled, total[owner] / np.maximum(many[owner], 1), 0.0)
    if spread.sum() == 0:
        return float("inf")
    p, q = clipped / clipped.sum(), spread / spread.sum()
    seen = p > 0
    return float(np.sum(p[seen] * np.log(p[seen] / np.maximum(q[seen], 1e-10))))


def _histogram(values: npt.NDArray[Any], low: float, high: float) -> tuple[Floats, Floats]:
    counts, edges = np.histogram(np.clip(values, low, high), BINS, (low, high if high > low else low + 1.0))
    return counts.astype(np.float64), (edges[:-1] + edges[1:]) / 2


RANGES: dict[str, Callable[[Observed], Range]] = {
    "MinMax": minmax,
    "percentile": percentile,
    "MSE": mse,
    "entropy": entropy,
}
"""How a range is found from what was observed; the first is every runtime's own."""


def by_token(logits: FloatArray) -> FloatArray:
    """(1, K) as it is, (1, L, K) as (L, K)."""
    return logits.reshape(-1, logits.shape[-1])


def layer_error(name: str, kind: str, place: int, reference: FloatArray, logits: FloatArray) -> LayerError:
    """SQNR and KL of ``logits`` (N, C) against those of the float model."""
    noise = float(np.mean((logits - reference) ** 2, dtype=np.float64))
    power = float(np.mean(reference**2, dtype=np.float64))
    sqnr = 10 * np.log10(power / noise) if noise > 0 < power else 200.0
    return LayerError(name=name, kind=kind, place=place, sqnr_db=float(min(200.0, sqnr)), kl=kl(reference, logits))
