"""The chain, top to bottom: each step is run once in a directory named by its fingerprint, or found there."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from distilledge.models.errors import GateFailedError, InconclusiveError, MissingPackageError
from distilledge.pipeline.data.content import location
from distilledge.pipeline.failpoints import failpoint
from distilledge.pipeline.recipe import Recipe
from distilledge.pipeline.record import (
    Checkpoint,
    ExportResult,
    Measurements,
    Parities,
    RunRecord,
    Sample,
    Scores,
    Split,
    Splits,
    StageRecord,
    TextRow,
    Verdicts,
    data_root,
    read_samples,
    read_texts,
)
from distilledge.pipeline.steps import (
    RUNTIME_PACKAGES,
    VERSIONS,
    Step,
    needs_parent,
    package_versions,
    steps,
    training_packages,
)
from distilledge.pipeline.store import Store, Stored, atomic_write, run_lock

log = logging.getLogger("distilledge")
T = TypeVar("T", bound=BaseModel)
Report = Callable[[Any], None]
"""Receives the training loop's progress events."""


def silent(_event: Any) -> None:
    """Report nothing."""


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

    @property
    def root(self) -> Path:
        return data_root(self.splits, self.done["data"].path)

    def trained(self, name: str) -> tuple[Checkpoint, Path] | None:
        """A trained model with its directory; None where the recipe has no such step."""
        stored = self.done.get(name)
        return None if stored is None else (stored.value, stored.path)

    def exports(self) -> list[Stored[ExportResult]]:
        """The exports that were made, in order."""
        return [s for name, s in self.done.items() if name.startswith("export-")]


def run(
    recipe: Recipe, work: Path, *, until: str = "report", command: str = "", report: Report = silent
) -> tuple[RunRecord, Path]:
    """Run the chain of ``recipe`` in ``work`` up to the stage ``until``; return its record and its directory.

    ``work/store`` is shared by all recipes, so that two students of one teacher train it once. Raises the error of
    the first step that fails; ``GateFailedError`` for a parity breach (before any timing) or, after the report is
    written, a missed budget.
    """
    directory = work / "runs" / recipe.name
    directory.mkdir(parents=True, exist_ok=True)
    with run_lock(directory):
        chain = Chain(recipe, Store(work / "store"), steps(recipe, local_card()), report)
        try:
            _run_steps(chain, until)
        finally:
            record = _record(chain, work, command)
            atomic_write(directory / "run.json", record.model_dump_json(indent=1, by_alias=True))
        if until == "report":
            _write_report(record, directory)
    _raise_verdict(chain)
    return record, directory


def local_card() -> dict[str, Any]:
    """The stable part of this machine's device card: it enters the cache key of measurements."""
    from distilledge.targets.devices.local import LocalDevice

    facts = LocalDevice().facts()
    return {key: facts.get(key) for key in ("cpu_model", "cpu_flags", "cpu_count", "machine")}


def _run_steps(chain: Chain, until: str) -> None:
    last = {"report": "gate"}.get(until, until)
    for step in chain.steps:
        _run_step(chain, step)
        if step.kind == "verify":
            _raise_breach(chain)
        if step.kind == last and not any(s.kind == last for s in _after(chain, step)):
            return


def _after(chain: Chain, step: Step) -> tuple[Step, ...]:
    return chain.steps[chain.steps.index(step) + 1 :]


def _run_step(chain: Chain, step: Step) -> None:
    failpoint(f"{step.kind}.start")
    if step.kind == "predict" and step.name.replace("predict-", "export-", 1) in chain.failed:
        return
    result, build = BUILDERS[step.kind]
    if not chain.store.probe(step.kind, step.fingerprint):
        log.info("%s ...", step.name)
    try:
        stored = chain.store.once(
            step.kind, VERSIONS[step.kind], step.inputs, result, lambda out, partial: build(chain, step, out, partial)
        )
    except MissingPackageError as error:
        if not step.optional:
            raise
        log.warning("%s is optional and was left out: %s", step.name, error)
        chain.failed[step.name] = ExportResult(role=step.role, runtime=step.runtime, files=(), error=str(error))
        return
    chain.done[step.name] = stored
    log.info("%s %s in %.1f s", step.name, "found" if stored.cached else "done", stored.seconds)
    failpoint(f"{step.kind}.built")


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


def _teacher(chain: Chain, _step: Step, out: Path, partial: Path) -> Checkpoint:
    from distilledge.pipeline.training.teacher import finetune

    return finetune(
        chain.recipe,
        chain.splits,
        chain.done["data"].path,
        out,
        partial,
        chain.report,
        pretrained=chain.trained("pretrain-teacher"),
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


def _export(chain: Chain, step: Step, out: Path, _partial: Path) -> ExportResult:
    from distilledge.pipeline.benchmark import samples_of
    from distilledge.pipeline.export import export

    trained = chain.done[step.role]
    return export(
        trained.value,
        trained.path,
        role=step.role,
        runtime=step.runtime,
        precisions=step.inputs["precisions"],
        saturates=step.inputs.get("saturates", False),
        calibration=samples_of(*chain.inputs("train", calibration=True)),
        out=out,
    )


def _verify(chain: Chain, _step: Step, _out: Path, _partial: Path) -> Parities:
    from distilledge.pipeline.benchmark import samples_of
    from distilledge.pipeline.verify import verify

    samples, root, texts = chain.inputs("validation")
    few = chain.recipe.verify.samples
    compared = samples_of(samples[:few], root, texts[:few])
    parities = []
    for exported in chain.exports():
        trained = chain.done[exported.value.role]
        parities.append(
            verify(trained.value, trained.path, exported.value, exported.path, compared, chain.recipe.verify)
        )
    return Parities(items=tuple(parities))


def _measure(chain: Chain, _step: Step, _out: Path, _partial: Path) -> Measurements:
    from distilledge.pipeline.benchmark import measure_exports, samples_of

    exports = [(e.value, e.path) for e in chain.exports() if e.value.role != "control"]
    return measure_exports(exports, samples_of(*chain.inputs("test")), chain.recipe.measure)


def _predict(chain: Chain, step: Step, out: Path, _partial: Path) -> Scores:
    from distilledge.pipeline.benchmark import predict_export, samples_of

    exported = chain.done[step.name.replace("predict-", "export-", 1)]
    samples, root, texts = chain.inputs("test")
    scored = samples_of(samples, root, texts)
    return predict_export(exported.value, exported.path, samples, scored, out, texts)


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
    return judge(chain.recipe, score.value, logits, chain.done["measure"].value, exports, groups, outcomes=outcomes)


BUILDERS: dict[str, tuple[type[BaseModel], Callable[[Chain, Step, Path, Path], Any]]] = {
    "data": (Splits, _data),
    "pretrain": (Checkpoint, _pretrain),
    "teacher": (Checkpoint, _teacher),
    "student": (Checkpoint, _student),
    "control": (Checkpoint, _student),
    "export": (ExportResult, _export),
    "verify": (Parities, _verify),
    "measure": (Measurements, _measure),
    "predict": (Scores, _predict),
    "score": (Scores, _score),
    "gate": (Verdicts, _gate),
}
"""Step kind -> the record it makes and the function that makes it."""


def _record(chain: Chain, work: Path, command: str) -> RunRecord:
    own = training_packages(chain.recipe)
    packages = tuple(dict.fromkeys((*own, *(p for names in RUNTIME_PACKAGES.values() for p in names))))
    stages = tuple(
        StageRecord(
            name=step.name,
            fingerprint=step.fingerprint,
            path=str(chain.done[step.name].path.relative_to(work)),
            cached=chain.done[step.name].cached,
            seconds=chain.done[step.name].seconds,
            inputs=step.inputs,
        )
        for step in chain.steps
        if step.name in chain.done
    )
    return RunRecord(
        recipe=chain.recipe,
        command=command,
        work=str(work),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=package_versions(packages),
        stages=stages,
        failed=tuple(chain.failed.values()),
    )


def _write_report(record: RunRecord, directory: Path) -> None:
    from distilledge.pipeline.report.content import collect
    from distilledge.pipeline.report.write import write

    write(collect(record), directory)


def _raise_breach(chain: Chain) -> None:
    """Exit 5 before any timing where a rung of the parity ladder is broken."""
    parities: Parities = chain.done["verify"].value
    for parity in parities.items:
        if rung := parity.broken:
            where = f", first at {rung.first_divergent}" if rung.first_divergent else ""
            raise GateFailedError(
                "E5001",
                f"parity broken for the {parity.role} in {rung.runtime}: {rung.reference} -> {rung.candidate}: "
                f"{rung.fault_class}{where} (agreement {rung.agreement:.3f}, max abs {rung.max_abs:.3g}, "
                f"cosine {rung.cosine:.4f}; limit: {rung.limit})",
                "nothing was timed; see `verify` in the recipe for the limits",
            )


def _raise_verdict(chain: Chain) -> None:
    """Exit 5 for a missed budget, 10 for an undecided one, after the report is written (``gate.on_fail: stop``)."""
    if "gate" not in chain.done or chain.recipe.gate.on_fail == "report":
        return
    from distilledge.pipeline.evidence import noun
    from distilledge.pipeline.gate import by_target

    shipped = [target.shipped for target in by_target(chain.done["gate"].value)]
    failed = [v.name for v in shipped if v.outcome == "fail"]
    undecided = [v.name for v in shipped if v.outcome == "inconclusive"]
    if failed:
        raise GateFailedError(
            "E5002", f"budgets not met: {', '.join(failed)}", "see report.html, or change `budgets` in the recipe"
        )
    if undecided:
        raise InconclusiveError(
            "EA001",
            f"the test set is too small to decide: {', '.join(undecided)}",
            f"add test {noun(chain.recipe)}, or widen `budgets`",
        )
