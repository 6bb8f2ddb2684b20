"""Climbing the ladder for one runtime, as part of the export stage: the shipped file and the ledger."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from torch import nn

from distilledge.models.errors import GateFailedError
from distilledge.pipeline.compress.calibration import audit, check_own
from distilledge.pipeline.compress.climb import choose, climb
from distilledge.pipeline.compress.judge import Ground, Judge
from distilledge.pipeline.compress.ladder import RUNGS, Ask, Attempt, Bench, spread
from distilledge.pipeline.compress.ladder_text import TEXT_RUNGS
from distilledge.pipeline.compress.ledger import Ledger, Tried
from distilledge.pipeline.export import finished
from distilledge.pipeline.outcomes import SINGLE_LABEL
from distilledge.pipeline.recipe_compress import RungName
from distilledge.pipeline.record import Sample
from distilledge.targets.base import AnyDeployable, Exported, Inputs, Target
from distilledge.targets.samples import Samples, is_text, reader


class Climb(NamedTuple):
    """What the ladder needs beside the student."""

    ground: Ground
    calibration: Sequence[Sample]
    inputs: Samples
    """The same pictures."""
    held_out: Sequence[Sample]
    """Validation and test: none of them may be calibrated on."""
    train: tuple[Sequence[Sample], Samples] | None = None
    """All of the training split, for larger calibration sets."""
    ask: Ask | None = None
    """For rungs that train."""

    def spare(self) -> list[str]:
        """Pictures of the training split of which none is held out by content."""
        held = {sample.sha256 for sample in self.held_out}
        samples, inputs = self.train or (self.calibration, self.inputs)
        return [row for sample, row in zip(samples, inputs.rows, strict=True) if sample.sha256 not in held]


class Student(NamedTuple):
    """The student in one runtime."""

    target: Target
    model: nn.Module
    deployable: AnyDeployable
    fp32: Exported
    directory: Path
    """Where its fp32 file lies."""

    @property
    def beside(self) -> tuple[str, ...]:
        """Of a text model its tokenizer."""
        return self.fp32.files[-1:] if is_text(self.fp32) else ()


def climb_runtime(student: Student, given: Climb, out: Path) -> tuple[Exported, Ledger]:
    """Climb until the budget holds on the validation split; the taken file is moved into ``out``.

    Raises ``RejectedError`` where the calibration pictures are not the training split's own, ``GateFailedError`` where
    no rung made a file.
    """
    recipe = given.ground.recipe
    settings = recipe.compress
    own = unleaked(given) if recipe.data.allow_leakage else list(range(len(given.calibration)))
    picked = spread(own, settings.samples or len(own))
    chosen = [given.calibration[i] for i in picked]
    check_own(chosen, given.held_out)
    with TemporaryDirectory(prefix="distilledge-ladder-") as folder:
        work = Path(folder)
        rows = [given.inputs.rows[i] for i in picked]
        bench = bench_of(student, rows, work, given.spare(), given.ask)
        judge = Judge(given.ground, student.fp32, bench.fp32.parent)
        made: list[tuple[Exported, Path]] = []

        def judged(attempt: Attempt) -> Tried:
            started = time.perf_counter()
            directory = work / f"candidate-{len(made)}"
            directory.mkdir()
            path, words = bench.make(attempt, directory)
            beside = [Path(shutil.copyfile(bench.fp32.parent / name, directory / name)) for name in student.beside]
            exported = finished(student.target, [path, *beside], attempt.precision, words, student.deployable, started)
            made.append((exported, directory))
            return judge(attempt, exported, directory, started)

        tried = climb(
            _attempts(bench, settings.rungs, text=recipe.is_text), judged, min_agreement=settings.min_agreement
        )
        if not tried:
            what = f"no rung of {', '.join(settings.rungs)} made a file for {student.target.NAME}"
            raise GateFailedError("E5030", "; ".join([what, *bench.notes]), "add ptq to compress.rungs")
        taken = choose(tried)
        exported, directory = made[taken]
        for name in exported.files:
            shutil.move(directory / name, out / name)
        ledger = Ledger(
            tried=tried,
            taken=taken,
            outcome=tried[taken].outcome,
            pictures=judge.many,
            limit=given.ground.budget.max_drop_points_fp32,
            audit=audit(chosen, student.deployable.classes if recipe.task in SINGLE_LABEL else (), bench.seen),
            layers=bench.layers,
            notes=tuple(bench.notes),
        )
    return exported, ledger


def unleaked(given: Climb) -> list[int]:
    """Where the recipe allows leakage: calibration samples that are not held out too, by content."""
    held = {sample.sha256 for sample in given.held_out}
    return [i for i, sample in enumerate(given.calibration) if sample.sha256 not in held]


def bench_of(student: Student, rows: Sequence[Any], work: Path, more: Sequence[str], ask: Ask | None = None) -> Bench:
    """Works on copies: what the rungs make lies beside them."""
    own = work / "fp32"
    own.mkdir()
    for name in student.fp32.files:
        shutil.copyfile(student.directory / name, own / name)
    read = reader(student.deployable.input_spec, own)
    arrays: list[Inputs] = [read(row)[None] for row in rows]
    fp32 = own / student.fp32.files[0]
    return Bench(student.target, student.model, fp32, student.deployable, arrays, more, ask=ask)


def _attempts(bench: Bench, rungs: Sequence[RungName], *, text: bool) -> Iterator[Attempt]:
    table = TEXT_RUNGS if text else RUNGS
    for name in rungs:
        if name in table:
            yield from table[name](bench)
