"""Part of the recipe: how far int8 may be worked on until the budget holds."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from distilledge.models.base import Value
from distilledge.pipeline.recipe_data import Count, Fraction

RungName = Literal["ptq", "calibration", "ranges", "equalise", "bias", "islands", "w8a16", "w8"]


class Compress(Value):
    """The quantization ladder. Without it each runtime's plain static int8 is shipped, whatever it costs."""

    climb: bool = False
    """Climb ``rungs`` for each runtime's w8a8 file until the student's budget holds on the validation pictures."""
    rungs: tuple[RungName, ...] = ("ptq", "calibration", "ranges", "equalise", "bias", "islands", "w8a16", "w8")
    """In this order. ``ptq``: plain static int8. ``calibration``: other numbers of pictures, where ranges depend on
    them. ``ranges``: percentile, MSE and entropy ranges. ``equalise``: channels rescaled across layers, biases
    corrected. ``bias``: bias correction. ``islands``: the 2, 4 and 8 worst layers stay float. ``w8a16``: 16-bit
    activations. ``w8``: int8 weights only, then float16."""
    samples: Count | None = None
    """Calibration pictures used; default: all of data.calibration."""
    min_agreement: Fraction = 0.98
    """Where the validation split is too small to decide, a rung is taken that answers as fp32 in so many pictures."""
    max_slowdown: Annotated[float, Field(gt=0)] = 1.0
    """p50 over that of the float file in the same measurement: int8 that is certainly slower is refused."""
