"""Part of the recipe: which students are looked among, and how briefly most of them are trained."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from distilledge.models.base import Value
from distilledge.pipeline.recipe_data import Count, Size


class Search(Value):
    """``distilledge search`` and ``fit``: candidates are every student at every size. ``run`` does not look at it."""

    students: tuple[str, ...] = ()
    """Models; default: student.model alone."""
    sizes: tuple[Size, ...] = ()
    """Pixels of each side; default: student.input.size alone."""
    weights: dict[str, str] = {}
    """Of a student: ``hub``, ``none`` or a .safetensors file; default: student.weights."""
    rounds: Count = 3
    """Halvings: the last one trains student.training.epochs, each before it 1/eta of that."""
    eta: Annotated[int, Field(ge=2)] = 2
    """After each round the better 1/eta go on (Jamieson & Talwalkar 2016)."""
