"""What surgery and pruning mean to the chain: inputs of steps, and the steps that prune.

The student is trained, then, each round, cut and distilled again; the last one takes the name of the student, so that
whatever comes after sees the pruned network. The control goes the same way on labels alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from typing import TYPE_CHECKING, Any

from distilledge.pipeline.recipe import Recipe, Student, Teacher
from distilledge.pipeline.step_packages import package_versions

if TYPE_CHECKING:
    from distilledge.pipeline.steps import Step

RESHAPE = {"surgery", "prune"}
"""Fields of a student that change nothing where they are not used; pruning has steps of its own."""
PRUNE_PACKAGES = ("torch-pruning",)


def surgery_inputs(model: Teacher | Student) -> dict[str, Any]:
    """Nothing where nothing is cut out."""
    if isinstance(model, Teacher) or model.surgery is None:
        return {}
    return {"surgery": model.surgery.model_dump(mode="json")}


def architecture(model: Teacher | Student) -> dict[str, Any]:
    """What a checkpoint records of it."""
    return surgery_inputs(model)


def pruned(recipe: Recipe, students: Sequence[Step], make: Callable[..., Step]) -> tuple[list[Step], list[Step]]:
    """(those trained before the last, the student and its control as they go on).

    ``students``: the trained ones. ``make``: ``steps._step``.
    """
    settings = recipe.student.prune
    if settings is None:
        return [], list(students)
    earlier = [step._replace(name=f"{step.name}-unpruned") for step in students]
    now = list(students)
    for number in range(1, settings.rounds + 1):
        last = number == settings.rounds
        now = [
            make(
                own.name if last else f"{own.name}-round-{number}",
                "prune",
                _inputs(recipe, before, number),
                role=own.role,
            )
            for own, before in zip(students, now, strict=True)
        ]
        earlier += [] if last else now
    return earlier, now


def _inputs(recipe: Recipe, before: Step, number: int) -> dict[str, Any]:
    """The step before says what it was trained on and how; one round is like another but for its goal."""
    settings = recipe.student.prune
    assert settings is not None
    return {
        "from": before.fingerprint,
        "share": {"of": "macs" if settings.macs else "latency", "value": goal(recipe, number)},
        "prune": settings.model_dump(mode="json", include={"by", "multiple", "training"}),
        "packages": package_versions(PRUNE_PACKAGES),
    }


def goal(recipe: Recipe, number: int) -> float:
    """What is to be left of the unpruned student after this round (from 1): equal ratios from round to round."""
    settings = recipe.student.prune
    assert settings is not None
    whole = settings.macs or settings.latency
    assert whole is not None
    return float(whole ** (number / settings.rounds))


def source_of(name: str, rounds: int) -> tuple[str, int]:
    """Of a pruning step: the step it starts from, and its round."""
    role, _, number = name.partition("-round-")
    own = int(number) if number else rounds
    return (f"{role}-unpruned" if own == 1 else f"{role}-round-{own - 1}"), own


def check_reshape(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """What contradicts itself, and the edit that mends it."""
    surgery, prune = recipe.student.surgery, recipe.student.prune
    for name, part in (("surgery", surgery), ("prune", prune)):
        if part is not None and recipe.is_text:
            yield f"student.{name} is for pictures", "leave it out"
    if surgery is not None and surgery.activation is None and surgery.squeeze_excite is None:
        yield "student.surgery replaces nothing", "set activation or squeeze_excite, or leave it out"
    if prune is not None and (prune.macs is None) == (prune.latency is None):
        yield "student.prune needs one goal", "set student.prune.macs or student.prune.latency"


def check_package() -> None:
    """Raise ``MissingPackageError`` (exit 4) where the package that prunes is not installed."""
    from distilledge.targets import missing_package

    try:
        distribution(PRUNE_PACKAGES[0])
    except PackageNotFoundError as error:
        raise missing_package("torch_pruning", "student.prune") from error
