"""Fit: each candidate with random weights, exported, quantised and timed on the device, before anything is trained.

A file's size, speed and memory follow from its architecture; only its answers need training. Two entries of the store
for each candidate and runtime: its files, and their timing on one device, so that nothing is done twice.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from distilledge.models.errors import MissingPackageError, RejectedError
from distilledge.pipeline import checkpoint as checkpoints
from distilledge.pipeline.benchmark import QUICK_SAMPLES, candidate
from distilledge.pipeline.data.synthetic import DEFECTS, picture
from distilledge.pipeline.recipe import ExportTarget, Recipe, Synthetic
from distilledge.pipeline.record import Checkpoint, ExportResult, Measurements
from distilledge.pipeline.search.candidates import Candidate, candidates
from distilledge.pipeline.search.fits import FitResult, FitRow, row_of, unfit
from distilledge.pipeline.step_packages import export_packages, package_versions
from distilledge.pipeline.steps import SATURATING
from distilledge.pipeline.store import Store, Stored, fingerprint
from distilledge.targets.devices import Device
from distilledge.targets.measure import measure
from distilledge.targets.ondevice.preprocess import InputSpec
from distilledge.targets.samples import pictures
from distilledge.targets.saturation import saturates

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger("distilledge")
VERSIONS = {"candidate": 2, "fit": 1}
"""Raised where a change of the code changes what is made from the same inputs."""
PICTURES = 64
"""Made pictures that the batch statistics and the int8 ranges are of."""
LAUNCHES = 2


class Ground(NamedTuple):
    """What all candidates share."""

    recipe: Recipe
    classes: int
    device: Device
    card: dict[str, Any]
    """``run.device_card``: the stable part."""
    store: Store
    again: bool = False
    """Time them anew, whatever was found before."""


@contextmanager
def standing(recipe: Recipe, work: Path, classes: int, *, again: bool = False) -> Iterator[Ground]:
    """With the recipe's device held."""
    from distilledge.pipeline.inventory import opened
    from distilledge.pipeline.run import device_card

    card = device_card(recipe)
    with opened(recipe.measure.device) as device:
        yield Ground(recipe, classes, device, card, Store(work / "store"), again)


def fit(ground: Ground, told: Callable[[str], None]) -> FitResult:
    """A row for every file of every candidate. ``told`` hears which candidate it is at."""
    rows: list[FitRow] = []
    pairs = [(c, t) for c in candidates(ground.recipe) for t in ground.recipe.export.targets]
    for number, (one, target) in enumerate(pairs):
        told(f"{number + 1} of {len(pairs)}: {one.name} {target.runtime}")
        rows += fitted(ground, one, target)
    return FitResult(device=ground.recipe.measure.device, card=ground.card, classes=ground.classes, rows=tuple(rows))


def fitted(ground: Ground, one: Candidate, target: ExportTarget) -> list[FitRow]:
    """One candidate in one runtime. A network that the runtime or its converter refuses fits nowhere, and says why."""
    try:
        files = made_files(ground, one, target)
        timing = timed(ground, one, files)
    except MissingPackageError as error:
        if not target.optional:
            raise
        log.warning("%s is optional and was left out: %s", target.runtime, error)
        return []
    except RejectedError as error:
        log.warning("%s cannot be run in %s: %s", one.name, target.runtime, error.what)
        return [unfit(one, target.runtime, error.what)]
    budget = ground.recipe.budget_of(target.runtime)
    return [row_of(ground.recipe, one, files.value, m, budget) for m in timing.value.items]


def made_files(ground: Ground, one: Candidate, target: ExportTarget) -> Stored[ExportResult]:
    """The files of the untrained network, found or made."""
    inputs = file_inputs(ground, one, target)
    return ground.store.once(
        "candidate",
        VERSIONS["candidate"],
        inputs,
        ExportResult,
        lambda out, _partial: _make(ground, one, inputs, out),
    )


def file_inputs(ground: Ground, one: Candidate, target: ExportTarget) -> dict[str, Any]:
    recipe = ground.recipe
    precisions = list(dict.fromkeys(("fp32", *target.precisions)))
    inputs: dict[str, Any] = {
        "model": one.model,
        "input": recipe.student.input.model_copy(update={"size": one.size}).model_dump(mode="json"),
        "classes": ground.classes,
        "runtime": target.runtime,
        "precisions": precisions,
        "packages": package_versions((*export_packages(recipe, target.runtime), "timm")),
    }
    if saturates(ground.card) and target.runtime in SATURATING and not {"w8dyn", "w8a8"}.isdisjoint(precisions):
        inputs["saturates"] = True
    return inputs


def timed(ground: Ground, one: Candidate, files: Stored[ExportResult]) -> Stored[Measurements]:
    """Its files, taking turns on the device; the last timing there is, unless ``again``."""
    settings, runtime = ground.recipe.measure, files.value.runtime
    inputs: dict[str, Any] = {
        "candidate": files.fingerprint,
        "device": ground.card,
        "threads": settings.threads[0],
        "warmup": settings.warmup,
        "units": settings.units.request(runtime),
        "take": 0,
    }
    while _is_timed(ground, inputs) and (ground.again or _is_timed(ground, inputs | {"take": inputs["take"] + 1})):
        inputs["take"] += 1
    return ground.store.once(
        "fit",
        VERSIONS["fit"],
        inputs,
        Measurements,
        lambda _out, _partial: time_files(ground, one, [(files.value, files.path)]),
    )


def _is_timed(ground: Ground, inputs: dict[str, Any]) -> bool:
    return ground.store.probe("fit", fingerprint("fit", VERSIONS["fit"], inputs))


def time_files(ground: Ground, one: Candidate, exports: Sequence[tuple[ExportResult, Path]]) -> Measurements:
    """A quick look, as the quantization ladder's: 256 inferences in two processes, on made pictures."""
    settings = ground.recipe.measure
    with TemporaryDirectory(prefix="distilledge-fit-") as folder:
        items = measure(
            [candidate(result, file, path, settings.units) for result, path in exports for file in result.files],
            ground.device,
            threads=settings.threads[0],
            samples=QUICK_SAMPLES,
            min_seconds=0.0,
            launches=LAUNCHES,
            warmup=settings.warmup,
            end_to_end=0,
            quick=True,
            inputs=pictures(made_pictures(one.size, Path(folder))),
        )
    return Measurements(items=items)


def _make(ground: Ground, one: Candidate, inputs: dict[str, Any], out: Path) -> ExportResult:
    from distilledge.pipeline.export import export

    log.info("%s: random weights -> %s ...", one.name, inputs["runtime"])
    with TemporaryDirectory(prefix="distilledge-untrained-") as folder:
        made = made_pictures(one.size, Path(folder))
        checkpoint = untrained(ground.recipe, one, ground.classes, made, Path(folder))
        return export(
            checkpoint,
            Path(folder),
            role="student",
            runtime=inputs["runtime"],
            precisions=inputs["precisions"],
            calibration=pictures(made),
            out=out,
            saturates=inputs.get("saturates", False),
        )


def untrained(recipe: Recipe, one: Candidate, classes: int, seen: Sequence[Path], out: Path) -> Checkpoint:
    """Random weights with the batch statistics of the pictures ``seen``, written to ``out`` as a checkpoint."""
    import torch

    from distilledge.models import vision
    from distilledge.models.untrained import as_trained
    from distilledge.pipeline.inputs import normalise
    from distilledge.pipeline.training.counters import Purpose, torch_seed
    from distilledge.targets.ondevice.preprocess import preprocess

    spec = input_spec(recipe, one)
    before = torch.get_rng_state()
    torch.manual_seed(torch_seed(Purpose.WEIGHTS, 0))
    model = vision.create(one.model, classes=classes, size=one.size)
    torch.set_rng_state(before)
    rows = np.stack([preprocess(path, spec) for path in seen])
    as_trained(model, normalise(rows, spec))
    return described(model, one, spec, classes, out)


def described(model: nn.Module, one: Candidate, spec: InputSpec, classes: int, out: Path) -> Checkpoint:
    """Write the weights into ``out``; the record of a student that no stage trained."""
    from distilledge.models import vision

    size = vision.profile(model, one.size)
    return Checkpoint(
        role="student",
        model=one.model,
        classes=tuple(f"class {number}" for number in range(classes)),
        input_spec=spec.to_dict(),
        weights_sha256=checkpoints.save_weights(model.state_dict(), out),
        parameters=size.parameters,
        macs=size.macs,
        validation={},
        best_epoch=0,
        epochs=0,
        seconds=0.0,
        samples_per_second=0.0,
        precision="fp32",
    )


def input_spec(recipe: Recipe, one: Candidate) -> InputSpec:
    """Of the candidate; made pictures have 8 bits whatever the recipe's have, which changes no file."""
    from distilledge.models.vision import input_defaults

    rule = recipe.student.input.model_copy(update={"size": one.size, "bit_depth": 8})
    return checkpoints.input_spec(rule, recipe.data, input_defaults(one.model))


def made_pictures(size: int, folder: Path) -> list[Path]:
    """``PICTURES`` generated surfaces of that size, written there."""
    options, kinds = Synthetic(size=max(32, size)), sorted(DEFECTS)
    paths = [folder / f"made-{options.size}-{number:03d}.png" for number in range(PICTURES)]
    for number, path in enumerate(paths):
        picture(kinds[number % len(kinds)], number, options).save(path)
    return paths
