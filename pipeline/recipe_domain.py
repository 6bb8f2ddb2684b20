"""Contradictions in a recipe that adapts to a target, or pretrains on pictures without labels."""

from __future__ import annotations

from collections.abc import Iterator

from distilledge.pipeline.recipe import Pretraining, Recipe
from distilledge.pipeline.recipe_strategy import ADAPTING

PAIRED = ("dann", "coral", "mmd")
"""Strategies whose steps hold pictures or texts of both domains."""
ADAPTED = ("image-classification", "text-classification")
"""Of one label for each picture or text."""


def domain(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Findings: what is wrong, and the edit that mends it."""
    teacher, training, name = recipe.teacher, recipe.teacher.training, recipe.teacher.strategy.name
    if recipe.data.target is not None and recipe.task not in ADAPTED:
        what = f"data.target is of pictures and of text-classification, not of {recipe.task}"
        yield what, "leave it out; teacher.pretraining.corpus brings a text model to its field"
    if name not in ADAPTING:
        return
    if recipe.data.target is None:
        yield f"strategy {name} adapts to a target that the recipe does not name", "set data.target.path"
    if recipe.is_text and name not in PAIRED:
        yield f"strategy {name} is of BatchNorm, which text models do not have", f"choose from {', '.join(PAIRED)}"
    if training.early_stopping is not None:
        what = f"training.early_stopping looks at the source, strategy {name} at the target"
        yield what, "leave early_stopping out: the last epoch is kept"
    if name in PAIRED and (training.augment.mixup or training.augment.cutmix):
        yield f"mixup and cutmix would mix the domains that strategy {name} tells apart", "set both to 0"
    if name in PAIRED and training.batch_size < 2:
        yield f"strategy {name} compares samples of a batch", "set training.batch_size to 2 or more"
    if teacher.check_transfer:
        what = f"check_transfer and strategy {name}: two comparisons of one teacher"
        yield what, "leave check_transfer out: the report compares with the source alone"


def pictures_before(recipe: Recipe, role: str, given: Pretraining | None) -> Iterator[tuple[str, str]]:
    """Of ``pretraining`` on pictures."""
    if given is None:
        return
    if recipe.is_text:
        if given.objective == "simsiam":
            yield f"{role}.pretraining.objective: simsiam is of pictures", "set it to auto"
        return
    if given.objective not in ("auto", "simsiam"):
        yield f"{role}.pretraining.objective: {given.objective} is of texts", "set it to auto or simsiam"
    if given.losses:
        yield f"{role}.pretraining.losses compare language models", "leave them out"
    training = given.training
    if training.early_stopping is not None or training.auto_batch or training.augment.mixup or training.augment.cutmix:
        what = (
            f"{role}.pretraining.training: early_stopping, auto_batch, mixup and cutmix say nothing to pairs of views"
        )
        yield what, "leave them out"
