"""What a report holds of several tasks."""

from __future__ import annotations

from distilledge.models.base import Value
from distilledge.pipeline.record import Check
from distilledge.pipeline.stats import Estimate


class TaskFile(Value):
    """One task of one file. In points."""

    task: str
    file: str
    role: str
    samples: int
    """Test samples with a label of the task."""
    metric: Estimate
    drop: Check | None
    """Below the fp32 teacher, on the same samples; of student files."""
    shipped: bool


class TaskWorth(Value):
    """The student's fp32 file against the control's, of one task, paired by sample."""

    task: str
    student: float
    control: float
    gain: Estimate
    p_value: float


class TaskContent(Value):
    names: tuple[str, ...]
    """The primary task first."""
    files: tuple[TaskFile, ...]
    worth: tuple[TaskWorth, ...]
    weighting: str
    """How the losses were weighed, in words."""
    weights: tuple[tuple[str, str], ...]
    """(Training, its weights in words)."""
