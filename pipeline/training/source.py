"""What the pretrained weights knew: the network as it was published, its pictures, and how much of it is kept."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import safetensors.torch
import torch
from torch import nn

from distilledge.models import vision
from distilledge.models.errors import RejectedError, UsageError
from distilledge.models.metrics import top1
from distilledge.models.transfer import head_module
from distilledge.models.vision_names import config
from distilledge.pipeline import stats
from distilledge.pipeline.checkpoint import WEIGHTS
from distilledge.pipeline.data.formats import detect, list_unlabelled, listing
from distilledge.pipeline.data.listing import Row, expand
from distilledge.pipeline.data.manifest import find, guess_columns, read
from distilledge.pipeline.recipe import Data
from distilledge.pipeline.record import Sample, SourceKept
from distilledge.pipeline.training import evaluate
from distilledge.pipeline.training.counters import Purpose, generator
from distilledge.pipeline.training.environment import prepare_accelerator, repeatable
from distilledge.pipeline.training.picture_stage import input_spec
from distilledge.pipeline.training.pictures import FromFiles, readable
from distilledge.pipeline.training.stage import Stage
from distilledge.pipeline.training.views import ToInput

log = logging.getLogger("distilledge.training")
MOST = 2000
"""Pictures of the source that are looked at before and after."""
NOT_A_SET = ("E3103", "E3104")
"""Codes of a folder that is no labelled data set."""


class Source(NamedTuple):
    """The pictures of a source by their use. ``held``: those never used for training or for the Fisher information."""

    root: Path
    learned: list[Sample]
    held: list[Sample]
    classes: tuple[str, ...]
    """Sorted; empty where the pictures have no labels."""
    declared: bool
    """Whether the source has a test part of its own."""


def source_model(stage: Stage) -> nn.Module:
    """The pretrained network as it was published, with its own classes."""
    part = stage.part
    weights = part.weights if part.weights in ("hub", "none") else expand(part.weights)
    if weights == "none":
        raise UsageError("E2468", "strategy ewc keeps what pretrained weights know", "set teacher.weights")
    if weights == "hub":
        classes = int(config(part.model).num_classes)
    else:
        state, _ = vision.read_weights(Path(weights), trust_pickle=part.trust_pickle)
        probe = vision.create(part.model, classes=2, size=part.input.size)
        kernel = state.get(f"{head_module(probe)}.weight")
        if kernel is None:
            raise UsageError(
                "E2470", f"the weights have no head, so nothing says what they knew: {weights}", "use strategy: l2-sp"
            )
        classes = len(kernel)
    return vision.create(
        part.model, classes=classes, weights=weights, size=part.input.size, trust_pickle=part.trust_pickle
    )


def read_source(path: str, *, seed: int, drawn: int = 0) -> Source:
    """The pictures of a folder or manifest. ``drawn``: so many are taken by the seed for the Fisher information.

    A source without a test part of its own is held out but for those drawn.
    """
    labelled = _labelled(path)
    if labelled is None:
        listed = list_unlabelled(path)
        root, rows = listed.root, listed.rows
    else:
        root, rows = labelled
    names = tuple(sorted({row.label for row in rows if row.label is not None}))
    numbers = {name: number for number, name in enumerate(names)}
    samples = [Sample(r.path, numbers.get(r.label or "", -1), r.group or "", "unlabelled", "", False) for r in rows]
    tested = [row.split == "test" for row in rows]
    open_to_use = [i for i in range(len(rows)) if not tested[i]]
    order = generator(Purpose.WEIGHTS, seed, 4).permutation(len(open_to_use))[:drawn]
    taken = {open_to_use[i] for i in order}
    held = [i for i in range(len(rows)) if (tested[i] if any(tested) else i not in taken)]
    return Source(root, [samples[i] for i in sorted(taken)], [samples[i] for i in held], names, any(tested))


def _labelled(path: str) -> tuple[Path, list[Row]] | None:
    """Root and rows of a labelled set; None where the folder is none."""
    data = Data(path=path)
    try:
        if detect(data) == "manifest":
            columns = guess_columns(read(find(Path(expand(path))))[0])
            data = data.model_copy(update={"columns": columns})
        with TemporaryDirectory() as scratch:
            found = listing(data, Path(scratch))
            if found.unpacked or found.synthetic:
                raise UsageError("E2583", f"a source must be a folder or a manifest: {path}", "give a folder")
            return found.root, [row for row in found.rows if row.split != "unlabelled"]
    except RejectedError as error:
        if error.code not in NOT_A_SET:
            raise
        return None


def kept(stage: Stage, path: str, *, drawn: int = 0) -> SourceKept | None:
    """How the published head does on the source with the backbone as it was, and as the stage has just written it.

    None, with a warning, where labels and head do not belong together.
    """
    source, model = read_source(path, seed=stage.recipe.seed, drawn=drawn), source_model(stage)
    place = head_module(model)
    order = _order(stage, source, outputs=len(model.get_submodule(place).weight))  # type: ignore[arg-type]
    if order is None:
        return None
    chosen = generator(Purpose.WEIGHTS, stage.recipe.seed, 5).permutation(len(source.held))[:MOST]
    samples = [source.held[i] for i in np.sort(chosen)]
    labels = np.array([order[s.label] for s in samples], np.int64)
    before = _right(stage, model, samples, source.root, labels)
    own = {k: v for k, v in safetensors.torch.load_file(stage.out / WEIGHTS).items() if not k.startswith(f"{place}.")}
    missing = model.load_state_dict(own, strict=False).missing_keys
    assert all(name.startswith(f"{place}.") for name in missing), missing
    after = _right(stage, model, samples, source.root, labels)
    groups = [s.group for s in samples] if any(s.group for s in samples) else None
    return SourceKept(
        what="accuracy",
        samples=len(samples),
        declared=source.declared,
        before=stats.metric_interval(before, labels, metric="accuracy", groups=groups),
        after=stats.metric_interval(after, labels, metric="accuracy", groups=groups),
        lost=stats.paired_drop(before, after, labels, metric="accuracy", groups=groups, seed=stage.recipe.seed),
    )


def _order(stage: Stage, source: Source, *, outputs: int) -> list[int] | None:
    """Output of the head of each class of the source: by the names beside the weights, else in sorted order."""
    if not source.classes or not source.held:
        log.warning("source: its pictures have no labels, so how much is forgotten is not told")
        return None
    known = _names_beside(expand(stage.part.weights)) or source.classes
    if len(known) != outputs or not set(source.classes) <= set(known):
        log.warning(
            "source: %d classes, and the weights' head has %d outputs: how much is forgotten is not told",
            len(source.classes),
            outputs,
        )
        return None
    return [known.index(name) for name in source.classes]


def _names_beside(weights: str) -> tuple[str, ...] | None:
    """The classes of a model that a run of ours has made: they stand in the record beside its weights."""
    record = Path(weights).parent / "value.json"
    if weights in ("hub", "none") or not record.is_file():
        return None
    found = json.loads(record.read_text(encoding="utf-8"))
    return tuple(found["classes"]) if "classes" in found else None


def _right(stage: Stage, model: nn.Module, samples: list[Sample], root: Path, labels: stats.Ints) -> stats.Bools:
    spec, accelerator = input_spec(stage), prepare_accelerator(stage.settings, stage.partial)
    with repeatable(accelerator.device), readable(), torch.inference_mode():
        logits = evaluate.predict(
            model.to(accelerator.device),
            ToInput(spec).to(accelerator.device),
            FromFiles(samples, root, spec, fitted=True),
            range(len(samples)),
            accelerator=accelerator,
            workers=stage.recipe.data.workers,
            poll=lambda: None,
        )
    return np.asarray(top1(logits.numpy()) == labels)
