"""What the quantization ladder leaves behind: every rung tried, what it gained, why it was taken or refused."""

from __future__ import annotations

from typing import Literal

from distilledge.models.base import Value
from distilledge.pipeline.compress.slowness import Slowness
from distilledge.pipeline.stats import Estimate
from distilledge.targets.base import Precision
from distilledge.targets.scheme import LayerError

Outcome = Literal["holds", "undecided", "fails"]


class Twin(Value):
    """A file beside the torch network that it was made from, on the validation pictures."""

    of: str = "torch fake int8"
    """That network."""
    agreement: float
    kl: float
    cosine: float
    psnr_db: float | None
    max_abs: float


class Tried(Value):
    """One candidate file, judged on the validation split beside the student's fp32 file of the same runtime."""

    rung: str
    recipe: str
    """How it was made, in words."""
    precision: Precision
    outcome: Outcome
    """``holds``: each budget within its limit, interval and all; ``undecided``: the value is, the interval is not."""
    reason: str
    """Why it was taken or refused."""
    drop: Estimate
    """Points below the fp32 file."""
    agreement: float
    """Share of the pictures with the same answer as the fp32 file, 0..1."""
    gained: float | None = None
    """Agreement above that of the first rung; None for that one."""
    answers: int
    """Different classes among its answers: 1 is a collapse."""
    size_mb: float
    p50_ms: float | None = None
    """None where accuracy or size had refused it before."""
    p50_ratio: Estimate | None = None
    """p50 over that of the fp32 file, timed beside it."""
    peak_rss_mb: float | None = None
    conversions: int = 0
    """Operations that only turn float into int8 or back, as the runtime runs it."""
    float_operations: tuple[str, ...] = ()
    slowness: Slowness | None = None
    """Where it was refused for being slower than fp32."""
    islands: tuple[str, ...] = ()
    seconds: float
    twin: Twin | None = None
    """Of a rung that trains in fake int8."""


class CalibrationAudit(Value):
    """What static int8 was calibrated on."""

    pictures: int
    per_class: dict[str, int]
    missing: tuple[str, ...]
    """Classes without a calibration picture."""
    manifest_sha256: str
    """Over the sorted sha256 of the pictures."""
    instability: float | None
    """Median over all tensors of |log2| of the ratio of the ranges of two disjoint halves: 0 is stable; None: one."""
    unstable_tensor: str | None
    """The tensor whose ranges differ most, and by how much."""
    worst: float | None


class Ledger(Value):
    """Of one runtime."""

    tried: tuple[Tried, ...]
    taken: int
    """Index of the shipped one in ``tried``."""
    outcome: Outcome
    """Of that one."""
    pictures: int
    """Validation pictures that decided."""
    limit: float | None
    """``max_drop_points_fp32``."""
    audit: CalibrationAudit
    layers: tuple[LayerError, ...] = ()
    """Worst first."""
    notes: tuple[str, ...] = ()
    """On rungs that made no file."""
