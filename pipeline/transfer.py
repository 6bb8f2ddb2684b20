"""What a teacher's strategy and its check mean to the chain: inputs of steps, and the recipe without transfer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distilledge.models.clip_prompts import is_clip
from distilledge.pipeline.data.content import content_hash, unlabelled_hash
from distilledge.pipeline.data.listing import expand
from distilledge.pipeline.data.manifest import MANIFESTS, find, guess_columns, read
from distilledge.pipeline.recipe import Data, Recipe, Student, Teacher, Training
from distilledge.pipeline.recipe_strategy import ADAPTING, Strategy, is_default

TRANSFER = {"strategy", "prompts", "check_transfer", "require_positive_transfer"}
"""Fields of a teacher that change nothing where they are not used."""


LATER = ("batch_norm", "dropout", "drop_path")
"""Fields of a training that change nothing where they are not used."""


def training_inputs(fields: dict[str, Any]) -> dict[str, Any]:
    """A dumped model of a recipe, without the fields of its trainings that came later and are not used."""
    made = dict(fields)
    for name in ("training", "pretraining"):
        if isinstance(made.get(name), dict):
            made[name] = training_inputs(made[name])
    unused = {name: Training.model_fields[name].default for name in LATER}
    return {name: value for name, value in made.items() if name not in unused or value != unused[name]}


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
        fields["arguments"]["source"] = source_hash(source)
    if model.training.layer_decay != 1:
        fields["layers"] = "fine"  # they were groups once
    return {**prompts, "strategy": fields}


def last_epoch(recipe: Recipe) -> Recipe:
    """The recipe whose teacher is kept as its last epoch left it, where it adapts to a target.

    The best epoch by the source's validation would be an early one, before the domains were brought together; of the
    target there are no labels to choose by.
    """
    own = recipe.teacher
    if own.strategy.name not in ADAPTING:
        return recipe
    training = own.training.model_copy(update={"select": "last"})
    return recipe.model_copy(update={"teacher": own.model_copy(update={"training": training})})


def source_only(recipe: Recipe) -> Recipe:
    """The recipe with the same teacher trained on the source alone, under the same budget."""
    own = last_epoch(recipe).teacher
    return recipe.model_copy(update={"teacher": own.model_copy(update={"strategy": Strategy()})})


def compares_domains(recipe: Recipe) -> bool:
    """Whether the teacher is adapted to a target and is to be compared with one that is not."""
    target = recipe.data.target
    return target is not None and target.source_only and recipe.teacher.strategy.name in ADAPTING


def source_hash(path: str) -> str:
    """Of the content of a source: the pictures that a manifest lists, all of a folder, or a file of texts."""
    place = Path(expand(path))
    if place.is_file() or any((place / name).is_file() for name in MANIFESTS):
        header = read(find(place))[0] if place.is_dir() or place.suffix in (".csv", ".jsonl") else []
        columns = guess_columns(header)
        if columns.path in header:
            return content_hash(Data(path=path, columns=columns))
    return unlabelled_hash(path)


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
