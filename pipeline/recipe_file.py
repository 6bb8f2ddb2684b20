"""Reading a recipe from YAML 1.2, with overrides. All mistakes are reported at once (exit 2).

What a file leaves out has the default that ``distilledge init`` prints: sections are merged key by key, lists replaced.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from distilledge.models.errors import UsageError
from distilledge.pipeline.recipe import Recipe
from distilledge.pipeline.recipe_mistakes import Mistake, Place, dotted, mistakes, raise_mistakes
from distilledge.pipeline.recipe_paths import ROOT, children, fields, key_choices, near, shallowest, spot, suggestion
from distilledge.pipeline.recipe_text import recipe_to_yaml
from distilledge.pipeline.recipe_yaml import Document, Location, parse

__all__ = ["load_recipe", "recipe_to_yaml", "schema", "schema_path"]

Path_ = tuple[str | int, ...]


@dataclass
class Draft:
    """A recipe before it is checked: its values, and where those that do not stand in the file itself came from."""

    document: Document
    data: dict[str, Any]
    origins: dict[Path_, Place] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)

    def place(self, location: Location, of_key: bool) -> Place:
        for length in range(len(location), 0, -1):
            origin = self.origins.get(tuple(location[:length]))
            if origin is not None:
                return origin
        inside = (origin for path, origin in self.origins.items() if path[: len(location)] == tuple(location))
        if location and (origin := next(inside, None)) is not None:
            return origin
        line, column = self.document.place(location, key=of_key)
        return line, column, f"{self.document.name}:{line}:{column}"

    def override(self, path: str, value: Any, origin: Place) -> None:
        """Set a dotted path; a section given for a section is merged into it."""
        parts: Path_ = tuple(int(p) if p.isdigit() else p for p in path.split("."))
        wrong = next((n for n in range(len(parts)) if spot(parts[: n + 1]) is None), None)
        if wrong is not None:
            self.mistakes.append(Mistake(origin, f"unknown path `{path}`", _path_suggestion(parts, wrong)))
        elif not _set(self.data, parts, value):
            self.mistakes.append(Mistake(origin, f"`{path}` leads past the end of a list", "count from 0"))
        else:
            self.origins[parts] = origin

    def check(self) -> Recipe | None:
        """The recipe, or None with its mistakes added. Checked as JSON, strictly: 1.5 is no int, "no" no bool."""
        try:
            return Recipe.model_validate_json(json.dumps(self.data, default=str), strict=True)
        except ValidationError as error:
            self.mistakes += mistakes(error, self.place)
            return None


def load_recipe(path: Path, *, overrides: Sequence[str] = (), smoke: bool = False) -> Recipe:
    """Read and check a recipe. ``overrides`` are ``a.b.c=value`` with a YAML value; they win over the ``smoke:`` block.

    The ``smoke:`` block is checked even when it is not asked for. Raises ``UsageError`` (exit 2) for a missing file,
    for text that is not YAML 1.2 and, all at once with their lines, for every mistake in it.
    """
    document = parse(_read(path), str(path))
    if not isinstance(document.data, dict):
        hint = "`distilledge init DATA` writes one"
        raise UsageError("E2014", f"not a recipe (keys and values, beginning with `name:`): {path}", hint)
    plain, smoked = (_draft(document, overrides, smoke=s) for s in (False, True))
    recipes = plain.check(), smoked.check()
    raise_mistakes([*plain.mistakes, *smoked.mistakes], str(path))
    recipe = recipes[smoke]
    assert recipe is not None
    return recipe


def schema() -> dict[str, Any]:
    """The JSON schema (2020-12) by which editors complete and check recipes; shipped as recipes/recipe.schema.json."""
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "distilledge recipe"}
    return {**Recipe.model_json_schema(by_alias=True), **head}


def schema_path() -> Path:
    """The shipped schema: ``# yaml-language-server: $schema=<this>`` is a recipe's first line."""
    return Path(str(files("distilledge.pipeline.recipes"))) / "recipe.schema.json"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UsageError("E2011", f"no such recipe: {path}", _missing(path)) from None
    except UnicodeDecodeError as error:
        raise UsageError("E2012", f"byte {error.start} is not UTF-8: {path}", "save the file as UTF-8") from None
    except OSError as error:
        raise UsageError("E2011", f"cannot read the recipe ({error.strerror}): {path}", "give a .yaml file") from None


def _missing(path: Path) -> str:
    there = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    best = near(path.name, there)
    return f"did you mean {path.with_name(best)}?" if best else "`distilledge init DATA` writes one"


def _draft(document: Document, overrides: Sequence[str], *, smoke: bool) -> Draft:
    defaults = Recipe(name="name").model_dump(mode="json", by_alias=True)
    del defaults["name"]
    defaults["metric"] = "auto"  # the task's own, which the file may name
    draft = Draft(document, _merged(defaults, document.data))
    block = document.data.get("smoke")
    if smoke and isinstance(block, dict):
        for path, value in block.items():
            line, column = document.place(("smoke", str(path)), key=True)
            draft.override(str(path), value, (line, column, f"{document.name}:{line}:{column}"))
    for text in overrides:
        _override(draft, text)
    return draft


def _override(draft: Draft, text: str) -> None:
    path, sign, raw = text.partition("=")
    origin = (0, 0, f"--set {text}")
    if not sign or not path.strip():
        draft.mistakes.append(Mistake(origin, "not an override", "write --set path.to.field=value"))
        return
    try:
        value = parse(raw, "value").data
    except UsageError:
        value = raw
    here = spot(tuple(path.strip().split(".")))
    if here is not None and here.type is str and not isinstance(value, str) and not (here.optional and value is None):
        value = raw  # the shell's user means text, such as a name of digits
    draft.override(path.strip(), value, origin)


def _path_suggestion(parts: Path_, wrong: int) -> str:
    """The whole path that was meant, where that can be told; ``wrong`` is the part that leads nowhere."""
    word, above = str(parts[wrong]), spot(parts[:wrong]) or ROOT
    if best := near(word, [*children(above), *key_choices(above)]):
        return f"did you mean `{dotted((*parts[:wrong], best, *parts[wrong + 1 :]))}`?"
    ending = [note.path for note in fields() if f".{note.path}".endswith(f".{dotted(parts)}")]
    if ending:
        return "did you mean " + " or ".join(f"`{path}`" for path in shallowest(ending)[:4]) + "?"
    return suggestion(parts[: wrong + 1])


def _merged(base: Any, over: Any) -> Any:
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return copy.deepcopy(over)
    both = {key: _merged(base[key], over[key]) if key in base else copy.deepcopy(over[key]) for key in over}
    return {**copy.deepcopy({k: v for k, v in base.items() if k not in over}), **both}


def _set(data: Any, parts: Path_, value: Any) -> bool:
    """Put a value at a path that the schema knows, making sections on the way; False where a list is too short."""
    for part in parts[:-1]:
        if isinstance(data, list):
            if not isinstance(part, int) or part >= len(data):
                return False
            data = data[part]
        else:
            if not isinstance(data.get(part), dict | list):
                data[part] = {}
            data = data[part]
    last = parts[-1]
    if isinstance(data, list):
        if not isinstance(last, int) or last >= len(data):
            return False
        data[last] = _merged(data[last], value)
    else:
        data[last] = _merged(data.get(last), value)
    return True
