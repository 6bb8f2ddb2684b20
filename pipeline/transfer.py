"""What a teacher's strategy and its check mean to the chain: inputs of steps, and the recipe without transfer."""

from __future__ import annotations

from typing import Any

from distilledge.models.clip_prompts import is_clip
from distilledge.pipeline.data.content import unlabelled_hash
from distilledge.pipeline.recipe import Recipe, Student, Teacher
from distilledge.pipeline.recipe_strategy import Strategy, is_default

TRANSFER = {"strategy", "prompts", "check_transfer", "require_positive_transfer"}
"""Fields of a teacher that change nothing where they are not used."""


def strategy_inputs(model: Teacher | Student) -> dict[str, Any]:
    """The teacher's strategy with the content of pictures it names, CLIP's prompts; nothing of what is default."""
    if isinstance(model, Student):
        return {}
    prompts = {"prompts": [list(model.prompts.listed), model.prompts.names]} if is_clip(model.model) else {}
    if is_default(model.strategy):
        return prompts
    fields = model.strategy.model_dump(mode="json")
    source = fields["arguments"].get("source")
    if source:
        fields["arguments"]["source"] = unlabelled_hash(source)
    return {**prompts, "strategy": fields}


def from_scratch(recipe: Recipe) -> Recipe:
    """The recipe with the same teacher trained from random weights: all of it, at the same budget."""
    own = recipe.teacher
    changed = {
        # of a text model and of CLIP they say what its architecture is
        "weights": own.weights if recipe.is_text or is_clip(own.model) else "none",
        "strategy": Strategy(),
        "training": own.training.model_copy(update={"freeze_backbone": False, "layer_decay": 1.0}),
        "text": own.text.model_copy(update={"lora": None}),
    }
    return recipe.model_copy(update={"teacher": own.model_copy(update=changed)})
