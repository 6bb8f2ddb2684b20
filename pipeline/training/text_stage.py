"""What a training on texts is made of: the tokenizer, the network with its start, feeds, and the teacher's side."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from distilledge.models import text
from distilledge.models.errors import RejectedError, UsageError
from distilledge.models.features import Outputs
from distilledge.models.features_text import match_layers, text_tap
from distilledge.models.losses import LOSSES
from distilledge.models.losses_total import DistillationLoss, Term
from distilledge.models.text import TextNet
from distilledge.pipeline.recipe import LossTerm
from distilledge.pipeline.record import Checkpoint, Sample, TextRow, read_texts
from distilledge.pipeline.training import text_tokenizer
from distilledge.pipeline.training.counters import ADAPTERS, PROJECTIONS, weights_drawn
from distilledge.pipeline.training.environment import prepare_accelerator, resolve_precision
from distilledge.pipeline.training.objective import Guide, Objective, balanced_weights
from distilledge.pipeline.training.source_text import Language
from distilledge.pipeline.training.stage import Made, Stage, Taught, run_stage
from distilledge.pipeline.training.strategies import Subject, teach
from distilledge.pipeline.training.text_augment import Changed
from distilledge.pipeline.training.text_feed import TextFeed, Texts, encode, predict
from distilledge.pipeline.training.text_start import Start, loaded, start
from distilledge.targets.ondevice.text import Int32Array, TextEncoder, TextSpec

log = logging.getLogger("distilledge.training")
Pairs = list[tuple[Sample, TextRow]]


def train_teacher(stage: Stage, pretrained: Taught | None) -> Checkpoint:
    started = start(stage, stage.recipe.task, parent=None, pretrained=pretrained)
    model, made = adapted(stage, started)
    pairs = read_texts(stage.data_dir, "train")
    feed = make_feed(stage, started, pairs)
    loss = DistillationLoss(
        label_smoothing=stage.settings.label_smoothing, class_weights=class_weights(stage, feed.labels)
    )
    subject = Subject(stage, model, nn.Identity(), feed, Language(started, pretrained))
    return teach(subject, loss, made, task=stage.recipe.task, tap=NoTap())


def train_student(
    stage: Stage,
    taught_by: Taught | None,
    *,
    parent: Taught | None,
    pretrained: Taught | None,
    language: Taught | None,
) -> Checkpoint:
    """Without ``taught_by`` the control: the same start, the labels alone.

    ``language``: the teacher's language model, which finds words for ``distill.augment_text``.
    """
    started = start(stage, stage.recipe.task, parent=parent, pretrained=pretrained)
    student, made = adapted(stage, started)
    pairs = read_texts(stage.data_dir, "train")
    if taught_by is None:
        feed = make_feed(stage, started, pairs)
        loss = DistillationLoss(
            label_smoothing=stage.settings.label_smoothing, class_weights=class_weights(stage, feed.labels)
        )
        objective = Objective(student, nn.Identity(), loss, task=stage.recipe.task, tap=NoTap())
        return run_stage(stage, objective, feed, made)
    pairs += read_texts(stage.data_dir, "unlabelled") + read_texts(stage.data_dir, "target")
    changed = changes(stage, started, len(pairs), taught_by, language)
    feed = make_feed(stage, started, pairs, taught_by, changed)
    teacher = loaded(taught_by).eval()
    refuse_larger(started.net, taught_by[0])
    guided = taught(stage, student, teacher, stage.recipe.distill.losses, class_weights(stage, feed.labels))
    if asked_once(stage, guided.loss, changed):
        feed = replace(feed, answers=asked(stage, teacher, feed))
        guided = Objective(student, nn.Identity(), guided.loss, task=stage.recipe.task, tap=NoTap())
    return run_stage(stage, guided, feed, made)


def asked_once(stage: Stage, loss: DistillationLoss, changed: Changed | None) -> bool:
    """Whether the teacher's answers are the same in each epoch, and all that is looked at: texts have no views."""
    whole = stage.recipe.task in ("text-classification", "multi-label-classification")
    return whole and changed is None and all(LOSSES[term.name].needs == "logits" for term in loss.terms)


def asked(stage: Stage, teacher: TextNet, feed: TextFeed) -> npt.NDArray[np.float32]:
    """The teacher's logits (N, C) of every text that is learned from, in its own precision."""
    accelerator = prepare_accelerator(stage.recipe.teacher.training, stage.partial)
    ids, pad_id = (feed.train.ids, feed.pad_id) if feed.guide_ids is None else (feed.guide_ids, feed.guide_pad_id)
    model = teacher.to(accelerator.device)
    return np.stack(predict(model, nn.Identity(), ids, pad_id, accelerator, lambda: None))


def refuse_larger(student: TextNet, teacher: Checkpoint) -> None:
    parameters = sum(p.numel() for p in student.parameters())
    if parameters > teacher.parameters:
        raise UsageError(
            "E2628",
            f"the student is larger than its teacher ({parameters:,} parameters against {teacher.parameters:,})",
            "choose a smaller student.model, or fewer text.layers",
        )


def taught(
    stage: Stage,
    student: TextNet,
    teacher: TextNet,
    losses: Sequence[LossTerm],
    weights: list[float] | None,
    *,
    hard_weight: float | None = None,
    columns: Tensor | None = None,
) -> Objective:
    """The objective of a student with its teacher. ``columns``: of the teacher's logits that the student has too."""
    terms = [Term(t.name, t.weight, t.arguments) for t in losses]
    pairs = match_layers(student, teacher) if any(looks_inside(term) for term in terms) else ()
    with weights_drawn(stage.recipe.seed, PROJECTIONS):
        loss = DistillationLoss(
            terms,
            hard_weight=stage.recipe.distill.hard_weight if hard_weight is None else hard_weight,
            label_smoothing=stage.settings.label_smoothing,
            class_weights=weights,
            pairs=pairs,
        )
    precision = resolve_precision(stage.recipe.teacher.training)
    guide = Guide(teacher, nn.Identity(), text_tap(teacher, loss, "teacher"), precision=precision, columns=columns)
    task = student.task if stage.pretraining else stage.recipe.task
    return Objective(student, nn.Identity(), loss, guide, tap=text_tap(student, loss, "student"), task=task)


def looks_inside(term: Term) -> bool:
    return term.weight > 0 and term.name in LOSSES and LOSSES[term.name].of_texts


class NoTap:
    """For losses of logits alone."""

    def __enter__(self) -> NoTap:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def outputs(self, logits: Tensor) -> Outputs:
        return Outputs(logits)


# --- adapters, feeds, descriptions ------------------------------------------------------------------------------------


def adapted(stage: Stage, started: Start) -> tuple[TextNet, Made]:
    """The network as it is trained: with adapters where the recipe asks for them, merged when it is saved."""
    made, settings = describe(started), stage.part.text.lora
    if settings is None:
        return started.net, made
    from distilledge.models import text_lora

    profile = text.profile(started.net, started.spec.max_length)
    with weights_drawn(stage.recipe.seed, ADAPTERS):
        model = text_lora.add(started.net, rank=settings.rank, alpha=settings.alpha, dropout=settings.dropout)

    def finished(state: dict[str, Tensor]) -> dict[str, Tensor]:
        model.load_state_dict(state)
        return text_lora.merge(model).state_dict()

    return model, Made(made.input_spec, lambda: profile, made.architecture, made.identity, finished)


def describe(started: Start) -> Made:
    net = started.net
    return Made(
        input_spec=started.spec.to_dict(),
        profile=lambda: text.profile(net, started.spec.max_length),
        architecture=net.architecture,
        identity={"architecture": net.architecture, "tokenizer": started.spec.tokenizer_sha256},
    )


def class_weights(stage: Stage, labels: Iterable[int]) -> list[float] | None:
    if stage.settings.class_weights == "none":
        return None
    return balanced_weights(torch.tensor(list(labels)), len(stage.splits.classes))


def make_feed(
    stage: Stage, started: Start, pairs: Pairs, taught_by: Taught | None = None, changed: Changed | None = None
) -> TextFeed:
    """``pairs``: those learned from. Raises ``RejectedError`` where there is nothing to validate on."""
    task, classes = stage.recipe.task, stage.splits.classes
    validation = read_texts(stage.data_dir, "validation")
    if not validation:
        raise RejectedError("E3603", "no validation texts", "set `data.splits.validation` above 0")
    train = encode(pairs, started.encoder, task, len(classes))
    held = encode(validation, started.encoder, task, len(classes))
    if train.cut:
        most = started.spec.max_length
        log.warning("%d of %d train texts are longer than %d tokens and were cut", train.cut, len(train), most)
    others, their_pad = guide_ids(stage, started, pairs, taught_by)
    return TextFeed(
        train=train if changed is None else repeated(train, changed.copies),
        validation=held,
        task=task,
        classes=classes,
        pad_id=started.special.pad,
        seed=stage.recipe.seed,
        guide_ids=others,
        guide_pad_id=their_pad,
        changed=changed,
    )


def changes(stage: Stage, started: Start, count: int, taught_by: Taught, language: Taught | None) -> Changed | None:
    """What ``distill.augment_text`` does to the copies of ``count`` texts; both sides must cut texts alike."""
    settings = stage.recipe.distill.augment_text
    if settings is None:
        return None
    if started.special.mask is None or not cut_alike(started, taught_by):
        raise UsageError(
            "E2626",
            "distill.augment_text needs a mask token, and one tokenizer and max_length for teacher and student",
            "set student.text.tokenizer: teacher, and the same text.max_length for both",
        )
    return Changed(settings, started.special, count, stage.recipe.seed, loaded(language).eval() if language else None)


def repeated(texts: Texts, copies: int) -> Texts:
    """The texts, and behind them their copies, whose labels are not seen."""
    blind = [torch.where(torch.from_numpy(t) == -100, -100, -1).numpy() for t in texts.targets]
    return Texts(
        ids=texts.ids * (1 + copies),
        targets=texts.targets + blind * copies,
        names=texts.names * (1 + copies),
        labels=torch.cat([torch.from_numpy(texts.labels), torch.full((copies * len(texts),), -1)]).numpy(),
        cut=texts.cut,
    )


def cut_alike(started: Start, taught_by: Taught) -> bool:
    """Whether the teacher's tokens are the student's."""
    theirs = TextSpec.from_dict(taught_by[0].input_spec)
    own = started.spec
    return (theirs.tokenizer_sha256, theirs.max_length) == (own.tokenizer_sha256, own.max_length)


def guide_ids(
    stage: Stage, started: Start, pairs: Pairs, taught_by: Taught | None
) -> tuple[list[Int32Array] | None, int]:
    """The texts by the teacher's tokenizer, where that is another; and its padding."""
    if taught_by is None:
        return None, 0
    if cut_alike(started, taught_by):
        return None, 0
    inside = [term.name for term in stage.recipe.distill.losses if looks_inside(Term(term.name, term.weight))]
    by_token = stage.recipe.task in ("token-classification", "question-answering")
    if by_token or inside:
        raise UsageError(
            "E2623",
            f"{stage.recipe.task if by_token else inside[0]}: teacher and student must cut texts into the same tokens",
            "set student.text.tokenizer: teacher, and the same text.max_length for both",
        )
    spec = TextSpec.from_dict(taught_by[0].input_spec)
    encoder = TextEncoder(taught_by[1] / text_tokenizer.FILE, spec)
    made = encode(pairs, encoder, stage.recipe.task, len(stage.splits.classes))
    return made.ids, spec.pad_id
