"""``shipped.json``: the one place where a run names files to be taken along; none of them misses a budget."""

from __future__ import annotations

from pathlib import Path

from distilledge.models.base import Value
from distilledge.pipeline.chain import Chain
from distilledge.pipeline.gate import Outcome, TargetVerdict, by_target, overall
from distilledge.pipeline.record import Check
from distilledge.pipeline.store import atomic_write

NAME = "shipped.json"


class ShippedFile(Value):
    runtime: str
    precision: str
    directory: str
    """Relative to the work directory."""
    files: dict[str, str]
    """Name -> sha256; the first is the one that the runtime is given."""
    size_bytes: int
    checks: tuple[Check, ...]
    """Each budget, held by its whole interval."""


class Withheld(Value):
    """What a runtime would ship, and why it does not."""

    runtime: str
    precision: str
    outcome: Outcome
    why: tuple[str, ...]


class Shipped(Value):
    run: str
    outcome: Outcome
    """Of the run: the worst of its runtimes."""
    files: tuple[ShippedFile, ...]
    """Under ``gate.on_fail: stop`` all of the run's runtimes, or none; under ``report`` those that pass."""
    withheld: tuple[Withheld, ...]


def withdraw(directory: Path) -> None:
    """Take back what an earlier run of that name shipped: whatever happens to this one, it says nothing of it."""
    (directory / NAME).unlink(missing_ok=True)


def leave_shipped(chain: Chain, work: Path, directory: Path) -> None:
    """Write ``shipped.json`` beside ``run.json`` once the gate has judged."""
    if "gate" in chain.done:
        atomic_write(directory / NAME, shipped_of(chain, work).model_dump_json(indent=1))


def shipped_of(chain: Chain, work: Path) -> Shipped:
    verdicts = chain.done["gate"].value
    targets, outcome = by_target(verdicts), overall(verdicts)
    all_or_none = chain.recipe.gate.on_fail == "stop" and outcome != "pass"
    passing = [] if all_or_none else [t for t in targets if t.shipped.outcome == "pass"]
    return Shipped(
        run=chain.recipe.name,
        outcome=outcome,
        files=tuple(_file(chain, work, target) for target in passing),
        withheld=tuple(_withheld(t) for t in targets if t not in passing),
    )


def _file(chain: Chain, work: Path, target: TargetVerdict) -> ShippedFile:
    verdict = target.shipped
    stored = chain.done[f"export-student-{target.runtime}"]
    exported = stored.value.precision(verdict.precision)
    return ShippedFile(
        runtime=target.runtime,
        precision=verdict.precision,
        directory=str(stored.path.relative_to(work)),
        files=dict(zip(exported.files, exported.sha256, strict=True)),
        size_bytes=exported.size_bytes,
        checks=verdict.checks,
    )


def _withheld(target: TargetVerdict) -> Withheld:
    verdict = target.shipped
    open_ = [c for c in verdict.checks if c.outcome in ("fails", "inconclusive")]
    why = [f"{c.what} {c.value:.4g}, limit {c.limit:.4g}: {c.outcome}" for c in open_ if c.limit is not None]
    if verdict.outcome == "pass":
        why = ["another runtime of the run does not pass"]
    return Withheld(
        runtime=target.runtime,
        precision=verdict.precision,
        outcome=verdict.outcome,
        why=(*why, *verdict.alarms),
    )
