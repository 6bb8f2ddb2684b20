"""What ``plan --suggest`` looks at: the listing of the data, and a sample of it through the pretrained teacher."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from distilledge.models.errors import RejectedError, UsageError
from distilledge.pipeline.data.formats import detect, list_unlabelled, listing
from distilledge.pipeline.data.listing import Row, expand, shown
from distilledge.pipeline.data.manifest import find, read
from distilledge.pipeline.data.text_describe import describe_text, is_text
from distilledge.pipeline.init import draft
from distilledge.pipeline.init_counts import train_share
from distilledge.pipeline.recipe import Recipe
from distilledge.pipeline.recipe_domain import ADAPTED
from distilledge.pipeline.recipe_file import load_recipe
from distilledge.pipeline.record import Sample
from distilledge.pipeline.suggest import Facts, keeps_source

log = logging.getLogger("distilledge")
LOOKED_AT, BATCH, NEIGHBOURS = 256, 32, 5
"""Pictures that go through the teacher, at a time, and neighbours that vote."""
MOST_VALUES = 50
"""Different values of a column that could be a task's classes."""
UNLABELLED = ("E3103", "E3104")
"""Codes of a folder without class folders."""


NO_FEATURES = ("E2463", "E2464")
"""Codes of a model whose head is not one linear layer on features."""


class Seen(NamedTuple):
    """What the teacher's weights say of a sample."""

    distance: float | None
    separation: float | None
    notes: tuple[str, ...]


def recipe_of(data: Path, overrides: list[str]) -> Recipe | None:
    """The recipe that ``init`` would draft; None for pictures without class folders."""
    try:
        text = draft(data)
    except RejectedError as error:
        if error.code not in UNLABELLED or not data.is_dir():
            raise
        return None
    with TemporaryDirectory() as place:
        path = Path(place) / "drafted.yaml"
        path.write_text(text, encoding="utf-8")
        return load_recipe(path, overrides=overrides, smoke=False)


def facts_of(recipe: Recipe | None, data: Path, *, target: str = "", keep: bool = False) -> Facts:
    """``data``: looked at where there is no recipe: pictures without labels."""
    if recipe is None:
        rows = list_unlabelled(str(data)).rows
        return Facts("image-classification", 0, len(rows), 0, 0, (), target, keep, pretrained=False)
    target = target or _target_of(recipe)
    keep = keep or keeps_source(recipe)
    return _of_texts(recipe, target, keep) if recipe.is_text else _of_pictures(recipe, target, keep)


def _target_of(recipe: Recipe) -> str:
    found: Any = recipe.data.model_dump().get("target")
    return str(found["path"]) if found else ""


def _of_texts(recipe: Recipe, target: str, keep: bool) -> Facts:
    if recipe.data.path == "synthetic" or not is_text(recipe.data.path):
        raise RejectedError("E3581", f"no texts to look at: {recipe.data.path}", "give a file of texts")
    found = describe_text(recipe.data.path)
    counts = Counter(dict.fromkeys(found["classes"], 0))
    for split, of in found["counts"].items():
        if split in ("train", "all"):
            counts.update(of)
    whole = "train" in found["counts"]
    smallest = min(counts.values(), default=0)
    return Facts(
        task=found["task"],
        samples=sum(counts.values()),
        unlabelled=found["texts"].get("unlabelled", 0),
        classes=len(counts),
        per_class=smallest if whole else train_share(0, smallest),
        label_columns=(),
        target=target if recipe.task in ADAPTED else "",
        keep_source=keep,
        pretrained=recipe.teacher.weights != "none" or recipe.teacher.pretraining is not None,
        attention=True,
        unknown=("how near the texts are to the source of the weights: it is measured of pictures alone",),
    )


def _of_pictures(recipe: Recipe, target: str, keep: bool) -> Facts:
    with TemporaryDirectory() as scratch:
        source = listing(recipe.data, Path(scratch))
        labelled = [row for row in source.rows if row.label is not None]
        given = any(row.split == "train" for row in labelled)
        learned = [row for row in labelled if row.split == "train"] if given else labelled
        counts = Counter(row.label for row in learned)
        smallest = min(counts.values(), default=0)
        seen = _seen(recipe, source.root, learned) if learned else Seen(None, None, ())
    return Facts(
        task=recipe.task,
        samples=len(learned),
        unlabelled=len(source.rows) - len(labelled),
        classes=len(counts),
        per_class=smallest if given else train_share(0, smallest),
        label_columns=_label_columns(recipe),
        target=target,
        keep_source=keep,
        pretrained=recipe.teacher.weights != "none",
        attention=_attends(recipe.teacher.model),
        distance=seen.distance,
        separation=seen.separation,
        chance=max(counts.values(), default=0) / max(1, len(learned)),
        unknown=seen.notes,
    )


def _label_columns(recipe: Recipe) -> tuple[str, ...]:
    """Of a manifest: the label, and other columns with few different values that are no numbers."""
    if detect(recipe.data) != "manifest":
        return ()
    header, records = read(find(Path(expand(recipe.data.path))))
    names = recipe.data.columns
    found = []
    for column in header:
        values = {str(fields.get(column) or "") for _, fields in records} - {""}
        other = column in (names.path, names.split, names.group)
        numbers = all(value.replace(".", "", 1).lstrip("-").isdigit() for value in values)
        if column == names.label or (not other and not numbers and 2 <= len(values) <= MOST_VALUES):
            found.append(column)
    return tuple(found)


def _attends(model: str) -> bool:
    import torch

    from distilledge.models.vision_lora import target_names
    from distilledge.models.vision_names import build, input_defaults

    with torch.device("meta"):
        return bool(target_names(build(model, classes=2, size=input_defaults(model).size)))


# --- a sample through the weights ------------------------------------------------------------------------------------


def _seen(recipe: Recipe, root: Path, rows: Sequence[Row]) -> Seen:
    """Of at most ``LOOKED_AT`` pictures, evenly taken. Weights are never fetched for it."""
    from distilledge.models import vision

    part, name = recipe.teacher, "the similarity to the source"
    if part.weights == "none":
        return Seen(None, None, (f"{name}: teacher.weights is none",))
    if part.weights == "hub" and not _in_cache(part.model):
        return Seen(None, None, (f"{name}: the hub weights of {part.model} are not on this machine, and not fetched",))
    weights = part.weights if part.weights == "hub" else expand(part.weights)
    if weights != "hub" and not Path(weights).is_file():
        return Seen(None, None, (f"{name}: no such weights: {shown(weights)}",))
    some = rows[:: -(-len(rows) // LOOKED_AT)]
    names = sorted({str(row.label) for row in some})
    model = vision.create(
        part.model, classes=len(names), size=part.input.size, weights=weights, trust_pickle=part.trust_pickle
    )
    try:
        return _through(recipe, model, root, some, names)
    except UsageError as error:
        if error.code not in NO_FEATURES:
            raise
        return Seen(None, None, (f"{name}: {error.what}",))


def _in_cache(model: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    from distilledge.models.vision_names import config

    found = config(model)
    return bool(found and found.hf_hub_id) and isinstance(
        try_to_load_from_cache(found.hf_hub_id, "model.safetensors"), str
    )


def _through(recipe: Recipe, model: Any, root: Path, rows: Sequence[Row], names: Sequence[str]) -> Seen:
    import torch

    from distilledge.models import vision
    from distilledge.models.domain_distance import batch_norm_distance
    from distilledge.models.neighbours import Features, NearestNeighbours
    from distilledge.pipeline.checkpoint import input_spec
    from distilledge.pipeline.training.pictures import FromFiles, readable
    from distilledge.pipeline.training.views import ToInput, fitted_loader

    spec = input_spec(recipe.teacher.input, recipe.data, vision.input_defaults(recipe.teacher.model))
    samples = [Sample(row.path, names.index(str(row.label)), "", "train", "", False) for row in rows]
    features, to_input = Features(model.eval()), ToInput(spec)
    parts: list[torch.Tensor] = []

    def inputs() -> Iterator[torch.Tensor]:
        files = FromFiles(samples, root, spec, fitted=True)
        for loaded in fitted_loader(files, range(len(files)), BATCH, workers=0):
            yield to_input(loaded.inputs)

    features.register_forward_hook(lambda _module, _given, found: parts.append(found))
    with readable(), torch.inference_mode():
        distance = batch_norm_distance(features, inputs())
        found, labels = torch.cat(parts), torch.tensor([s.label for s in samples])
        nearest = NearestNeighbours(len(found), found.shape[1], len(names), k=NEIGHBOURS, temperature=0.07)
        answers = nearest.fill(found, torch.eye(len(names))[labels]).left_out().argmax(1)
    recalls = [float((answers[labels == n] == n).float().mean()) for n in range(len(names)) if (labels == n).any()]
    notes = () if distance is not None else ("the distance to the source: the teacher has no BatchNorm",)
    return Seen(distance, float(np.mean(recalls)), notes)
