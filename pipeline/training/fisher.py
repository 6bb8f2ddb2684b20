"""The Fisher information of a teacher's pretrained weights, for elastic weight consolidation."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from distilledge.models.errors import UsageError
from distilledge.models.penalties import diagonal_fisher
from distilledge.pipeline.recipe_strategy import EWC
from distilledge.pipeline.record import Sample, data_root
from distilledge.pipeline.training.counters import Purpose, generator, torch_seed
from distilledge.pipeline.training.environment import prepare_accelerator, repeatable
from distilledge.pipeline.training.picture_stage import input_spec
from distilledge.pipeline.training.pictures import FromFiles, readable
from distilledge.pipeline.training.source import read_source, source_model
from distilledge.pipeline.training.stage import Stage
from distilledge.pipeline.training.views import ToInput, fitted_loader
from distilledge.targets.ondevice.preprocess import InputSpec

log = logging.getLogger("distilledge.training")
BATCH = 32


def source_fisher(stage: Stage, arguments: EWC, names: Sequence[str]) -> dict[str, Tensor]:
    """The diagonal, of the parameters ``names``, under the weights' own head.

    Raises ``UsageError`` where the recipe names no source, or the weights have no head.
    """
    samples, root = _samples(stage, arguments)
    model, spec = source_model(stage), input_spec(stage)
    device = prepare_accelerator(stage.settings, stage.partial).device
    model.to(device)
    inputs = _inputs(samples, root, spec, device_of=model)
    with repeatable(device), readable():
        found = diagonal_fisher(model, inputs, names, seed=torch_seed(Purpose.WEIGHTS, stage.recipe.seed, 3))
    return {name: tensor.cpu() for name, tensor in found.items()}


def _samples(stage: Stage, arguments: EWC) -> tuple[list[Sample], Path]:
    """Those that the Fisher information is taken of, drawn by the seed, and where they lie."""
    if arguments.fisher == "target":
        log.warning("ewc: the Fisher information is of the target's pictures: what the source needs is not known")
        samples, root = stage.train_samples, data_root(stage.splits, stage.data_dir)
        order = generator(Purpose.WEIGHTS, stage.recipe.seed, 4).permutation(len(samples))
        return [samples[i] for i in np.sort(order[: arguments.samples])], root
    if not arguments.source:
        raise no_source()
    source = read_source(arguments.source, seed=stage.recipe.seed, drawn=arguments.samples)
    return source.learned, source.root


def no_source() -> UsageError:
    return UsageError(
        "E2469",
        "strategy ewc: no source",
        "set its argument source to pictures (or texts) that the weights were trained on, or fisher: target, which is "
        "not the same",
    )


def _inputs(samples: list[Sample], root: Path, spec: InputSpec, *, device_of: nn.Module) -> Iterator[Tensor]:
    device, to_input = next(device_of.parameters()).device, ToInput(spec)
    files = FromFiles(samples, root, spec, fitted=True)
    for loaded in fitted_loader(files, range(len(files)), BATCH, workers=0):
        yield to_input(loaded.inputs).to(device)
