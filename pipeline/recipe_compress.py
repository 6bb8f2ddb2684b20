"""Part of the recipe: how far int8 may be worked on until the budget holds."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from distilledge.models.base import Value
from distilledge.pipeline.recipe_data import Count, Fraction
from distilledge.targets.base import Precision

RungName = Literal["ptq", "ranges", "bias", "islands", "w8"]


class Compress(Value):
    """The quantization ladder. Without it each runtime's plain static int8 is shipped, whatever it costs."""

    climb: bool = False
    """Climb ``rungs`` for each runtime's w8a8 file, of texts also its w8dyn, until the student's budget holds on the
    validation split. Of texts one file is made in place of both: the ladder chooses between static and dynamic int8."""
    rungs: tuple[RungName, ...] = ("ptq", "ranges", "bias", "islands", "w8")
    """In this order. ``ptq``: plain static int8, of texts dynamic too. ``ranges``: percentile, MSE and entropy ranges,
    SmoothQuant. ``bias``: bias correction. ``islands``: the worst layers stay float. ``w8``: int8 weights only, then
    float16."""
    samples: Count | None = None
    """Calibration pictures used; default: all of data.calibration."""
    min_agreement: Fraction = 0.98
    """Where the validation split is too small to decide, a rung is taken that answers as fp32 in so many pictures."""
    max_slowdown: Annotated[float, Field(gt=0)] = 1.0
    """p50 over that of the float file in the same measurement: int8 that is certainly slower is refused."""


def chosen(*, text: bool) -> tuple[Precision, ...]:
    """Precisions of a runtime that the ladder makes one file in place of."""
    return ("w8a8", "w8dyn") if text else ("w8a8",)
