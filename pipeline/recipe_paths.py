"""The recipe's fields by dotted path: what each takes, its range, its meaning, and the nearest name to a wrong one."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from distilledge.pipeline.recipe import Recipe

WORDS = {float: "a number", int: "a whole number", bool: "true or false", str: "text"}


class Spot(NamedTuple):
    """A place in the recipe: its bare type, the constraints on it, and whether null is allowed."""

    type: Any
    constraints: tuple[Any, ...]
    optional: bool


class FieldNote(NamedTuple):
    """One line of ``init --explain``."""

    path: str
    takes: str
    """Such as ``a number > 0``."""
    default: Any
    meaning: str


ROOT = Spot(Recipe, (), False)


def spot(path: Sequence[str | int]) -> Spot | None:
    """What a path leads to, None where it leads nowhere. Parts are field names as in YAML, and list indices."""
    here: Spot | None = ROOT
    for part in path:
        here = None if here is None else _child(here, part)
    return here


def children(at: Spot) -> dict[str, FieldInfo]:
    """Fields of a section by the name they have in YAML; empty for anything else."""
    if not is_model(at.type):
        return {}
    return {info.alias or name: info for name, info in at.type.model_fields.items()}


def is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def takes(at: Spot) -> str:
    """In words, with the range: ``a whole number >= 1``, ``one of stretch, crop``, ``a section``."""
    return _kind(at.type) + _range(at.constraints) + (" or null" if at.optional else "")


def choices(at: Spot) -> list[str]:
    return [str(c) for c in get_args(at.type)] if get_origin(at.type) is Literal else []


def near(word: str, names: Sequence[str]) -> str:
    """The nearest of the names, or an empty string."""
    return next(iter(difflib.get_close_matches(word, names, n=1, cutoff=0.6)), "")


def suggestion(path: Sequence[str | int]) -> str:
    """A fix for an unknown last part: the nearest sibling, else where a field of that name is, else what there is."""
    parent, word = spot(path[:-1]) or ROOT, str(path[-1])
    names = sorted(children(parent)) or key_choices(parent)
    if best := near(word, names):
        return f"did you mean `{best}`?"
    elsewhere = [note.path for note in fields() if note.path.split(".")[-1] == word]
    if elsewhere:
        places = [path.rpartition(".")[0] or "the top level" for path in shallowest(elsewhere)]
        return "it belongs to " + " or ".join(f"`{place}`" for place in places[:4])
    return "choose from " + ", ".join(names)


def shallowest(paths: list[str]) -> list[str]:
    """Those with the fewest parts: sections near the top are meant more often than those inside of others."""
    top = min(path.count(".") for path in paths)
    return [path for path in paths if path.count(".") == top]


def key_choices(at: Spot) -> list[str]:
    """Keys that a dictionary with enumerated keys takes."""
    arguments = get_args(at.type) if get_origin(at.type) is dict else ()
    return choices(Spot(arguments[0], (), False)) if arguments else []


def fields() -> Iterator[FieldNote]:
    """Every leaf of the recipe in order, with its default; items of a list stand under index 0."""
    yield from _fields(ROOT, (), {**Recipe(name="name").model_dump(mode="json", by_alias=True), "metric": "auto"})


def _fields(at: Spot, path: tuple[str, ...], default: Any) -> Iterator[FieldNote]:
    for name, info in children(at).items():
        below = spot((*path, name)) or ROOT
        value = default.get(name) if isinstance(default, dict) else None
        if is_model(below.type):
            yield from _fields(below, (*path, name), value)
            continue
        yield FieldNote(".".join((*path, name)), takes(below), value, _oneline(info.description))
        item = _child(below, 0)
        if item is not None and is_model(item.type):
            first = value[0] if isinstance(value, list) and value else None
            yield from _fields(item, (*path, name, "0"), first)


def _oneline(text: str | None) -> str:
    return " ".join((text or "").split())


def _child(at: Spot, part: str | int) -> Spot | None:
    origin, arguments = get_origin(at.type), get_args(at.type)
    if is_model(at.type):
        info = children(at).get(str(part))
        return None if info is None else _spot(info.annotation, tuple(info.metadata))
    if origin is tuple and str(part).isdigit():
        index = 0 if arguments[-1] is Ellipsis else int(part)
        return _spot(arguments[index], ()) if index < len(arguments) else None
    if origin is dict:
        enumerated = key_choices(at)
        return _spot(arguments[1], ()) if not enumerated or part in enumerated else None
    return None


def _spot(annotation: Any, constraints: tuple[Any, ...]) -> Spot:
    """Peel ``Annotated`` and ``| None`` off."""
    optional = False
    while True:
        origin, arguments = get_origin(annotation), get_args(annotation)
        if origin is Annotated:
            annotation, constraints = arguments[0], constraints + arguments[1:]
        elif origin in (Union, types.UnionType) and type(None) in arguments and len(arguments) == 2:
            optional = True
            annotation = next(a for a in arguments if a is not type(None))
        else:
            return Spot(annotation, constraints, optional)


def _kind(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ("one of " if len(arguments) > 1 else "") + ", ".join(str(a) for a in arguments)
    if is_model(annotation) or origin is dict:
        return "a section"
    if origin is tuple and is_model(arguments[0]):
        return "a list of sections"
    if origin is tuple:
        item = takes(_spot(arguments[0], ()))
        return f"a list of {item}" if arguments[-1] is Ellipsis else f"a list of {len(arguments)}: {item}"
    if origin in (Union, types.UnionType):
        return " or ".join(_kind(a) for a in arguments)
    return WORDS.get(annotation, "any value")


def _range(constraints: tuple[Any, ...]) -> str:
    flat = [c for item in constraints for c in (item.metadata if isinstance(item, FieldInfo) else [item])]
    words = [f"> {c.gt}" for c in flat if isinstance(c, Gt)] + [f">= {c.ge}" for c in flat if isinstance(c, Ge)]
    words += [f"< {c.lt}" for c in flat if isinstance(c, Lt)] + [f"<= {c.le}" for c in flat if isinstance(c, Le)]
    return f" {' and '.join(words)}" if words else ""
