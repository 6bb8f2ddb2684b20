"""The tokenizer of a text model, and the network with the weights it starts from."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from distilledge.models import text
from distilledge.models.errors import RejectedError, UsageError
from distilledge.models.text import TextNet
from distilledge.models.text_build import check_length
from distilledge.pipeline import checkpoint as checkpoints
from distilledge.pipeline.data.listing import expand
from distilledge.pipeline.record import Sample, TextRow, read_texts
from distilledge.pipeline.training import text_tokenizer
from distilledge.pipeline.training.counters import weights_drawn
from distilledge.pipeline.training.stage import Stage, Taught
from distilledge.pipeline.training.text_feed import collate_ids, plain
from distilledge.pipeline.training.text_tokenizer import Special
from distilledge.targets.ondevice.text import TextEncoder, TextSpec

log = logging.getLogger("distilledge.training")
SMALLEST_BUCKET = 16
LOOKED_AT = 1024
"""At most so many texts of train, evenly taken, that the teacher's states are seen on, to make a narrower student."""


class Start(NamedTuple):
    """A network with the weights it starts from, and its tokenizer, which lies in the stage's directory."""

    net: TextNet
    encoder: TextEncoder
    special: Special

    @property
    def spec(self) -> TextSpec:
        return self.encoder.spec


def start(stage: Stage, task: str, *, parent: Taught | None, pretrained: Taught | None) -> Start:
    """The network under a head for ``task``. Draws depend on the seed alone: student and control start equal."""
    made = tokenizer_of(stage, parent, pretrained)
    path = stage.out / text_tokenizer.FILE
    path.write_text(made, encoding="utf-8")
    special, longest = text_tokenizer.special(made), stage.part.text.max_length
    spec = TextSpec(
        max_length=longest,
        pad_id=special.pad,
        task=stage.recipe.task,
        tokenizer_sha256=hashlib.sha256(made.encode()).hexdigest(),
        buckets=tuple(sorted({*stage.part.text.buckets, longest})) if stage.part.text.buckets else buckets(longest),
    )
    encoder = TextEncoder(path, spec)
    size = text_tokenizer.size(made)
    with weights_drawn(stage.recipe.seed):
        net = new_network(stage, task, encoder, special, size, parent=parent, pretrained=pretrained)
        net = TextNet(net.architecture) if stage.from_scratch else net
    check_length(net.architecture["config"], longest)
    if stage.settings.dropout is not None:
        text.set_dropout(net, stage.settings.dropout)
    return Start(net, encoder, special)


def buckets(max_length: int) -> tuple[int, ...]:
    """Powers of two from 16, and ``max_length``."""
    lengths = [SMALLEST_BUCKET << n for n in range(10) if SMALLEST_BUCKET << n < max_length]
    return (*lengths, max_length)


def tokenizer_of(stage: Stage, parent: Taught | None, pretrained: Taught | None) -> str:
    """tokenizer.json; that of what the network starts from, or by the recipe."""
    part = stage.part
    if pretrained is not None:
        return (pretrained[1] / text_tokenizer.FILE).read_text(encoding="utf-8")
    if part.text.tokenizer == "teacher" or part.model == "teacher":
        if parent is None:
            raise UsageError("E2622", f"{stage.role}: no teacher to take the tokenizer from", "edit text.tokenizer")
        return (parent[1] / text_tokenizer.FILE).read_text(encoding="utf-8")
    if part.text.tokenizer == "model":
        return text_tokenizer.of_model(part.model, part.weights)
    if part.text.tokenizer == "train":
        rows = (row for _, row in read_where(stage))
        return text_tokenizer.learned(strings(rows), part.text.vocabulary or text_tokenizer.VOCABULARY)
    return text_tokenizer.of_file(part.text.tokenizer)


def read_where(stage: Stage) -> list[tuple[Sample, TextRow]]:
    """The texts that say which words a model will meet: those of train, and of the target without their labels."""
    return read_texts(stage.data_dir, "train") + read_texts(stage.data_dir, "target")


def strings(rows: Iterable[TextRow]) -> list[str]:
    """All text of the rows."""
    found = []
    for row in rows:
        found.append(row.text if isinstance(row.text, str) else " ".join(row.text))
        found += [row.context] if row.context else []
    return found


def new_network(
    stage: Stage,
    task: str,
    encoder: TextEncoder,
    special: Special,
    size: int,
    *,
    parent: Taught | None,
    pretrained: Taught | None,
) -> TextNet:
    part, classes = stage.part, len(stage.splits.classes)
    pooling = None if part.text.pooling == "auto" else part.text.pooling
    if pretrained is not None:
        return text.with_task(loaded(pretrained), task, classes, pooling=pooling)
    trimmed = kept_rows(stage, encoder, special) if _shares_tokenizer(stage) and part.text.vocabulary else None
    if part.model == "teacher":
        assert parent is not None
        net = made_of(loaded(parent), stage, encoder, trimmed, special)
        kept = net.task == task and pooling in (None, net.pooling)  # the teacher's head
        return net if kept else text.with_task(net, task, classes, pooling=pooling)
    length = part.text.max_length
    if part.weights == "none":
        net = text.from_config(
            part.model,
            part.text.config,
            task=task,
            classes=classes,
            vocabulary_size=size,
            max_length=length,
            pooling=pooling,
            pad_id=special.pad,
            sep_id=special.separator,
        )
        net = net if trimmed is None else text.trim(net, trimmed, special.unknown)
        if parent is not None and part.text.tokenizer == "teacher":
            text.narrow_embeddings(net, loaded(parent))
        return net
    net, note = text.from_pretrained(
        part.model if part.weights == "hub" else expand(part.weights),
        task=task,
        classes=classes,
        max_length=length,
        pooling=pooling,
        trust_pickle=part.trust_pickle,
        pad_id=special.pad,
        sep_id=special.separator,
    )
    log.info(note)
    if size > net.architecture["config"]["vocab_size"]:
        raise RejectedError(
            "E3624",
            f"the tokenizer has {size} tokens, the embeddings {net.architecture['config']['vocab_size']} rows",
            "use the tokenizer that came with the weights: text.tokenizer: model",
        )
    return net if trimmed is None else text.trim(net, trimmed, special.unknown)


def made_of(
    teacher: TextNet, stage: Stage, encoder: TextEncoder, vocabulary: list[int] | None, special: Special
) -> TextNet:
    """Some of the teacher's layers, narrower where ``text.config`` says so."""
    given, unknown = stage.part.text, special.unknown
    if not given.config:
        return text.student_of(teacher, given.layers, vocabulary=vocabulary, unknown_id=unknown)
    seen = read_where(stage)
    ids = [encoder.encode(plain(row)) for _, row in seen[:: 1 + len(seen) // LOOKED_AT]]
    sample = [collate_ids(ids[n : n + 64], special.pad) for n in range(0, len(ids), 64)]
    return text.narrowed(teacher, given.layers, given.config, sample, vocabulary=vocabulary, unknown_id=unknown)


def loaded(trained: Taught) -> TextNet:
    net = checkpoints.load(*trained)
    assert isinstance(net, TextNet)
    return net.train()


def _shares_tokenizer(stage: Stage) -> bool:
    """Whether ``text.vocabulary`` says how many embedding rows are kept, not how many tokens are learned."""
    return stage.role != "teacher" and (stage.part.model == "teacher" or stage.part.text.tokenizer == "teacher")


def kept_rows(stage: Stage, encoder: TextEncoder, special: Special) -> list[int]:
    """Special tokens, then those that are learned from, the most frequent first, then others in the tokenizer's order.

    That order is often by frequency in the corpus the tokenizer was learned from: common words that train lacks stay.
    """
    counts: Counter[int] = Counter()
    for row in strings(row for _, row in read_where(stage)):
        counts.update(encoder.encode({"text": row}).tolist())
    frequent = sorted(counts, key=lambda token: (-counts[token], token))
    others = range(encoder.vocabulary)
    order = dict.fromkeys((special.pad, special.unknown, *special.others, *frequent, *others))
    return sorted(list(order)[: stage.part.text.vocabulary])
