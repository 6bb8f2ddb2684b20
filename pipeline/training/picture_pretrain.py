"""Pretraining on pictures without labels: SimSiam on the data's own, the target's and those of an optional folder."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image, ImageEnhance, ImageFilter
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from distilledge.models.domains import SimSiam, batch_statistics, simsiam, spread
from distilledge.models.errors import RejectedError, UsageError
from distilledge.models.features import FeatureTap
from distilledge.models.losses_total import DistillationLoss
from distilledge.models.neighbours import Features
from distilledge.models.transfer import head_module
from distilledge.pipeline import checkpoint as checkpoints
from distilledge.pipeline.data.formats import list_unlabelled
from distilledge.pipeline.recipe import Augment, Recipe, Training
from distilledge.pipeline.record import Checkpoint, Role, Sample, Splits, read_samples
from distilledge.pipeline.training import many
from distilledge.pipeline.training.adaptation import head_width
from distilledge.pipeline.training.counters import IntArray, Purpose, generator, weights_drawn
from distilledge.pipeline.training.domain_feed import Pairs
from distilledge.pipeline.training.events import Report
from distilledge.pipeline.training.loaded import Loaded
from distilledge.pipeline.training.mixing import Batch
from distilledge.pipeline.training.objective import Objective
from distilledge.pipeline.training.picture_stage import describe, input_spec, new_model, pictures_of
from distilledge.pipeline.training.pictures import Pictures, Uint8Array
from distilledge.pipeline.training.stage import Stage, Taught, run_stage
from distilledge.pipeline.training.views import Key, Steps, ToInput, ViewRule, collate, make_view, view_loader

log = logging.getLogger("distilledge.training")

CROP = (0.2, 1.0)
"""Share of the picture that a view keeps, where the recipe does not say (Chen & He 2021, section 4)."""
HELD_OUT = 256
"""Validation pictures that the curves are of, at most."""
COLLAPSED = 0.1
"""Spread of the outputs, 1 where they point everywhere, below which all pictures look alike to the network."""
PROJECTOR, LOOK = 32, 1
"""Counters of the projector's weights, and of what changes a view beside its crop."""


def pretrain_pictures(
    recipe: Recipe, splits: Splits, data_dir: Path, role: Role, out: Path, *, partial: Path, report: Report
) -> Checkpoint:
    """Train the network of ``role`` to say the same of two views of a picture; its head stays as it was.

    A collapse is a warning and a note of the checkpoint. Raises what ``loop.train`` raises.
    """
    stage = Stage(role, recipe, splits, data_dir, out, partial, report, pretraining=True)
    if many.process_count(stage.settings) > 1:
        raise UsageError("E2534", "pretraining on pictures runs in one process", "export CUDA_VISIBLE_DEVICES=0")
    model, spec = new_model(stage), input_spec(stage)
    head = {name: t.clone() for name, t in model.state_dict().items() if name.startswith(f"{head_module(model)}.")}
    width = head_width(model)
    with weights_drawn(recipe.seed, PROJECTOR):
        pair = SimSiam(width, max(256, min(2048, 2 * width)))
    samples = learned_samples(stage)
    feed = make_feed(stage, samples, pair)
    made = replace(describe(stage, model, spec.height, len(samples)), finished=lambda state: state | head)
    objective = Objective(
        model, ToInput(spec), DistillationLoss(), tap=FeatureTap(model, embedding=True), auxiliary=pair
    )
    trained = run_stage(stage, objective, feed, made)
    least = min(trained.validation["spread"], trained.validation["feature_spread"])
    if least >= COLLAPSED:
        return trained
    words = collapse_words(least)
    log.warning("%s: %s", stage.name, words)
    return trained.model_copy(update={"notes": (words,)})


def collapse_words(found: float) -> str:
    return (
        f"it collapsed: the outputs of all pictures point nearly one way (spread {found:.3f} of 1), so it taught "
        "nothing; lower pretraining.training.lr, or give it more pictures"
    )


def learned_samples(stage: Stage) -> list[Sample]:
    """Train, unlabelled and target pictures, and those of the corpus; none that is held out, by content."""
    every = read_samples(stage.data_dir)
    own = [s for s in every if s.split in ("train", "unlabelled", "target")]
    corpus = stage.language.corpus
    if corpus is None:
        return own
    held = {s.sha256 for s in every if s.split in ("validation", "test", "source-test")}
    listed = list_unlabelled(corpus, f"{stage.role}.pretraining.corpus")
    paths = [listed.root / row.path for row in listed.rows]
    more = [Sample(str(p), -1, "", "unlabelled", _sha256(p), False) for p in paths]
    free = [s for s in more if s.sha256 not in held]
    if len(free) < len(more):
        log.warning("%s: %d pictures of the corpus are held out and were left out", stage.name, len(more) - len(free))
    return own + free


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Looks(Dataset[tuple[Uint8Array, int]]):
    """Views by (epoch, index), two for each picture: those of picture i have the indices i and i + N."""

    def __init__(self, pictures: Pictures, rule: ViewRule) -> None:
        self.pictures, self.rule = pictures, rule

    def __len__(self) -> int:
        return 2 * len(self.pictures)

    def __getitem__(self, key: Key) -> tuple[Uint8Array, int]:
        epoch, index = key
        view = make_view(self.pictures[index % len(self.pictures)], self.rule, epoch, index)
        return changed(view, generator(Purpose.VIEW, self.rule.seed, epoch, index, LOOK)), index


def changed(view: Uint8Array, random: np.random.Generator) -> Uint8Array:
    """Brightness, contrast and colour times 0.6 to 1.4, each in 4 of 5 views together; grey in one of 5, blurred in 2.

    Chen & He 2021, section 4, without the change of hue.
    """
    image = Image.fromarray(view)
    jitters, grey, blur = random.random(3) < (0.8, 0.2, 0.5)
    factors = random.uniform(0.6, 1.4, 3)
    if jitters:
        for enhance, factor in zip(
            (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), factors, strict=True
        ):
            image = enhance(image).enhance(float(factor))
    if grey:
        image = image.convert("L").convert("RGB")
    if blur:
        image = image.filter(ImageFilter.GaussianBlur(float(random.uniform(0.1, 2.0)) * max(view.shape) / 224))
    return np.asarray(image)


@dataclass(frozen=True)
class LookFeed:
    """Two views of each picture, one behind the other; see ``Feed``."""

    looks: Looks
    names_once: tuple[str, ...]
    held: Looks
    pair: SimSiam
    classes: int
    workers: int

    @property
    def names(self) -> tuple[str, ...]:
        return self.names_once * 2

    @property
    def labels(self) -> IntArray:
        return np.full(len(self.looks), -1, np.int64)

    def steps(self, settings: Training, seed: int, accelerator: Accelerator) -> Steps:  # noqa: ARG002 (one process)
        count = len(self.names_once)
        size = settings.batch_size * settings.accumulate
        return Pairs(np.full(count, -1, np.int64), size, lambda _, own: own + count, seed=seed, balanced=False)

    def loader(self, steps: Steps, *, pin: bool) -> Iterable[Loaded]:
        return view_loader(self.looks, steps, workers=self.workers, pin=pin)

    def batch(self, loaded: Loaded, counters: tuple[int, ...], accelerator: Accelerator) -> Batch:  # noqa: ARG002
        device = accelerator.device
        none = torch.zeros(len(loaded.inputs), self.classes, device=device)
        return Batch(loaded.inputs.to(device, non_blocking=True), none)

    @torch.no_grad()
    def validate(
        self, model: nn.Module, to_input: nn.Module, accelerator: Accelerator, poll: Callable[[], None]
    ) -> dict[str, float]:
        """``accuracy``: pictures whose first view is nearest to their own second one, of all second views, by cosine of
        the projections; ``spread`` of these, and ``feature_spread`` of the head's input, because the projector's
        BatchNorm magnifies what little is left after a collapse; ``loss``. BatchNorm goes by the batch, as in training.
        """
        features, parts, seen = Features(model), [], []
        with batch_statistics(model, self.pair):
            for start in range(0, len(self.held.pictures), 32):
                poll()
                views = self._held_views(start).to(accelerator.device)
                with accelerator.autocast():
                    seen.append(features(to_input(views)).float())
                    parts.append(self.pair.projector(seen[-1]).float())
            rows = torch.cat(parts)
            loss = float(simsiam(self.pair.predictor(rows), rows))
        spreads = {"spread": spread(rows), "feature_spread": spread(torch.cat(seen))}
        return {**_alike(rows), **spreads, "loss": loss}

    def _held_views(self, start: int) -> Tensor:
        """uint8 (2 N, 3, V, V) of up to 32 held-out pictures."""
        count = len(self.held.pictures)
        keys = [(0, i + shift) for i in range(start, min(start + 32, count)) for shift in (0, count)]
        return collate([self.held[key] for key in keys]).inputs


def _alike(rows: Tensor) -> dict[str, float]:
    one, other = functional.normalize(rows[0::2], dim=1), functional.normalize(rows[1::2], dim=1)
    nearest = (one @ other.T).argmax(1).cpu()
    return {"accuracy": float((nearest == torch.arange(len(nearest))).float().mean())}


def make_feed(stage: Stage, samples: list[Sample], pair: SimSiam) -> LookFeed:
    """Raises ``RejectedError`` for fewer than two pictures to learn from, or none to validate on."""
    validation = read_samples(stage.data_dir, "validation")[:HELD_OUT]
    if len(samples) < 2 or not validation:
        what = f"{len(samples)} pictures to pretrain on, {len(validation)} to validate on"
        raise RejectedError("E3535", what, "add pictures, or leave pretraining out")
    spec = input_spec(stage)
    augment = stage.settings.augment
    if augment == Augment():
        augment = Augment(crop_scale=CROP)
    rule = ViewRule(spec, augment, stage.recipe.seed)
    return LookFeed(
        looks=Looks(pictures_of(stage, samples, spec, fitted=False), rule),
        names_once=tuple(s.path for s in samples),
        held=Looks(pictures_of(stage, validation, spec, fitted=False), rule),
        pair=pair,
        classes=len(stage.splits.classes),
        workers=stage.recipe.data.workers,
    )


def start_from(model: nn.Module, pretrained: Taught | None) -> nn.Module:
    """``model`` with the backbone of its pretraining; the head is its own."""
    if pretrained is None:
        return model
    place = f"{head_module(model)}."
    state = checkpoints.load(*pretrained).state_dict()
    model.load_state_dict({**model.state_dict(), **{n: t for n, t in state.items() if not n.startswith(place)}})
    return model
