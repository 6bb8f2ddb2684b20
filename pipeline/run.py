"""The chain, top to bottom: each step is run once in a directory named by its fingerprint, or found there."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from distilledge.models.errors import GateFailedError, InconclusiveError, MissingPackageError
from distilledge.pipeline.builders import BUILDERS
from distilledge.pipeline.chain import Chain, Report
from distilledge.pipeline.failpoints import failpoint
from distilledge.pipeline.recipe import Recipe
from distilledge.pipeline.recipe_result import leave_result
from distilledge.pipeline.record import ExportResult, Parities, RunRecord, StageRecord, Transfer
from distilledge.pipeline.shipped import leave_shipped, withdraw
from distilledge.pipeline.step_packages import RUNTIME_PACKAGES, package_versions, training_packages
from distilledge.pipeline.steps import VERSIONS, Step, steps
from distilledge.pipeline.store import Store, atomic_write, run_lock

log = logging.getLogger("distilledge")


def silent(_event: Any) -> None:
    """Report nothing."""


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
        withdraw(directory)
        chain = Chain(recipe, Store(work / "store"), steps(recipe, device_card(recipe)), report)
        try:
            _run_steps(chain, until)
        finally:
            record = _record(chain, work, command)
            atomic_write(directory / "run.json", record.model_dump_json(indent=1, by_alias=True))
        leave_result(chain, record, directory)
        leave_shipped(chain, work, directory)
        if until == "report":
            _write_report(record, directory)
    _raise_transfer(chain)
    _raise_verdict(chain)
    return record, directory


def is_trained(recipe: Recipe, work: Path) -> bool:
    """Whether teacher and student are in the store, so that their models once passed all checks."""
    store = Store(work / "store")
    return all(
        store.probe(step.kind, step.fingerprint) for step in steps(recipe, {}) if step.kind in ("teacher", "student")
    )


def device_card(recipe: Recipe) -> dict[str, Any]:
    """The stable part of the device's card: it enters the cache key of what is measured there."""
    from distilledge.pipeline.inventory import LOCAL, opened
    from distilledge.pipeline.recipe_device import check_device

    name = recipe.measure.device
    check_device(recipe)
    with opened(name) as device:
        facts = device.facts()
    keys = ("cpu_model", "cpu_flags", "cpu_count", "machine")
    if name == LOCAL:
        return {key: facts.get(key) for key in keys}
    return {"name": name, **{key: facts.get(key) for key in (*keys, "board", "packages")}}  # of a fleet of equal boards


def _run_steps(chain: Chain, until: str) -> None:
    last = {"report": "gate"}.get(until, until)
    if chain.recipe.student.prune is not None and until in ("student", "control"):
        last = "prune"
    for step in chain.steps:
        if step.lazy and not chain.store.probe(step.kind, step.fingerprint):
            continue
        run_step(chain, step)
        if step.kind == "verify":
            _raise_breach(chain)
        if step.kind == last and not any(s.kind == last for s in _after(chain, step)):
            return


def _after(chain: Chain, step: Step) -> tuple[Step, ...]:
    return chain.steps[chain.steps.index(step) + 1 :]


def run_step(chain: Chain, step: Step) -> None:
    """Build or find one step; what it makes is in ``chain.done``, an optional one that cannot be made in ``failed``."""
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


def _raise_transfer(chain: Chain) -> None:
    """Exit 5 where the recipe demands that pretrained weights helped, and the comparison does not say so."""
    if "transfer" not in chain.done or not chain.recipe.teacher.require_positive_transfer:
        return
    from distilledge.pipeline.report.fits import gain_words

    found: Transfer = chain.done["transfer"].value
    if found.outcome != "helped":
        raise GateFailedError(
            "E5020",
            f"pretrained weights are not shown to help: {gain_words(found)}",
            "choose other weights, or set teacher.require_positive_transfer: false",
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
