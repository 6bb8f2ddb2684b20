"""The rung of surgery: the trained student is cut, then distilled again."""

from __future__ import annotations

from pathlib import Path

from distilledge.models.base import Surgery
from distilledge.models.errors import RejectedError, UsageError
from distilledge.pipeline.compress.retrained import Retrained
from distilledge.pipeline.recipe import Recipe
from distilledge.pipeline.recipe_compress import Recut
from distilledge.pipeline.record import Splits
from distilledge.pipeline.training.distill import distill
from distilledge.pipeline.training.events import Report
from distilledge.pipeline.training.operate import operate
from distilledge.pipeline.training.stage import Taught

NOTHING_TO_CUT = "E2670"
STOPPED = ("E3602", "E3605")
"""Losses that are not finite end this training and not the run."""


def recut(
    recipe: Recipe,
    splits: Splits,
    data_dir: Path,
    student: Taught,
    teacher: Taught | None,
    *,
    out: Path,
    partial: Path,
    report: Report,
) -> Retrained:
    """The cut student after its training; one that has nothing to cut, or diverges, is a result that says so."""
    settings = recipe.compress.surgery or Recut()
    surgery = Surgery(activation=settings.activation, squeeze_excite=settings.squeeze_excite)
    cut = partial / "cut"
    cut.mkdir(parents=True, exist_ok=True)
    try:
        start = (operate(student, surgery, cut), cut)
        made = distill(
            _recipe(recipe, settings), splits, data_dir, teacher, out, partial=partial, report=report, start=start
        )
    except (UsageError, RejectedError) as error:
        if error.code not in (NOTHING_TO_CUT, *STOPPED):
            raise
        return Retrained(checkpoint=None, stopped=error.what)
    return Retrained(checkpoint=made)


def _recipe(recipe: Recipe, settings: Recut) -> Recipe:
    own = recipe.student.training
    changed = {"epochs": settings.epochs, "lr": settings.lr, "warmup_epochs": min(own.warmup_epochs, settings.epochs)}
    part = recipe.student.model_copy(update={"training": own.model_copy(update=changed)})
    return recipe.model_copy(update={"student": part})
