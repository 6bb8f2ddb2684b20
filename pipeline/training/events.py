"""What a training says while it runs. Imports no torch, so that the command line can draw it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class ProgressEvent(NamedTuple):
    """After each step. ``epoch`` and ``step`` count from 1; ``loss`` is the mean since the epoch began."""

    stage: str
    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    samples_per_second: float
    eta_seconds: float


Report = Callable[[ProgressEvent], None]


def silent(_event: ProgressEvent) -> None:
    """Reports nothing."""
