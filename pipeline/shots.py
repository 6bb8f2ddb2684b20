"""k-shot evaluation: heads on frozen features, made of k samples of each class that are drawn again and again."""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from distilledge.models import metrics
from distilledge.models.base import Value
from distilledge.models.clip_net import ClipNet
from distilledge.models.errors import RejectedError, UsageError
from distilledge.models.losses import one_hot
from distilledge.models.neighbours import NearestNeighbours
from distilledge.pipeline.recipe import Recipe
from distilledge.pipeline.recipe_strategy import FeatureExtraction, arguments
from distilledge.pipeline.record import Splits, read_samples, read_texts
from distilledge.pipeline.training.events import silent
from distilledge.pipeline.training.feed import Feed
from distilledge.pipeline.training.few_shot import base_head, few_shot_head
from distilledge.pipeline.training.stage import Stage

log = logging.getLogger("distilledge")
Ints = npt.NDArray[np.int64]
STRENGTH = 31.6
"""1/lambda of the linear head on features of unit length: 0.316 (Radford et al. 2021, A.3) at a length of 10."""
ITERATIONS = 2000
MEASURES: dict[str, Callable[[Ints, Ints, int], float]] = {
    "accuracy": lambda predicted, labels, _classes: metrics.accuracy(predicted, labels),
    "balanced_accuracy": metrics.balanced_accuracy,
}


class Shot(Value):
    """One head at one k: ``metric`` on the test split, 0..1, of each draw."""

    head: str
    k: int
    """Training samples of each class; 0: none."""
    value: float
    """Mean over the draws."""
    low: float | None
    """Student's 95 % interval of that mean; None of a single value."""
    high: float | None
    draws: tuple[float, ...]


class Shots(Value):
    model: str
    metric: str
    classes: int
    test: int
    """Samples that every draw is judged on."""
    width: int
    """Of a feature."""
    shots: tuple[Shot, ...]


class Bank(NamedTuple):
    """Features (N, D) with labels of train and test, and what the model itself offers as a base."""

    train: Tensor
    labels: Ints
    test: Tensor
    truth: Ints
    classes: tuple[str, ...]
    model: nn.Module
    head: nn.Module


def shots(
    recipe: Recipe, work: Path, *, ks: Sequence[int], draws: int, heads: Sequence[str] = (), seed: int | None = None
) -> Shots:
    """Of the recipe's teacher as its weights are published. The data step is run, or found in ``work``'s store.

    A draw permutes each class of train once; its first k are taken, for every head the same. Raises ``UsageError`` for
    a k that a class does not have, and for tasks whose samples have more than one label.
    """
    chosen = list(heads) or list(HEADS)
    measure = MEASURES.get(recipe.metric, MEASURES["accuracy"])
    bank = bank_of(recipe, work)
    least = np.bincount(bank.labels, minlength=len(bank.classes))
    if max(ks) > least.min():
        name = bank.classes[int(least.argmin())]
        raise UsageError(
            "E2554", f"class {name!r} has {least.min()} training samples, fewer than {max(ks)}", "lower --k"
        )
    given = arguments(recipe.teacher.strategy)
    settings = given if isinstance(given, FeatureExtraction) else FeatureExtraction()
    found: dict[tuple[str, int], list[float]] = {(head, k): [] for k in ks for head in chosen}
    for draw in range(draws):
        order = permuted(bank.labels, recipe.seed if seed is None else seed, draw)
        for k in ks:
            rows = np.concatenate([own[:k] for own in order])
            for head in chosen:
                logits = HEADS[head](bank, rows, settings)
                found[head, k].append(measure(metrics.top1(logits), bank.truth, len(bank.classes)))
        log.info("draw %d of %d", draw + 1, draws)
    made = [_shot(head, k, values) for (head, k), values in found.items()]
    if isinstance(bank.model, ClipNet):
        made.insert(
            0, _shot("zero-shot", 0, [measure(metrics.top1(_answers(bank.head, bank)), bank.truth, len(least))])
        )
    return Shots(
        model=recipe.teacher.model,
        metric=recipe.metric if recipe.metric in MEASURES else "accuracy",
        classes=len(bank.classes),
        test=len(bank.truth),
        width=bank.train.shape[1],
        shots=tuple(made),
    )


def permuted(labels: Ints, seed: int, draw: int) -> list[Ints]:
    """Indices of each class in the order of a draw, so that 1 shot is among 5."""
    random = np.random.default_rng((seed, draw))
    return [random.permutation(np.flatnonzero(labels == label)) for label in range(int(labels.max()) + 1)]


def _shot(head: str, k: int, values: list[float]) -> Shot:
    mean = float(np.mean(values))
    low, high = interval(values)
    return Shot(head=head, k=k, value=mean, low=low, high=high, draws=tuple(values))


def interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Student's 95 % interval of the mean of draws, within 0..1."""
    if len(values) < 2:
        return None, None
    half = student(len(values) - 1) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return max(0.0, float(np.mean(values)) - half), min(1.0, float(np.mean(values)) + half)


def student(freedom: int, share: float = 0.95) -> float:
    """The t with P(|T| < t) = ``share``, by bisection of the closed form (Abramowitz & Stegun 26.7.3 and 26.7.4)."""
    low, high = 0.0, 1e6
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if _within(middle, freedom) > share else (middle, high)
    return high


def _within(t: float, freedom: int) -> float:
    angle, odd = math.atan(t / math.sqrt(freedom)), freedom % 2
    cosine = math.cos(angle)
    term, total = (cosine if odd else 1.0), 0.0
    for n in range(odd, freedom - 1, 2):
        total += term
        term *= (n + 1) / (n + 2) * cosine**2
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total


# --- heads -----------------------------------------------------------------------------------------------------------


def _linear(bank: Bank, rows: Ints, _settings: FeatureExtraction) -> npt.NDArray[np.float32]:
    """Logistic regression to convergence on features of unit length."""
    from sklearn.linear_model import LogisticRegression

    train, test = (nn.functional.normalize(x, dim=1).double().numpy() for x in (bank.train[rows], bank.test))
    fitted = LogisticRegression(C=STRENGTH, max_iter=ITERATIONS).fit(train, bank.labels[rows])
    scores = fitted.decision_function(test)
    scores = np.stack([-scores, scores], 1) if scores.ndim == 1 else scores
    return np.asarray(scores, np.float32)


def _neighbours(bank: Bank, rows: Ints, settings: FeatureExtraction) -> npt.NDArray[np.float32]:
    features, targets = bank.train[rows], one_hot(torch.from_numpy(bank.labels[rows]), len(bank.classes))
    (samples, width), count = features.shape, len(bank.classes)
    head = NearestNeighbours(samples, width, count, k=settings.k, temperature=settings.temperature)
    return _answers(head.fill(features, targets), bank)


def _of_few(kind: str) -> Callable[[Bank, Ints, FeatureExtraction], npt.NDArray[np.float32]]:
    def answers(bank: Bank, rows: Ints, settings: FeatureExtraction) -> npt.NDArray[np.float32]:
        features, targets = bank.train[rows], one_hot(torch.from_numpy(bank.labels[rows]), len(bank.classes))
        own = settings.model_copy(update={"head": kind})
        base = base_head(own, bank.model, bank.head)
        return _answers(few_shot_head(own, features, targets, base, bank.classes), bank)

    return answers


HEADS: dict[str, Callable[[Bank, Ints, FeatureExtraction], npt.NDArray[np.float32]]] = {
    "linear": _linear,
    "knn": _neighbours,
    "prototypes": _of_few("prototypes"),
    "tip-adapter": _of_few("tip-adapter"),
}


@torch.no_grad()
def _answers(head: nn.Module, bank: Bank) -> npt.NDArray[np.float32]:
    logits: Tensor = head.eval()(bank.test)
    return logits.numpy()


# --- features --------------------------------------------------------------------------------------------------------


def bank_of(recipe: Recipe, work: Path) -> Bank:
    """Features of train and test, from the cache where they are known."""
    from distilledge.models.transfer import head_module
    from distilledge.pipeline.training.probe import feature_feed

    if recipe.task not in ("image-classification", "text-classification"):
        raise UsageError("E2555", f"k shots are of tasks with one label, not of {recipe.task}", "choose another recipe")
    splits, data_dir = data_of(recipe, work)
    with tempfile.TemporaryDirectory() as place:
        stage = Stage("teacher", recipe, splits, data_dir, Path(place), Path(place), silent)
        model, to_input, feed = (_text if recipe.is_text else _pictures)(stage)
        head = model.get_submodule(head_module(model))
        truth = np.array([sample.label for sample in read_samples(data_dir, "test")], np.int64)
        if not len(truth):
            raise RejectedError("E3551", "no test samples to judge the heads on", "set data.splits.test above 0")
        made = feature_feed(stage, model, to_input, feed, held="test")
    return Bank(made.features, made.labels, made.validation, truth, splits.classes, model, head)


def _text(stage: Stage) -> tuple[nn.Module, nn.Module, Feed | None]:
    """The teacher as its training would start, what makes its input, and texts, those of test to be held out."""
    from distilledge.pipeline.training import text_feed, text_stage
    from distilledge.pipeline.training.text_start import start

    started, task = start(stage, stage.recipe.task, parent=None, pretrained=None), stage.recipe.task
    feed = text_stage.make_feed(stage, started, read_texts(stage.data_dir, "train"))
    test = text_feed.encode(read_texts(stage.data_dir, "test"), started.encoder, task, len(stage.splits.classes))
    return started.net, nn.Identity(), replace(feed, validation=test)


def _pictures(stage: Stage) -> tuple[nn.Module, nn.Module, Feed | None]:
    from distilledge.pipeline.training.picture_stage import input_spec, new_model
    from distilledge.pipeline.training.views import ToInput

    return new_model(stage), ToInput(input_spec(stage)), None


def data_of(recipe: Recipe, work: Path) -> tuple[Splits, Path]:
    """The data step's result; a run's own record is left as it is."""
    from distilledge.pipeline.builders import BUILDERS
    from distilledge.pipeline.chain import Chain
    from distilledge.pipeline.steps import VERSIONS, steps
    from distilledge.pipeline.store import Store

    chain = Chain(recipe, Store(work / "store"), steps(recipe, {}), silent)
    step = chain.steps[0]
    build = BUILDERS[step.kind][1]
    chain.done["data"] = chain.store.once(
        step.kind, VERSIONS[step.kind], step.inputs, Splits, lambda out, partial: build(chain, step, out, partial)
    )
    return chain.splits, chain.done["data"].path
