"""The steps' builders: what each kind of step calls, with what the steps before it made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from distilledge.pipeline.chain import Chain
from distilledge.pipeline.compress.retrained import Retrained
from distilledge.pipeline.record import (
    Adaptation,
    Checkpoint,
    ExportResult,
    Measurements,
    Parities,
    Scores,
    Splits,
    Transfer,
    Verdicts,
)
from distilledge.pipeline.reshape import goal, source_of
from distilledge.pipeline.steps import Step, needs_parent
from distilledge.pipeline.transfer import from_scratch, source_only

if TYPE_CHECKING:
    from distilledge.pipeline.compress.stage import Climb


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
    chosen = samples_of(*chain.calibration()).rows
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


def _surgery(chain: Chain, _step: Step, out: Path, partial: Path) -> Retrained:
    from distilledge.pipeline.compress.recut import recut

    student = chain.trained("student")
    assert student is not None
    return recut(
        chain.recipe,
        chain.splits,
        chain.done["data"].path,
        student,
        chain.trained("teacher"),
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
    "surgery": (Retrained, _surgery),
    "export": (ExportResult, _export),
    "verify": (Parities, _verify),
    "measure": (Measurements, _measure),
    "predict": (Scores, _predict),
    "score": (Scores, _score),
    "gate": (Verdicts, _gate),
}
"""Step kind -> the record it makes and the function that makes it."""
