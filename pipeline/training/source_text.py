"""What a pretrained text model knew: the language model it came as, its Fisher information, how much of it is kept.

Its own head is the one that predicts tokens; heads of published classifiers have parts that our networks lack.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from distilledge.models import text
from distilledge.models.errors import UsageError
from distilledge.models.penalties import diagonal_fisher
from distilledge.models.tasks import IGNORED
from distilledge.models.text import TextNet
from distilledge.models.text_weights import OWN_HEAD
from distilledge.pipeline import stats
from distilledge.pipeline.checkpoint import WEIGHTS
from distilledge.pipeline.data.listing import expand
from distilledge.pipeline.data.text_formats import read_corpus
from distilledge.pipeline.recipe_strategy import EWC
from distilledge.pipeline.record import SourceKept, read_texts
from distilledge.pipeline.training.counters import Purpose, generator, torch_seed
from distilledge.pipeline.training.environment import prepare_accelerator, repeatable
from distilledge.pipeline.training.fisher import log, no_source
from distilledge.pipeline.training.language_feed import LanguageFeed
from distilledge.pipeline.training.stage import Stage, Taught
from distilledge.pipeline.training.text_feed import collate_ids
from distilledge.pipeline.training.text_start import Start, loaded, strings

MOST, BATCH = 1000, 32
"""Texts of the source that are looked at before and after, and at a time."""
MASKED = 0.15


class Language(NamedTuple):
    """Where a text teacher's weights come from."""

    started: Start
    pretrained: Taught | None


def source_fisher(stage: Stage, given: Language, arguments: EWC, names: Sequence[str]) -> dict[str, Tensor]:
    """The diagonal, of the parameters ``names``, under the language model: tokens are masked, or follow, as it learned
    them, and are drawn from its own answers. Raises ``UsageError`` where there is no source or no such head.
    """
    net = language_model(stage, given)
    learned, _ = _texts(stage, arguments.source, arguments.samples, target=arguments.fisher == "target")
    feed = _feed(stage, given, net, learned)
    device = prepare_accelerator(stage.settings, stage.partial).device
    net.to(device)

    def inputs() -> Iterator[list[tuple[Tensor, Tensor]]]:
        for number, row in enumerate(feed.ids):
            ids, targets = feed.changed(collate_ids([row], feed.special.pad), number)
            yield [(ids.to(device), (targets != IGNORED).to(device))]

    with repeatable(device):
        found = diagonal_fisher(
            net,
            inputs(),
            names,
            seed=torch_seed(Purpose.WEIGHTS, stage.recipe.seed, 3),
            answer=lambda sample: net.language_model(*sample),
        )
    return {name: tensor.cpu() for name, tensor in found.items()}


def kept(stage: Stage, given: Language, path: str, *, drawn: int = 0) -> SourceKept:
    """How many masked (or next) tokens of the source the language model's head has right, on the backbone as it was and
    as the stage has just written it.
    """
    net = language_model(stage, given)
    _, held = _texts(stage, path, drawn, target=False)
    feed = _feed(stage, given, net, held)
    before, groups = _right(stage, net, feed)
    state = safetensors.torch.load_file(stage.out / WEIGHTS)
    missing = net.load_state_dict({k: v for k, v in state.items() if k.startswith("backbone.")}, strict=False)
    assert all(name.startswith("head.") for name in missing.missing_keys), missing
    after, _ = _right(stage, net, feed)
    labels = np.zeros(len(before), np.int64)
    return SourceKept(
        what="token accuracy",
        samples=len(before),
        declared=False,
        before=stats.metric_interval(before, labels, metric="accuracy", groups=groups),
        after=stats.metric_interval(after, labels, metric="accuracy", groups=groups),
        lost=stats.paired_drop(before, after, labels, metric="accuracy", groups=groups, seed=stage.recipe.seed),
    )


def language_model(stage: Stage, given: Language) -> TextNet:
    """The network that the teacher starts from, under the head that its weights came with."""
    if given.pretrained is not None:
        return loaded(given.pretrained)
    part, net = stage.part, given.started.net
    if part.weights == "none":
        raise UsageError("E2468", "strategy ewc keeps what pretrained weights know", "set teacher.weights")
    causal = text.LAYOUTS[net.model_type].causal
    made, note = text.from_pretrained(
        part.model if part.weights == "hub" else expand(part.weights),
        task="causal-language-modelling" if causal else "masked-language-modelling",
        classes=net.classes,
        max_length=part.text.max_length,
        trust_pickle=part.trust_pickle,
        pad_id=given.started.special.pad,
        sep_id=given.started.special.separator,
    )
    if not note.endswith(OWN_HEAD):
        raise UsageError(
            "E2470",
            f"the weights have no head of a language model, so nothing says what they knew: {part.weights}",
            "add teacher.pretraining, or use strategy: l2-sp without a source",
        )
    return made


def _texts(stage: Stage, path: str, drawn: int, *, target: bool) -> tuple[list[str], list[str]]:
    """Those the Fisher information is taken of, drawn by the seed, and at most ``MOST`` others."""
    if target:
        log.warning("ewc: the Fisher information is of the target's texts: what the source needs is not known")
        lines = strings(row for _, row in read_texts(stage.data_dir, "train"))
    elif path:
        lines = read_corpus(path, stage.recipe.data.columns)
    else:
        raise no_source()
    order = generator(Purpose.WEIGHTS, stage.recipe.seed, 4).permutation(len(lines))
    rest = order[drawn : drawn + MOST]
    if not target and not len(rest):
        raise UsageError(
            "E2582", f"source: {len(lines)} texts, and samples: {drawn} takes them all", "lower samples, or add texts"
        )
    return [lines[i] for i in np.sort(order[:drawn])], [lines[i] for i in np.sort(rest)]


def _feed(stage: Stage, given: Language, net: TextNet, lines: Sequence[str]) -> LanguageFeed:
    special = given.started.special
    masked = net.task == "masked-language-modelling"
    if masked and special.mask is None:
        raise UsageError("E2470", "the tokenizer has no mask token, so nothing says what the weights knew", "use l2-sp")
    return LanguageFeed(
        ids=[given.started.encoder.encode({"text": line}) for line in lines],
        names=tuple(f"text {i + 1} of the source" for i in range(len(lines))),
        held_out=[],
        special=special,
        vocabulary=net.architecture["config"]["vocab_size"],
        mask=MASKED if masked else None,
        rows=net.rows,
        seed=stage.recipe.seed,
    )


@torch.inference_mode()
def _right(stage: Stage, net: TextNet, feed: LanguageFeed) -> tuple[stats.Bools, list[str]]:
    """Whether each looked-at token is right, and the text it stands in; masked the same each time."""
    device = prepare_accelerator(stage.settings, stage.partial).device
    net.to(device).eval()
    found, groups = [], []
    with repeatable(device):
        for start in range(0, len(feed.ids), BATCH):
            ids, targets = feed.changed(collate_ids(feed.ids[start : start + BATCH], feed.special.pad), start)
            where = targets != IGNORED
            logits = net.language_model(ids.to(device), where.to(device)).float().cpu()
            found.append((logits.argmax(1) == targets[where]).numpy())
            groups += [str(start + int(row)) for row in where.nonzero()[:, 0]]
    return np.concatenate(found), groups
