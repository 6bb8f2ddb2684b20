"""Trainings in words: whether a model overfitted, which epoch was kept, whether transfer helped, what was forgotten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distilledge.pipeline.record import Adaptation, Checkpoint, SourceKept, Transfer
from distilledge.pipeline.report.vocabulary import ReportContent

RISE, FALL = 0.05, 0.02
"""Of the validation loss over its least, that is called overfitting; below the epoch before, that is called falling."""


def training_words(content: ReportContent) -> tuple[str, ...]:
    """Lines for the report, one for each training, the verdicts on transfer, and what of the source is left."""
    transfer = [transfer_words(content.transfer)] if content.transfer else []
    adaptation = [adaptation_words(content.adaptation)] if content.adaptation else []
    sources = [source_words(c.source) for c in content.checkpoints if c.source is not None]
    return (*content.fits, *transfer, *adaptation, *sources)


def notes(trained: Sequence[Checkpoint], pretrained: Sequence[Checkpoint | None]) -> list[str]:
    """What the trainings noted of themselves, each with its name before it."""
    before = [f"pretraining of the {c.role}: {note}." for c in pretrained if c is not None for note in c.notes]
    return [*before, *(f"{c.role}: {note}." for c in trained for note in c.notes)]


def monitor_words(made: Checkpoint, rows: Sequence[Mapping[str, Any]], asked: int) -> str:
    """``fit_words``, which epoch's weights were kept, and whether the training ended before its ``asked`` epochs."""
    if len(rows) < 2:
        return fit_words(made.role, rows)
    last = made.best_epoch == len(rows)
    kept = "The last epoch's weights were kept" if last else f"Epoch {made.best_epoch}'s weights were kept"
    stopped = f"; it stopped early, after {len(rows)} of {asked} epochs" if len(rows) < asked else ""
    return f"{fit_words(made.role, rows)} {kept}{stopped}."


def fit_words(role: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """One sentence from a training's curves.

    It overfits where the validation loss rose by more than 5 % above its least while the training loss went on falling.
    The two are compared in size for models without a teacher alone: a student's training loss is another quantity.
    """
    held, learned = [float(r["loss"]) for r in rows], [float(r["train_loss"]) for r in rows]
    if len(rows) < 2:
        return f"{role}: {len(rows)} epoch, so its curve says nothing of overfitting."
    least = min(range(len(held)), key=held.__getitem__)
    weighed = role == "student" or any(name.startswith("weight.") for name in rows[0])
    gap = "" if weighed else f" (gap to the training loss {held[least] - learned[least]:+.2f} there)"
    if held[-1] > held[least] * (1 + RISE) and learned[-1] < learned[least]:
        return (
            f"{role}: overfits. After epoch {least + 1} of {len(rows)} its validation loss rose from {held[least]:.3f} "
            f"to {held[-1]:.3f}{gap} while its training loss fell from {learned[least]:.3f} to {learned[-1]:.3f}; "
            "early_stopping, stronger augmentation or a frozen backbone would help."
        )
    if least == len(rows) - 1 and held[-1] < held[-2] * (1 - FALL):
        return f"{role}: its validation loss was still falling at the last epoch, {len(rows)}: more epochs may help."
    return (
        f"{role}: no sign of overfitting; its validation loss was least, {held[least]:.3f}, at epoch {least + 1}{gap}."
    )


def source_words(found: SourceKept) -> str:
    """What the teacher has forgotten."""
    where = "the source's own test part" if found.declared else "the source, which the weights may have been trained on"
    noun = "pictures" if found.what == "accuracy" else "tokens"
    low, high = found.lost.low, found.lost.high
    within = "" if low is None or high is None else f" [{low:+.1f}, {high:+.1f}]"
    verb = "is not shown to have forgotten" if low is not None and low <= 0 else "forgot"
    return (
        f"Source: the teacher {verb} what its weights knew: {100 * found.before.value:.1f} % {found.what} before, "
        f"{100 * found.after.value:.1f} % after, {found.lost.value:+.1f} points{within} lost, on {found.samples} "
        f"{noun} of {where}."
    )


def transfer_words(found: Transfer) -> str:
    words = {
        "helped": "Transfer helped",
        "hurt": "Transfer hurt (negative transfer)",
        "undecided": "Whether transfer helped is undecided",
    }
    return f"{words[found.outcome]}: {gain_words(found)}."


def adaptation_words(found: Adaptation) -> str:
    """Helped, hurt or undecided on the target, and what it cost on the source."""
    words = {
        "helped": "helped",
        "hurt": "hurt (negative transfer): the teacher is better without it",
        "undecided": "is not shown to help or to hurt",
    }
    beside = "the same teacher trained on the source alone"
    source = found.source
    cost = f" On the source's own test part: {gain_words(source, beside)}." if source else ""
    said = f"Adaptation to the target by {found.method} {words[found.target.outcome]}"
    return f"{said}. On the target's test part: {gain_words(found.target, beside)}.{cost}"


def gain_words(found: Transfer, beside: str = "the same model from random weights") -> str:
    """The paired difference with its interval."""
    name = found.metric.replace("_", " ")
    return (
        f"the teacher has {100 * found.teacher.value:.1f} % {name}, {beside} "
        f"{100 * found.scratch.value:.1f} %: {found.gain.value:+.1f} points "
        f"[{found.gain.low:+.1f}, {found.gain.high:+.1f}] on {found.samples} test samples (p = {found.p_value:.2g})"
    )
