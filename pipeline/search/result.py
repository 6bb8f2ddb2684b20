"""What a search leaves: every candidate, every file that was measured, the best trade-offs and the winner."""

from __future__ import annotations

from typing import Any

from distilledge.models.base import Value
from distilledge.pipeline.recipe import Recipe
from distilledge.pipeline.record import Check
from distilledge.pipeline.search.fits import FitRow, Outcome
from distilledge.pipeline.search.halving import Judged
from distilledge.pipeline.stats import Estimate


class Point(Value):
    """One file: of a student that was trained to the end, the real one; of one that was stopped, that of ``fit``."""

    model: str
    size: int
    runtime: str
    precision: str
    epochs: int
    """Trained, of ``of``."""
    of: int
    metric: Estimate
    """Points, on the validation split: of a file its own answers; of a stopped student those of its float network."""
    p50: Estimate
    """Milliseconds; of finished students measured together, in turn."""
    fitted_p50: float | None
    """Of the same file with random weights, as ``fit`` found it; None where it has no such file."""
    size_mb: float
    peak_rss_mb: float | None
    checks: tuple[Check, ...] = ()
    outcome: Outcome
    flags: tuple[str, ...] = ()
    ships: bool = False
    """The file its runtime would ship; of finished students only."""
    front: bool = False
    """No other is at least as good in metric, p50 and size, and better in one. p50 of one runtime, on one device."""

    @property
    def student(self) -> str:
        return f"{self.model} {self.size}"


class Looked(Value):
    """One student at one size."""

    model: str
    size: int
    outcome: Outcome
    """Of ``fit``; ``over``: it was not trained."""
    why: tuple[str, ...]
    """Its numbers, where a limit is not certainly kept."""
    rounds: tuple[Judged, ...] = ()
    kept: bool = False
    """It was trained to the end."""


class SearchResult(Value):
    recipe: Recipe
    created: str
    command: str
    device: dict[str, Any]
    pictures: int
    """Of the validation split; the test split is not looked at."""
    schedule: tuple[int, ...]
    """Epochs at the end of each round."""
    fits: tuple[FitRow, ...]
    looked: tuple[Looked, ...]
    points: tuple[Point, ...]
    winner: tuple[str, int] | None
    """Model and pixels; None where none keeps the budgets."""
    winner_why: str
