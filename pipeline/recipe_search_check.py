"""What a search can get wrong in a recipe."""

from __future__ import annotations

from collections.abc import Iterator

from distilledge.pipeline.recipe import Recipe


def check_search(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """What contradicts itself, and the edit that mends it."""
    search, student = recipe.search, recipe.student
    for name in sorted(set(search.weights) - {*search.students, student.model}):
        yield f"search.weights.{name} is of no student that is looked at", "add it to search.students"
    if student.weights not in ("none", "hub"):
        bare = [m for m in search.students if m != student.model and m not in search.weights]
        if bare:
            what = f"student.weights is a file, which is of {student.model} and not of {', '.join(bare)}"
            yield what, "name the weights of each in search.weights: hub, none or a file"
    if recipe.is_text and (search.students or search.sizes):
        yield "search is of pictures", "leave it out"
