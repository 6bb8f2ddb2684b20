"""Part of the recipe: channels cut out of the trained student, which is then distilled again."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from distilledge.models.base import Value
from distilledge.pipeline.recipe_data import Count
from distilledge.pipeline.recipe_training import Training

Share = Annotated[float, Field(gt=0, lt=1)]


class Prune(Value):
    """Structured pruning of the trained student, by its MACs or its latency; needs the extra ``prune``."""

    macs: Share | None = None
    """Multiply-accumulates that are left, over those of the unpruned student."""
    latency: Share | None = None
    """Instead: p50 of the fp32 file over that of the unpruned one, in the first runtime of export.targets on
    measure.device."""
    by: Literal["magnitude", "bn-scale"] = "magnitude"
    """Which channels go: those with the smallest weights, or with the smallest scale of their normalisation."""
    rounds: Count = 1
    """Times that it is pruned and distilled again, equal ratios each time."""
    multiple: Count = 8
    """Channels are left in multiples of it, as int8 kernels take them."""
    training: Training | None = None
    """Of the recovery after each round; default: the student's own."""
