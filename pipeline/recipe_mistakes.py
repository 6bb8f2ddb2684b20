"""What pydantic finds wrong with a recipe, in the user's words: where, what, and what would be right."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError

from distilledge.models.errors import UsageError
from distilledge.pipeline.recipe_paths import children, choices, key_choices, near, spot, suggestion, takes

Place = tuple[int, int, str]
"""Line and column to sort by, and the place in words."""


class Mistake(NamedTuple):
    place: Place
    what: str
    fix: str


def mistakes(error: ValidationError, place: Callable[[Sequence[str | int], bool], Place]) -> list[Mistake]:
    """One for each wrong field; ``place(location, of_key)`` says where it stands."""
    found: dict[tuple[str | int, ...], Mistake] = {}
    for item in error.errors(include_url=False):
        location = _known(item["loc"])
        kind = item["type"]
        if kind == "extra_forbidden" or item["loc"][-1:] == ("[key]",):
            found[location] = Mistake(place(location, True), _unknown(location), suggestion(location))
        elif location not in found:
            found[location] = Mistake(place(location, False), *_wrong(location, kind, item["input"]))
    return list(found.values())


def raise_mistakes(found: Sequence[Mistake], name: str) -> None:
    """Raise ``UsageError`` (exit 2) naming all of them, in the order of the file; do nothing if there are none."""
    ordered = sorted(set(found))
    if len(ordered) == 1:
        raise UsageError("E2014", f"{ordered[0].what}: {ordered[0].place[2]}", ordered[0].fix)
    if ordered:
        lines = [f"  {m.place[2]}: {m.what}; {m.fix}" for m in ordered]
        hint = "`distilledge init --explain` lists every field"
        raise UsageError("E2014", "\n".join([f"{len(ordered)} mistakes: {name}", *lines]), hint)


def dotted(location: Sequence[str | int]) -> str:
    return ".".join(str(part) for part in location)


def _known(location: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """Without what pydantic appends: ``[key]``, and the branch of a union that it tried."""
    if location[-1:] == ("[key]",):
        return location[:-1]
    if spot(location) is None and len(location) > 1 and spot(location[:-1]) is not None:
        above = spot(location[:-1])
        if above is not None and not children(above) and not key_choices(above):
            return location[:-1]
    return location


def _unknown(location: Sequence[str | int]) -> str:
    under = f" under `{dotted(location[:-1])}`" if len(location) > 1 else ""
    return f"unknown key `{location[-1]}`{under}"


def _wrong(location: tuple[str | int, ...], kind: str, value: Any) -> tuple[str, str]:
    """What is wrong and what would be right, for a field that exists."""
    here, name = spot(location), dotted(location) or "the recipe"
    if kind == "missing":
        return f"`{name}` is missing", "add it" if here is None else f"add it: {takes(here)}"
    if here is None:
        return f"`{name}` cannot be {_shown(value)}", "remove it"
    if kind == "json_invalid":
        return "text that is not Unicode", "remove the \\u escape of half a character"
    if kind == "string_pattern_mismatch":
        return f"`{name}` is {_shown(value)}", "use up to 64 letters, digits, dots, hyphens and underscores"
    if kind == "model_type" and value is None:
        return f"nothing stands under `{name}`", "give it keys or remove the line"
    return f"`{name}` is {_shown(value)}", _allowed(location, value)


def _allowed(location: tuple[str | int, ...], value: Any) -> str:
    here = spot(location)
    assert here is not None
    if here.type is bool and isinstance(value, str):
        return "write true or false (in YAML 1.2, yes, no, on and off are text)"
    if here.type is str and isinstance(value, int | float | bool):
        return f'allowed: text; quote it: "{_shown(value)}"'
    best = near(str(value), choices(here))
    return f"allowed: {takes(here)}" + (f"; did you mean `{best}`?" if best else "")


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False) if not isinstance(value, float) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
