"""Trainings that the quantization ladder may ask for: named beforehand, run once for all runtimes, or never."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from distilledge.pipeline.recipe import Recipe


class Named(Protocol):
    """A step before it."""

    @property
    def fingerprint(self) -> str: ...


def asked_inputs(recipe: Recipe, data: Named, teacher: Named, student: Named) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name of the step, which is its kind too, and its inputs."""
    if recipe.compress.climb and recipe.compress.qat is not None:
        yield "qat", _qat(recipe, data, teacher, student)
    if recipe.compress.climb and recipe.compress.surgery is not None:
        yield "surgery", _surgery(recipe, data, teacher, student)


def _qat(recipe: Recipe, data: Named, teacher: Named, student: Named) -> dict[str, Any]:
    """The student's fingerprint stands for how it was trained, its packages and its views."""
    settings = recipe.compress.qat
    assert settings is not None
    inputs = {
        "data": data.fingerprint,
        "student": student.fingerprint,
        "qat": settings.model_dump(mode="json"),
        "samples": recipe.compress.samples,
        "metric": recipe.metric,
        "seed": recipe.seed,
    }
    if settings.teacher == "none":
        return inputs
    inputs["distill"] = recipe.distill.model_dump(mode="json", include={"losses", "hard_weight", "unlabelled"})
    return inputs | ({"teacher": teacher.fingerprint} if settings.teacher == "teacher" else {})


def _surgery(recipe: Recipe, data: Named, teacher: Named, student: Named) -> dict[str, Any]:
    settings = recipe.compress.surgery
    assert settings is not None
    return {
        "data": data.fingerprint,
        "student": student.fingerprint,
        "teacher": teacher.fingerprint,
        "surgery": settings.model_dump(mode="json"),
        "distill": recipe.distill.model_dump(mode="json", exclude={"control"}),
        "metric": recipe.metric,
        "seed": recipe.seed,
    }
