"""What is looked among: each student at each size, as a recipe of its own."""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

from distilledge.models.errors import DistilledgeError, UsageError
from distilledge.pipeline.data.describe import describe
from distilledge.pipeline.data.synthetic import DEFECTS
from distilledge.pipeline.recipe import Recipe
from distilledge.pipeline.recipe_check import parameters
from distilledge.pipeline.recipe_search import Search


class Candidate(NamedTuple):
    model: str
    size: int
    """Pixels of each side."""

    @property
    def name(self) -> str:
        return f"{self.model} {self.size}"


def candidates(recipe: Recipe) -> tuple[Candidate, ...]:
    """Every student at every size, in the recipe's order. Raises ``UsageError`` for texts."""
    if recipe.is_text:
        raise UsageError("E2690", f"fit and search are of pictures, not of {recipe.task}: {recipe.name}", "use run")
    found = recipe.search
    models = dict.fromkeys(found.students or (recipe.student.model,))
    sizes = dict.fromkeys(found.sizes or (recipe.student.input.size,))
    return tuple(Candidate(model, size) for model, size in product(models, sizes))


def recipe_of(recipe: Recipe, candidate: Candidate) -> Recipe:
    """The recipe with this student alone; everything else as it is."""
    weights = recipe.search.weights.get(candidate.model, recipe.student.weights)
    size = recipe.student.input.model_copy(update={"size": candidate.size})
    student = recipe.student.model_copy(update={"model": candidate.model, "weights": weights, "input": size})
    return recipe.model_copy(update={"student": student, "search": Search()})


def class_count(recipe: Recipe) -> int:
    """How many classes the recipe's data has; nothing but names and labels is read. Raises ``UsageError``."""
    if recipe.data.format == "synthetic" or recipe.data.path == "synthetic":
        return len(DEFECTS)
    try:
        found = len(describe(recipe.data.path)["classes"])
    except DistilledgeError as error:
        raise UsageError("E2691", f"the number of classes is not known: {error.what}", "give --classes N") from error
    if found < 2:
        raise UsageError("E2691", f"the number of classes is not known: {recipe.data.path}", "give --classes N")
    return found


def check_candidates(recipe: Recipe) -> None:
    """Raise ``UsageError`` for the first student that is unknown, cannot take a size, or has no head."""
    for one in candidates(recipe):
        parameters(recipe_of(recipe, one).student, "student")
