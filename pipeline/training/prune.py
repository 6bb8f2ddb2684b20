"""The pruning stage: the trained student with fewer channels, distilled again from the weights that are left."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from distilledge.models import vision
from distilledge.models.pruning import changed, widest
from distilledge.pipeline import checkpoint as checkpoints
from distilledge.pipeline.disk import atomic_write
from distilledge.pipeline.recipe import Recipe
from distilledge.pipeline.record import Checkpoint, Splits
from distilledge.pipeline.reshape import check_package
from distilledge.pipeline.training.distill import distill
from distilledge.pipeline.training.events import Report
from distilledge.pipeline.training.stage import Taught
from distilledge.targets import get
from distilledge.targets.measure import Candidate
from distilledge.targets.samples import Samples

START = "start.json"
SAMPLES, LAUNCHES = 128, 2
"""Of a latency that decides how much is cut."""

log = logging.getLogger(__name__)


def prune(  # noqa: PLR0913 (what a stage is given, by name)
    recipe: Recipe,
    splits: Splits,
    data_dir: Path,
    source: Taught,
    goal: float,
    out: Path,
    *,
    taught_by: Taught | None,
    inputs: Samples,
    partial: Path,
    report: Report,
) -> Checkpoint:
    """Cut channels of ``source`` until ``goal`` of the unpruned student is left, and train what is left.

    ``taught_by``: None for the control. ``inputs``: what it is timed on, where the latency decides. The cut network
    lies in ``partial`` before it is trained: a killed training goes on with the same one, however the latency was.
    Raises ``MissingPackageError`` (exit 4) without torch-pruning.
    """
    settings = recipe.student.prune
    assert settings is not None
    start = partial / START
    if not start.is_file():
        checkpoint = _cut(recipe, source, goal, inputs, partial)
        atomic_write(start, checkpoint.model_dump_json())
    begun = Checkpoint.model_validate_json(start.read_bytes())
    own = recipe.student.model_copy(update={"training": settings.training or recipe.student.training})
    return distill(
        recipe.model_copy(update={"student": own}),
        splits,
        data_dir,
        taught_by,
        out,
        partial=partial,
        report=report,
        start=(begun, partial),
    )


def _cut(recipe: Recipe, source: Taught, goal: float, inputs: Samples, directory: Path) -> Checkpoint:
    """Write the pruned weights into ``directory``."""
    check_package()
    settings = recipe.student.prune
    assert settings is not None
    checkpoint, _ = source
    model, size = checkpoints.load(*source), int(checkpoint.input_spec["height"])
    unpruned = checkpoints.built(_without_channels(checkpoint))
    with TemporaryDirectory(prefix="distilledge-prune-") as folder:
        by_latency = settings.latency is not None
        fits = Clock(recipe, checkpoint, goal, inputs, Path(folder)) if by_latency else _by_macs(unpruned, size, goal)
        made = widest(model, torch.zeros(1, 3, size, size), fits, by=settings.by, multiple=settings.multiple)
    found, whole = vision.profile(made, size), vision.profile(unpruned, size)
    log.info("pruned to %.1f %% of the MACs, %s parameters", 100 * found.macs / whole.macs, f"{found.parameters:,}")
    return checkpoint.model_copy(
        update={
            "architecture": {**checkpoint.architecture, "channels": changed(unpruned, made)},
            "weights_sha256": checkpoints.save_weights(made.state_dict(), directory),
            "parameters": found.parameters,
            "macs": found.macs,
        }
    )


def _without_channels(checkpoint: Checkpoint) -> Checkpoint:
    """As it was before any pruning."""
    kept = {name: value for name, value in checkpoint.architecture.items() if name != "channels"}
    return checkpoint.model_copy(update={"architecture": kept})


def _by_macs(unpruned: nn.Module, size: int, goal: float) -> Callable[[nn.Module], bool]:
    most = goal * vision.profile(unpruned, size).macs
    return lambda model: vision.profile(model, size).macs <= most


class Clock:
    """Whether the p50 of a network's fp32 file is at most ``goal`` of the unpruned one's, timed in turn on the device.

    Latency does not depend on weights: the unpruned network has random ones.
    """

    def __init__(self, recipe: Recipe, checkpoint: Checkpoint, goal: float, inputs: Samples, folder: Path) -> None:
        self.recipe, self.checkpoint, self.goal, self.inputs, self.folder = recipe, checkpoint, goal, inputs, folder
        self.target = get(recipe.export.targets[0].runtime)
        self.made = 0
        self.unpruned = self._candidate(checkpoints.built(_without_channels(checkpoint)))

    def __call__(self, model: nn.Module) -> bool:
        from distilledge.pipeline.gate import latency_ratio
        from distilledge.pipeline.inventory import opened
        from distilledge.targets.measure import measure

        settings = self.recipe.measure
        with opened(settings.device) as device:
            before, found = measure(
                [self.unpruned, self._candidate(model)],
                device,
                threads=settings.threads[0],
                samples=SAMPLES,
                min_seconds=0.0,
                launches=LAUNCHES,
                warmup=settings.warmup,
                end_to_end=0,
                quick=True,
                inputs=self.inputs,
            )
        ratio = latency_ratio(found, before, self.recipe.seed)
        assert ratio is not None
        log.info("pruned network: p50 %.2f of the unpruned one's", ratio.value)
        return ratio.value <= self.goal

    def _candidate(self, model: nn.Module) -> Candidate:
        from distilledge.pipeline.export import describe, finished

        directory = self.folder / f"network-{self.made}"
        directory.mkdir()
        self.made += 1
        deployable = describe(self.checkpoint, self.target)
        path = self.target.export(model.eval(), deployable, directory)
        exported = finished(self.target, [path], "fp32", "as exported", deployable, time.perf_counter())
        return Candidate(name=directory.name, role="student", directory=str(directory), exported=exported)
