"""A new head on a frozen backbone: features computed once, then a linear layer or the nearest neighbours among them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from distilledge.models.few_shot import HEADS, TipAdapter
from distilledge.models.losses import one_hot
from distilledge.models.neighbours import Features, NearestNeighbours
from distilledge.models.text_net import TextNet
from distilledge.models.transfer import Tuning, head_module
from distilledge.pipeline.interrupt import graceful
from distilledge.pipeline.outcomes import validation_metrics
from distilledge.pipeline.recipe import Training
from distilledge.pipeline.recipe_strategy import FeatureExtraction
from distilledge.pipeline.record import Sample, Split, data_root, read_samples
from distilledge.pipeline.step_packages import package_versions, training_packages
from distilledge.pipeline.training import evaluate, feature_cache, text_feed
from distilledge.pipeline.training.counters import IntArray
from distilledge.pipeline.training.environment import prepare_accelerator, repeatable, resolve_precision
from distilledge.pipeline.training.feature_cache import FloatArray
from distilledge.pipeline.training.feed import Feed, steps_of
from distilledge.pipeline.training.few_shot import base_head, few_shot_head, searched, training_loss
from distilledge.pipeline.training.loaded import Loaded
from distilledge.pipeline.training.loop import Trained
from distilledge.pipeline.training.mixing import Batch
from distilledge.pipeline.training.picture_stage import input_spec
from distilledge.pipeline.training.pictures import FromFiles, readable
from distilledge.pipeline.training.stage import Stage
from distilledge.pipeline.training.text_feed import TextFeed
from distilledge.pipeline.training.views import Steps

CACHE = ".features"
VALIDATED = 4096
"""Rows of features that the head answers at a time."""


@dataclass(frozen=True)
class FeatureFeed:
    """See ``Feed``: rows of features, all in memory. No augmentation: each sample has one row."""

    names: tuple[str, ...]
    labels: IntArray
    features: Tensor
    targets: Tensor
    validation: Tensor
    score: Callable[[FloatArray], dict[str, float]]

    def steps(self, settings: Training, seed: int, accelerator: Accelerator) -> Steps:
        return steps_of(self.labels, settings, seed, accelerator)

    def loader(self, steps: Steps, *, pin: bool) -> Iterable[Loaded]:  # noqa: ARG002 (all in memory)
        return _Rows(self.features, steps)

    def batch(self, loaded: Loaded, _counters: tuple[int, ...], accelerator: Accelerator) -> Batch:
        device = accelerator.device
        return Batch(loaded.inputs.to(device), self.targets[loaded.indices].to(device))

    @torch.inference_mode()
    def validate(
        self, model: nn.Module, _to_input: nn.Module, accelerator: Accelerator, poll: Callable[[], None]
    ) -> dict[str, float]:
        was_training = [module for module in model.modules() if module.training]
        model.eval()
        with accelerator.autocast():
            parts = [
                model(rows.to(accelerator.device)).float().cpu() for rows in torch.split(self.validation, VALIDATED)
            ]
        for module in was_training:
            module.training = True
        poll()
        return self.score(torch.cat(parts).numpy())


class _Rows:
    """Iterates over the steps each time it is started."""

    def __init__(self, features: Tensor, steps: Steps) -> None:
        self._features, self._steps = features, steps

    def __iter__(self) -> Iterator[Loaded]:
        for keys in self._steps:
            indices = torch.tensor([index for _, index in keys])
            yield Loaded(self._features[indices], indices)


class Probe(NamedTuple):
    """What is left to be trained: the head alone, or nothing."""

    head: nn.Module
    feed: FeatureFeed
    tuning: Tuning
    finished: Callable[[dict[str, Tensor]], dict[str, Tensor]]
    """The head's state -> the whole model's."""
    trained: Trained | None
    architecture: dict[str, Any] | None


def probe(stage: Stage, model: nn.Module, to_input: nn.Module, feed: Feed, arguments: FeatureExtraction) -> Probe:
    place = head_module(model)
    made = feature_feed(stage, model, to_input, feed)
    backbone = {name: t for name, t in model.state_dict().items() if not name.startswith(f"{place}.")}
    head, trained, architecture = model.get_submodule(place), None, None
    if arguments.head == "knn":
        classes = len(stage.splits.classes)
        samples, width = made.features.shape
        nearest = NearestNeighbours(samples, width, classes, k=arguments.k, temperature=arguments.temperature)
        nearest.fill(made.features, made.targets)
        with torch.no_grad():
            loss = float(-(made.targets * nearest.left_out()).sum(1).mean())
        trained, architecture = _as_trained(nearest, made, loss), {"knn": nearest.settings()}
        model.set_submodule(place, nearest)
        head = nearest
    elif arguments.head in HEADS:
        own = base_head(arguments, model, head)
        few = few_shot_head(arguments, made.features, made.targets, own, stage.splits.classes)
        if isinstance(few, TipAdapter) and arguments.search:
            searched(few, made.validation, made.score)
        loss, architecture = training_loss(few, made.features, made.targets), {arguments.head: few.settings()}
        trained = None if arguments.tuned else _as_trained(few, made, loss)
        model.set_submodule(place, few)
        head = few

    def finished(state: dict[str, Tensor]) -> dict[str, Tensor]:
        return backbone | {f"{place}.{name}": tensor for name, tensor in state.items()}

    names = tuple(name for name, _ in head.named_parameters() if not name.startswith("base."))
    return Probe(head, made, Tuning((names,)), finished, trained, architecture)


def as_it_is(stage: Stage, model: nn.Module, to_input: nn.Module, feed: Feed) -> Probe:
    """The head that the weights came with, nothing trained."""
    place, made = head_module(model), feature_feed(stage, model, to_input, feed)
    head = model.get_submodule(place).eval()
    with torch.no_grad():
        loss = float(-(made.targets * head(made.features).log_softmax(1)).sum(1).mean())
    return Probe(head, made, Tuning(((),)), lambda _: dict(model.state_dict()), _as_trained(head, made, loss), None)


def _as_trained(head: nn.Module, feed: FeatureFeed, loss: float) -> Trained:
    """The one row of its curve; the training loss is that of the samples, none voting for itself."""
    started = time.monotonic()
    with torch.no_grad():
        found = feed.score(head(feed.validation).numpy())
    seconds = max(time.monotonic() - started, 1e-9)
    speed = len(feed.features) / seconds
    row = {"epoch": 1, "train_loss": loss, "lr": 0.0, **found, "seconds": seconds, "samples_per_second": speed}
    return Trained(dict(head.state_dict()), [row], 0, speed, seconds, 0, tuple(found))


# --- features ---------------------------------------------------------------------------------------------------------


def feature_feed(
    stage: Stage, model: nn.Module, to_input: nn.Module, feed: Feed | None, held: Split = "validation"
) -> FeatureFeed:
    """The features of train and validation, from the cache where they are known.

    ``held``: another split in the place of validation, of pictures, whose feed is not looked at.
    """
    accelerator = prepare_accelerator(stage.settings, stage.partial)
    asked = _Asked(stage, Features(model).to(accelerator.device).eval(), to_input.to(accelerator.device), accelerator)
    with repeatable(accelerator.device), readable(), graceful() as interrupt:
        if isinstance(feed, TextFeed):
            made = _of_texts(asked, feed, interrupt.raise_if_requested)
        else:
            made = _of_pictures(asked, held, interrupt.raise_if_requested)
    model.cpu()
    to_input.cpu()
    return made


class _Asked(NamedTuple):
    stage: Stage
    features: Features
    to_input: nn.Module
    accelerator: Accelerator

    def key(self, samples: Iterable[str], spec: dict[str, Any]) -> str:
        head = f"{self.features.head}."
        body = {n: t for n, t in self.features.model.state_dict().items() if not n.startswith(head)}
        recipe = self.stage.recipe
        facts = {
            "input": spec,
            "precision": resolve_precision(self.stage.settings),
            "device": self.accelerator.device.type,
            "model": self.stage.part.model,
            "packages": package_versions(training_packages(recipe)),
        }
        return feature_cache.cache_key(samples, feature_cache.state_hash(body), facts)

    @property
    def root(self) -> Any:
        return self.stage.data_dir.parent / CACHE


def _of_pictures(asked: _Asked, other: Split, poll: Callable[[], None]) -> FeatureFeed:
    stage, spec = asked.stage, input_spec(asked.stage)
    train, held = stage.train_samples, read_samples(stage.data_dir, other)

    def rows(samples: Sequence[Sample]) -> Tensor:
        files = FromFiles(samples, data_root(stage.splits, stage.data_dir), spec, fitted=True)
        key = asked.key((s.sha256 or s.path for s in samples), spec.to_dict())

        def compute() -> FloatArray:
            found = evaluate.predict(
                asked.features,
                asked.to_input,
                files,
                range(len(files)),
                accelerator=asked.accelerator,
                workers=stage.recipe.data.workers,
                poll=poll,
            )
            return found.numpy()

        return torch.from_numpy(feature_cache.cached(asked.root, key, compute))

    labels = np.array([s.label for s in train], np.int64)
    truth = np.array([s.label for s in held], np.int64)
    return FeatureFeed(
        names=tuple(s.path for s in train),
        labels=labels,
        features=rows(train),
        targets=one_hot(torch.from_numpy(labels), len(stage.splits.classes)),
        validation=rows(held),
        score=lambda logits: evaluate.score(logits, truth),
    )


def _of_texts(asked: _Asked, feed: TextFeed, poll: Callable[[], None]) -> FeatureFeed:
    net = asked.features.model
    assert isinstance(net, TextNet)

    def rows(ids: Sequence[Any]) -> Tensor:
        facts = {"pad": feed.pad_id, "pooling": net.pooling}
        key = asked.key((hashlib.sha256(row.tobytes()).hexdigest() for row in ids), facts)

        def compute() -> FloatArray:
            found = text_feed.predict(asked.features, nn.Identity(), ids, feed.pad_id, asked.accelerator, poll)
            return np.stack(found)

        return torch.from_numpy(feature_cache.cached(asked.root, key, compute))

    targets = text_feed.collate_targets(feed.train.targets)
    single = feed.task == "text-classification"
    return FeatureFeed(
        names=feed.names,
        labels=feed.labels,
        features=rows(feed.train.ids),
        targets=one_hot(targets, len(feed.classes)) if single else targets,
        validation=rows(feed.validation.ids),
        score=lambda logits: evaluate.finite(
            validation_metrics(feed.task, list(logits), feed.validation.targets, feed.classes)
        ),
    )
