"""The steps' builders: what each kind of step calls, with what the steps before it made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from distilledge.pipeline.compress.retrained import Retrained
from distilledge.pipeline.data.content import location
from distilledge.pipeline.recipe import Recipe
from distilledge.pipeline.record import (
    Adaptation,
    Checkpoint,
    ExportResult,
    Measurements,
    Parities,
    Sample,
    Scores,
    Split,
    Splits,
    TextRow,
    Transfer,
    Verdicts,
    data_root,
    read_samples,
    read_texts,
)
from distilledge.pipeline.reshape import goal, source_of
from distilledge.pipeline.steps import Step, needs_parent
from distilledge.pipeline.store import Store, Stored
from distilledge.pipeline.transfer import from_scratch, source_only

if TYPE_CHECKING:
    from distilledge.pipeline.compress.stage import Climb

Report = Callable[[Any], None]
"""Receives the training loop's progress events."""


@dataclass
class Chain:
    """What has been run so far, by step name; each entry is a value with its directory."""

    recipe: Recipe
    store: Store
    steps: tuple[Step, ...]
    report: Report
    done: dict[str, Stored[Any]] = field(default_factory=dict)
    failed: dict[str, ExportResult] = field(default_factory=dict)
    """Optional targets that could not be exported."""

    @property
    def splits(self) -> Splits:
        """With the place where the pictures lie now: the store knows them by content, they may have moved."""
        value: Splits = self.done["data"].value
        return value.model_copy(update={"root": location(self.recipe.data, self.recipe.task)})

    def samples(self, split: Split) -> list[Sample]:
        return read_samples(self.done["data"].path, split)

    def inputs(self, split: Split, *, calibration: bool = False) -> tuple[list[Sample], Path, list[TextRow]]:
        """Samples of a split, where their pictures lie, and the texts of a text task.

        ``calibration``: only those that static int8 is calibrated on.
        """
        directory = self.done["data"].path
        if not self.recipe.is_text:
            return [s for s in self.samples(split) if s.calibration or not calibration], self.root, []
        pairs = [(s, row) for s, row in read_texts(directory, split) if s.calibration or not calibration]
        return [s for s, _ in pairs], directory, [row for _, row in pairs]

    def calibration(self) -> tuple[list[Sample], Path, list[TextRow]]:
        """What static int8 is calibrated on: of where the model will run."""
        return self.inputs("train" if self.recipe.data.target is None else "target", calibration=True)

    def compared(self) -> tuple[list[Sample], Path, list[TextRow]]:
        """What torch and the files are compared on: validation, or the target's pictures that do not calibrate."""
        free = [] if self.recipe.data.target is None else [s for s in self.samples("target") if not s.calibration]
        return (free, self.root, []) if free else self.inputs("validation")

    @property
    def root(self) -> Path:
        return data_root(self.splits, self.done["data"].path)

    def trained(self, name: str) -> tuple[Checkpoint, Path] | None:
        """A trained model with its directory; None where the recipe has no such step."""
        stored = self.done.get(name)
        return None if stored is None else (stored.value, stored.path)

    def ask(self, name: str) -> tuple[Retrained, Path]:
        """The result of a lazy step, run now if it was not before."""
        from distilledge.pipeline.run import run_step

        if name not in self.done:
            run_step(self, next(step for step in self.steps if step.name == name))
        return self.done[name].value, self.done[name].path

    def exports(self) -> list[Stored[ExportResult]]:
        """The exports that were made, in order."""
        return [s for name, s in self.done.items() if name.startswith("export-")]


def _data(chain: Chain, _step: Step, out: Path, partial: Path) -> Splits:
    from distilledge.pipeline.data.prepare import prepare

    recipe = chain.recipe
    if recipe.is_text:
        from distilledge.pipeline.data.text_prepare import prepare_texts

        return prepare_texts(
            recipe.data,
            task=recipe.task,
            seed=recipe.seed,
            out=out,
            unlabelled=recipe.distill.unlabelled,
            failed=partial,
        )
    return prepare(
        recipe.data,
        bit_depth=recipe.student.input.bit_depth,
        seed=recipe.seed,
        out=out,
        unlabelled=recipe.distill.unlabelled,
        failed=partial,
    )


def _teacher(chain: Chain, step: Step, out: Path, partial: Path) -> Checkpoint:
    from distilledge.pipeline.training.teacher import finetune

    scratch = step.kind == "scratch"
    changed = {"scratch": from_scratch, "source-only": source_only}.get(step.kind)
    return finetune(
        chain.recipe if changed is None else changed(chain.recipe),
        chain.splits,
        chain.done["data"].path,
        out,
        partial,
        chain.report,
        pretrained=chain.trained("pretrain-teacher"),
        from_scratch=scratch,
    )


def _transfer(chain: Chain, _step: Step, _out: Path, partial: Path) -> Transfer:
    from distilledge.pipeline.training.compare import compare

    teacher, scratch = chain.trained("teacher"), chain.trained("scratch")
    assert teacher is not None
    assert scratch is not None
    return compare(chain.recipe, teacher, scratch, chain.inputs("test"), partial)


def _adaptation(chain: Chain, _step: Step, _out: Path, partial: Path) -> Adaptation:
    from distilledge.pipeline.training.compare import compare

    teacher, plain = chain.trained("teacher"), chain.trained("source-only")
    assert teacher is not None
    assert plain is not None
    own = chain.inputs("source-test")
    return Adaptation(
        method=chain.recipe.teacher.strategy.name,
        target=compare(chain.recipe, teacher, plain, chain.inputs("test"), partial),
        source=compare(chain.recipe, teacher, plain, own, partial) if own[0] else None,
    )


def _pretrain(chain: Chain, step: Step, out: Path, partial: Path) -> Checkpoint:
    from distilledge.pipeline.training.pretrain import pretrain

    language = None if step.role == "teacher" else chain.trained("pretrain-teacher")
    return pretrain(
        chain.recipe,
        chain.splits,
        chain.done["data"].path,
        step.role,
        language,
        out,
        partial=partial,
        report=chain.report,
        parent=None if step.role == "teacher" else language or chain.trained("teacher"),
    )


def _student(chain: Chain, step: Step, out: Path, partial: Path) -> Checkpoint:
    from distilledge.pipeline.training.distill import distill

    teacher = chain.trained("teacher")
    return distill(
        chain.recipe,
        chain.splits,
        chain.done["data"].path,
        teacher if step.kind == "student" else None,
        out,
        partial=partial,
        report=chain.report,
        parent=teacher if needs_parent(chain.recipe) else None,
        pretrained=chain.trained("pretrain-student"),
        language=chain.trained("pretrain-teacher") if step.kind == "student" else None,
    )


def _prune(chain: Chain, step: Step, out: Path, partial: Path) -> Checkpoint:
    from distilledge.pipeline.benchmark import samples_of
    from distilledge.pipeline.training.prune import prune

    settings = chain.recipe.student.prune
    assert settings is not None
    before, number = source_of(step.name, settings.rounds)
    source = chain.trained(before)
    assert source is not None
    return prune(
        chain.recipe,
        chain.splits,
        chain.done["data"].path,
        source,
        goal(chain.recipe, number),
        out,
        taught_by=chain.trained("teacher") if step.role == "student" else None,
        inputs=samples_of(*chain.inputs("validation")),
        partial=partial,
        report=chain.report,
    )


def _qat(chain: Chain, _step: Step, out: Path, partial: Path) -> Retrained:
    from distilledge.pipeline.benchmark import samples_of
    from distilledge.pipeline.compress.ladder import spread
    from distilledge.pipeline.compress.qat import tune
    from distilledge.targets.samples import reader

    student = chain.trained("student")
    assert student is not None
    chosen = samples_of(*chain.inputs("train", calibration=True)).rows
    read = reader(student[0].input_spec, student[1])
    return tune(
        chain.recipe,
        chain.splits,
        chain.done["data"].path,
        student,
        chain.trained("teacher"),
        calibration=[read(row) for row in spread(chosen, chain.recipe.compress.samples or len(chosen))],
        out=out,
        partial=partial,
        report=chain.report,
    )


def _export(chain: Chain, step: Step, out: Path, _partial: Path) -> ExportResult:
    from distilledge.pipeline.benchmark import samples_of
    from distilledge.pipeline.export import export

    trained = chain.done[step.role]
    with _climb(chain, step) as climb:
        return export(
            trained.value,
            trained.path,
            role=step.role,
            runtime=step.runtime,
            precisions=step.inputs["precisions"],
            saturates=step.inputs.get("saturates", False),
            calibration=samples_of(*chain.calibration()),
            out=out,
            climb=climb,
        )


@contextmanager
def _climb(chain: Chain, step: Step) -> Iterator[Climb | None]:
    """What the quantization ladder needs, with the device held; None where it is not climbed."""
    if "compress" not in step.inputs:
        yield None
        return
    from distilledge.pipeline.benchmark import samples_of
    from distilledge.pipeline.compress.judge import Ground
    from distilledge.pipeline.compress.stage import Climb
    from distilledge.pipeline.inventory import opened

    budget = chain.recipe.budget_of(step.inputs["runtime"])
    given, validation = chain.calibration(), chain.inputs("validation")
    held_out = [*validation[0], *chain.samples("test")]
    with opened(chain.recipe.measure.device) as device:
        ground = Ground(chain.recipe, budget, device, validation[0], samples_of(*validation), validation[2])
        train = chain.inputs("train")
        spare = (train[0], samples_of(*train))
        yield Climb(ground, given[0], samples_of(*given), held_out, spare, chain.ask)


def _verify(chain: Chain, _step: Step, _out: Path, _partial: Path) -> Parities:
    from distilledge.pipeline.benchmark import samples_of
    from distilledge.pipeline.verify import verify

    compared = samples_of(*chain.compared()).spread(chain.recipe.verify.samples)
    parities = []
    for exported in chain.exports():
        trained = chain.done[exported.value.role]
        parities.append(
            verify(trained.value, trained.path, exported.value, exported.path, compared, chain.recipe.verify)
        )
    return Parities(items=tuple(parities))


def _measure(chain: Chain, _step: Step, out: Path, _partial: Path) -> Measurements:
    from distilledge.pipeline.benchmark import measure_exports, samples_of
    from distilledge.pipeline.inventory import opened

    exports = [(e.value, e.path) for e in chain.exports() if e.value.role != "control"]
    with opened(chain.recipe.measure.device) as device:
        return measure_exports(exports, samples_of(*chain.inputs("test")), chain.recipe.measure, device, out)


def _predict(chain: Chain, step: Step, out: Path, _partial: Path) -> Scores:
    from distilledge.pipeline.benchmark import predict_export
    from distilledge.pipeline.inventory import opened

    exported = chain.done[step.name.replace("predict-", "export-", 1)]
    with opened(chain.recipe.measure.device) as device:
        given, units = chain.inputs("test"), chain.recipe.measure.units
        return predict_export(exported.value, exported.path, given, out, device, units=units)


def _score(chain: Chain, _step: Step, out: Path, _partial: Path) -> Scores:
    from distilledge.pipeline.benchmark import gather

    return gather([(s.value, s.path) for name, s in chain.done.items() if name.startswith("predict-")], out)


def _gate(chain: Chain, _step: Step, _out: Path, _partial: Path) -> Verdicts:
    import numpy as np

    from distilledge.pipeline.gate import judge
    from distilledge.pipeline.outcomes import read_all

    score = chain.done["score"]
    logits = {item.name: np.load(score.path / item.logits) for item in score.value.items}
    exports = [e.value for e in chain.exports()]
    groups = [s.group for s in chain.samples("test")]
    outcomes = read_all(score.value.items, score.path, chain.recipe.metric) if chain.recipe.is_text else None
    if heads := chain.splits.heads:
        from distilledge.pipeline.task_scores import judge_tasks, labels_of

        given = (chain.recipe, score.value, logits, chain.done["measure"].value, exports, groups)
        labels = labels_of(heads, chain.done["data"].path, chain.samples("test"))
        return judge_tasks(*given, heads=heads, labels=labels)
    return judge(chain.recipe, score.value, logits, chain.done["measure"].value, exports, groups, outcomes=outcomes)


BUILDERS: dict[str, tuple[type[BaseModel], Callable[[Chain, Step, Path, Path], Any]]] = {
    "data": (Splits, _data),
    "pretrain": (Checkpoint, _pretrain),
    "teacher": (Checkpoint, _teacher),
    "scratch": (Checkpoint, _teacher),
    "transfer": (Transfer, _transfer),
    "source-only": (Checkpoint, _teacher),
    "adaptation": (Adaptation, _adaptation),
    "student": (Checkpoint, _student),
    "control": (Checkpoint, _student),
    "prune": (Checkpoint, _prune),
    "qat": (Retrained, _qat),
    "export": (ExportResult, _export),
    "verify": (Parities, _verify),
    "measure": (Measurements, _measure),
    "predict": (Scores, _predict),
    "score": (Scores, _score),
    "gate": (Verdicts, _gate),
}
"""Step kind -> the record it makes and the function that makes it."""
