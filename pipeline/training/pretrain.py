"""What is trained before the task: of texts a language model, the student's taught by the teacher's.

Domain-adaptive pretraining (Gururangan et al. 2020); task-agnostic distillation (Sanh et al. 2019).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from distilledge.models import text
from distilledge.models.errors import UsageError
from distilledge.models.losses_total import DistillationLoss
from distilledge.models.text import TextNet
from distilledge.pipeline.data.text_formats import read_corpus
from distilledge.pipeline.recipe import Recipe
from distilledge.pipeline.record import Checkpoint, Role, Split, Splits, read_texts
from distilledge.pipeline.training import many
from distilledge.pipeline.training.events import Report
from distilledge.pipeline.training.language_feed import LanguageFeed, hold_out
from distilledge.pipeline.training.objective import Objective
from distilledge.pipeline.training.stage import Stage, Taught, run_stage
from distilledge.pipeline.training.text_stage import NoTap, cut_alike, describe, taught
from distilledge.pipeline.training.text_start import Start, loaded, start, strings

OWN: tuple[Split, ...] = ("train", "unlabelled", "target")
"""Splits that a language model learns from, where the recipe names no corpus."""


def pretrain(
    recipe: Recipe,
    splits: Splits,
    data_dir: Path,
    role: Role,
    taught_by: Taught | None,
    out: Path,
    *,
    partial: Path,
    report: Report,
    parent: Taught | None = None,
) -> Checkpoint:
    """Train the language model of ``role``; the student's on the answers of ``taught_by``, the teacher's. Of pictures
    see ``picture_pretrain``.

    ``parent``: the network that a student made of the teacher's layers starts from. Raises what ``loop.train`` raises.
    """
    part = recipe.teacher if role == "teacher" else recipe.student
    assert part.pretraining is not None
    if not recipe.is_text:
        from distilledge.pipeline.training.picture_pretrain import pretrain_pictures

        return pretrain_pictures(recipe, splits, data_dir, role, out, partial=partial, report=report)
    processes = many.process_count(part.pretraining.training)
    if processes > 1:
        job = many.Job(
            stage=f"pretrain-{role}",
            recipe=recipe,
            splits=splits,
            data_dir=data_dir,
            taught_by=taught_by,
            parent=parent,
            out=out,
            partial=partial,
        )
        return many.launch(job, processes, report)
    stage = Stage(role, recipe, splits, data_dir, out, partial, report, pretraining=True)
    started = start(stage, language_task(stage, parent), parent=parent, pretrained=None)
    feed = make_feed(stage, started)
    return run_stage(stage, _objective(stage, started, taught_by), feed, describe(started))


def language_task(stage: Stage, parent: Taught | None) -> str:
    """The kind of language model that the architecture is made for, unless the recipe says."""
    objective = stage.language.objective
    if objective == "auto":
        kind = parent[0].architecture["config"]["model_type"] if stage.part.model == "teacher" and parent else None
        objective = "causal" if text.LAYOUTS[kind or model_type(stage)].causal else "mlm"
    return "causal-language-modelling" if objective == "causal" else "masked-language-modelling"


def model_type(stage: Stage) -> str:
    part = stage.part
    if part.weights == "none":
        return part.model
    from distilledge.pipeline.data.listing import expand

    place = part.model if part.weights == "hub" else expand(part.weights)
    return str(text.read_config(text.directory_of(place))["model_type"])


def _objective(stage: Stage, started: Start, taught_by: Taught | None) -> Objective:
    net = started.net
    losses = stage.language.losses
    if taught_by is None or not losses:
        return Objective(net, nn.Identity(), DistillationLoss(), task=net.task, tap=NoTap())
    teacher = loaded(taught_by).eval()
    if teacher.task != net.task:
        raise UsageError(
            "E2624",
            f"student.pretraining: the teacher's language model is for {teacher.task}, the student's for {net.task}",
            "set the same `pretraining.objective` for both",
        )
    if not cut_alike(started, taught_by):
        raise UsageError(
            "E2623",
            "student.pretraining: teacher and student must cut texts into the same tokens",
            "set student.text.tokenizer: teacher, and the same text.max_length for both",
        )
    return taught(stage, net, teacher, losses, None, hard_weight=1.0, columns=_columns(net, teacher))


def _columns(student: TextNet, teacher: TextNet) -> Tensor | None:
    """The teacher's logits of the tokens that the student has a row for."""
    if student.vocabulary is None or student.vocabulary == teacher.vocabulary:
        return None
    return teacher.rows(torch.tensor(student.vocabulary)).long()


def make_feed(stage: Stage, started: Start) -> LanguageFeed:
    settings, net = stage.language, started.net
    masked = net.task == "masked-language-modelling"
    if masked and started.special.mask is None:
        raise UsageError(
            "E2625",
            f"{stage.name}: the tokenizer has no mask token",
            "set `pretraining.objective: causal`, or another tokenizer",
        )
    texts = corpus(stage)
    ids = [started.encoder.encode({"text": line}) for line in texts]
    learned, kept = hold_out(ids)
    return LanguageFeed(
        ids=[ids[i] for i in learned],
        names=tuple(f"text {i + 1} of the corpus" for i in learned),
        held_out=[ids[i] for i in kept],
        special=started.special,
        vocabulary=net.architecture["config"]["vocab_size"],
        mask=settings.mask if masked else None,
        rows=net.rows,
        seed=stage.recipe.seed,
    )


def corpus(stage: Stage) -> list[str]:
    """The texts of the recipe's corpus, else of the train split and of what has no labels; never of a tested split."""
    if stage.language.corpus is not None:
        return read_corpus(stage.language.corpus, stage.recipe.data.columns)
    pairs = [pair for split in OWN for pair in read_texts(stage.data_dir, split)]
    return [line for line in strings(row for _, row in pairs) if line.strip()]
