"""What the data step depends on: its part of the recipe, and the content of the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distilledge.pipeline.data.content import content_hash, label_inputs, target_inputs, unlabelled_hash
from distilledge.pipeline.data.listing import expand
from distilledge.pipeline.recipe import Recipe
from distilledge.pipeline.recipe_multitask import without_tasks


def data_inputs(recipe: Recipe) -> dict[str, Any]:
    fields = recipe.data.model_dump(
        mode="json", exclude={"cache", "workers", "path", "target", *OTHER_DATA[recipe.is_text]}
    )
    without_tasks(recipe.data, fields)
    if not recipe.is_text:
        fields["columns"] = {k: v for k, v in fields["columns"].items() if k not in TEXT_COLUMNS}
    inputs = {"data": fields, "content": content_hash(recipe.data, recipe.task), "seed": recipe.seed}
    inputs |= label_inputs(recipe.data)
    inputs |= {"task": recipe.task} if recipe.is_text else {"bit_depth": recipe.student.input.bit_depth}
    if recipe.distill.unlabelled:
        place = str(Path(expand(recipe.distill.unlabelled)).resolve())  # its pictures are recorded by absolute path
        inputs["unlabelled"] = {"path": place, "content": unlabelled_hash(recipe.distill.unlabelled)}
    if recipe.data.target is not None:
        inputs["target"] = target_inputs(recipe.data, recipe.task)
    return inputs


OTHER_DATA = {
    False: {"tickets", "label_separator", "max_characters", "near_duplicate_jaccard"},
    True: {"synthetic", "min_size", "max_pixels", "exif", "frames", "near_duplicate_bits"},
}
"""Fields of ``data`` that say nothing to pictures (False) and to texts (True)."""
TEXT_COLUMNS = {"text", "context", "answers", "tokens", "tags"}
