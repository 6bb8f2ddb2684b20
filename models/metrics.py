"""How good predictions are, and how near two models' outputs: numpy only, so that no torch is needed to judge.

``kl`` is the training loss ``losses.kl`` at temperature 1, seen as a metric: a test holds the two to the same value.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Doubles = npt.NDArray[np.float64]
Labels = npt.NDArray[np.integer[Any]]


def top1(logits: Floats) -> npt.NDArray[np.int64]:
    """Predicted classes (N,) of logits (N, C); the first of equal ones."""
    return np.asarray(np.argmax(logits, axis=1), dtype=np.int64)


def accuracy(predicted: Labels, labels: Labels) -> float:
    """Share of right predictions, 0..1; NaN for none at all."""
    return float(np.mean(predicted == labels)) if len(labels) else float("nan")


def confusion(predicted: Labels, labels: Labels, classes: int) -> npt.NDArray[np.int64]:
    """Counts (C, C): rows the true class, columns the predicted one."""
    table = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(table, (labels, predicted), 1)
    return table


def recalls(predicted: Labels, labels: Labels, classes: int) -> Doubles:
    """Share of each class that is found (C,); NaN for classes without a sample."""
    table = confusion(predicted, labels, classes)
    support = table.sum(1)
    return np.asarray(np.divide(table.diagonal(), support, out=np.full(classes, np.nan), where=support > 0))


def balanced_accuracy(predicted: Labels, labels: Labels, classes: int) -> float:
    """Mean recall of the classes that occur in ``labels``, 0..1; NaN if none does."""
    found = recalls(predicted, labels, classes)
    present = found[~np.isnan(found)]
    return float(present.mean()) if len(present) else float("nan")


def log_softmax(logits: Floats) -> Doubles:
    """Log-probabilities (N, C), float64."""
    z = np.asarray(logits, dtype=np.float64)
    z = z - z.max(axis=1, keepdims=True)
    return np.asarray(z - np.log(np.exp(z).sum(axis=1, keepdims=True)))


def negative_log_likelihood(logits: Floats, labels: Labels) -> float:
    """Mean -log p(label), nats: the cross-entropy without smoothing or weights."""
    return float(-log_softmax(logits)[np.arange(len(labels)), labels].mean())


class Bin(NamedTuple):
    """Predictions whose confidence lies in (low, high]."""

    low: float
    high: float
    samples: int
    confidence: float
    """Mean largest probability; NaN if empty."""
    accuracy: float


def reliability(logits: Floats, labels: Labels, bins: int = 15) -> tuple[Bin, ...]:
    """Confidence against accuracy in bins of equal width (Guo et al. 2017, section 2)."""
    confidence = np.exp(log_softmax(logits).max(axis=1))
    right = top1(logits) == labels
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    rows = []
    for i in range(bins):
        here = place == i
        mean = (float(confidence[here].mean()), float(right[here].mean())) if here.any() else (float("nan"),) * 2
        rows.append(Bin(float(edges[i]), float(edges[i + 1]), int(here.sum()), *mean))
    return tuple(rows)


def calibration_error(logits: Floats, labels: Labels, bins: int = 15) -> float:
    """Expected calibration error, 0..1: |accuracy - confidence| over the bins (Guo et al. 2017, equation 3)."""
    filled = [b for b in reliability(logits, labels, bins) if b.samples]
    total = sum(b.samples for b in filled)
    return sum(b.samples * abs(b.accuracy - b.confidence) for b in filled) / total if total else float("nan")


def agreement(reference: Floats, candidate: Floats, *, tie: float = 0.0) -> float:
    """Share of rows with the same top-1, 0..1.

    A row whose reference top-1 and the candidate's choice differ by at most ``tie`` in the reference's logits agrees.
    """
    rows = np.arange(len(reference))
    lost = reference[rows, top1(reference)] - reference[rows, top1(candidate)]
    return float(np.mean(lost <= tie)) if tie > 0 else float(np.mean(top1(reference) == top1(candidate)))


def kl(reference: Floats, candidate: Floats) -> float:
    """Mean KL(softmax(reference) || softmax(candidate)), nats, 0 or more."""
    p, q = log_softmax(reference), log_softmax(candidate)
    return max(0.0, float((np.exp(p) * (p - q)).sum(axis=1).mean()))


def cosine(reference: Floats, candidate: Floats) -> float:
    """Mean cosine of the rows, -1..1; two rows of zeros count as equal, one as orthogonal."""
    a, b = (np.asarray(x, dtype=np.float64).reshape(len(x), -1) for x in (reference, candidate))
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    dots = np.divide((a * b).sum(1), lengths, out=np.zeros(len(a)), where=lengths > 0)
    both_zero = ~a.any(axis=1) & ~b.any(axis=1)
    return float(np.where(both_zero, 1.0, dots).mean())


def psnr(reference: Floats, candidate: Floats) -> float | None:
    """10 log10(peak^2 / mean squared difference), dB, peak the largest |reference|; None where nothing differs."""
    a, b = (np.asarray(x, dtype=np.float64) for x in (reference, candidate))
    error = float(np.mean((a - b) ** 2))
    peak = float(np.abs(a).max(initial=0.0))
    if error == 0:
        return None
    return float(10 * np.log10(max(peak**2, np.finfo(np.float64).tiny) / error))


def max_abs(reference: Floats, candidate: Floats) -> float:
    """Largest absolute difference of an element; 0 for empty arrays."""
    a, b = (np.asarray(x, dtype=np.float64) for x in (reference, candidate))
    return float(np.abs(a - b).max(initial=0.0))
