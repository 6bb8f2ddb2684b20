"""What a teacher's strategy and its check mean to the chain: inputs of steps, and the recipe without transfer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distilledge.pipeline.data.content import content_hash, unlabelled_hash
from distilledge.pipeline.data.listing import expand
from distilledge.pipeline.data.manifest import MANIFESTS, find, guess_columns, read
from distilledge.pipeline.recipe import Data, Recipe, Student, Teacher, Training
from distilledge.pipeline.recipe_strategy import Strategy, is_default

TRANSFER = {"strategy", "check_transfer", "require_positive_transfer"}
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
    """The teacher's strategy with the content of the pictures it names; nothing where it is the default."""
    if isinstance(model, Student) or is_default(model.strategy):
        return {}
    fields = model.strategy.model_dump(mode="json")
    source = fields["arguments"].get("source")
    if source:
        fields["arguments"]["source"] = source_hash(source)
    if model.training.layer_decay != 1:
        fields["layers"] = "fine"  # they were groups once
    return {"strategy": fields}


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
        "weights": own.weights if recipe.is_text else "none",  # of a text model they say what its architecture is
        "strategy": Strategy(),
        "training": own.training.model_copy(update={"freeze_backbone": False, "layer_decay": 1.0}),
        "text": own.text.model_copy(update={"lora": None}),
    }
    return recipe.model_copy(update={"teacher": own.model_copy(update=changed)})
