"""Writes docs/recipes.md (every field of a recipe) and docs/errors.md (every error) from the source: ``make docs``.

A test compares them with what stands in docs/, so they cannot fall behind.
"""

from __future__ import annotations

import ast
import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from distilledge.models import errors
from distilledge.pipeline.recipe_paths import FieldNote, fields

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("models", "targets", "pipeline")
CODE = re.compile(r"E[1-9A]\d{3}")
RECIPES_HEAD = """\
# Recipes: every field

Generated from the schema by `make docs`. A recipe is YAML 1.2; what it leaves out has the default given here.
`distilledge init YOUR/PICTURES` drafts one, `--explain` writes these texts into it, `--set student.input.size=96`
overrides a field for one run, and `--smoke` applies the recipe's own `smoke:` block. An unknown field, a value out of
range or a repeated key is an error with its line (exit 2); all mistakes are told at once. Editors complete and check
recipes by the schema named in their first line.
"""
ERRORS_HEAD = """\
# Errors

Generated from the source by `make docs`. An error that you can mend is printed as `error[CODE] what: where`, then
`hint:` with one command or one edit; its first digit is the exit code (`A` is 10). Anything else is a bug of ours
(exit 1, with a traceback). Exit 0 means that the thing asked for was done; 130 and 143 mean interrupted, state kept.
"""


class Raised(NamedTuple):
    """One place where an error is made. ``what`` holds ``{name}`` where the message names something."""

    code: str
    kind: str
    what: str
    path: str
    line: int


def recipes() -> str:
    """The page of all fields, a table for each section."""
    parts: dict[str, list[FieldNote]] = {}
    for note in fields():
        parts.setdefault(note.path.rpartition(".")[0], []).append(note)
    tables = [_section(name, notes) for name, notes in parts.items()]
    return RECIPES_HEAD + "".join(tables)


def _section(name: str, notes: list[FieldNote]) -> str:
    head = f"\n## {name or 'top level'}\n\n| field | takes | default | meaning |\n|---|---|---|---|\n"
    rows = (
        f"| `{n.path.rpartition('.')[2]}` | {n.takes} | {_value(n)} | {n.meaning.replace('``', '`')} |" for n in notes
    )
    return head + "".join(row.replace("\n", " ") + "\n" for row in rows)


def _value(note: FieldNote) -> str:
    if note.path == "name":
        return "none: must be given"
    return "(see its own section)" if "section" in note.takes and note.default else f"`{json.dumps(note.default)}`"


KIND_OF = {"LostError": "DeviceError"}
"""Errors that only a layer below knows -> the public one."""


@functools.cache
def raised(root: Path = ROOT) -> list[Raised]:
    """Every error of ours that is made with a literal code, in the order of codes."""
    kinds = {name for name in dir(errors) if name.endswith("Error")} | set(KIND_OF)
    found = []
    for path in sorted(p for layer in LAYERS for p in (root / layer).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found += list(_raised(tree, path.relative_to(root).as_posix(), kinds))
    return sorted(found)


def _raised(tree: ast.Module, path: str, kinds: set[str]) -> Iterator[Raised]:
    for scope in (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)):
        texts = [a for a in ast.walk(scope) if isinstance(a, ast.Assign)]
        for call in (n for n in ast.walk(scope) if isinstance(n, ast.Call) and len(n.args) > 1):
            kind, code = ast.unparse(call.func).rpartition(".")[2], call.args[0]
            if kind in kinds and isinstance(code, ast.Constant) and CODE.fullmatch(str(code.value)):
                named = [a for a in texts if ast.unparse(a.targets[0]) == ast.unparse(call.args[1])]
                before = [a for a in named if a.lineno < call.lineno] or named
                what = max(before, key=lambda a: a.lineno).value if before else call.args[1]
                yield Raised(str(code.value), KIND_OF.get(kind, kind), message(what), path, call.lineno)
    yield from _listed(tree, path)


def _listed(tree: ast.Module, path: str) -> Iterator[Raised]:
    """Codes in a table of (words, code, hint), tuples or records; the kind follows from the exit code."""
    kinds = {kind.exit_code: kind.__name__ for kind in errors.DistilledgeError.__subclasses__()}
    for row in (n for n in ast.walk(tree) if isinstance(n, ast.Tuple | ast.Call)):
        elements = row.elts if isinstance(row, ast.Tuple) else row.args
        texts = [e.value for e in elements if isinstance(e, ast.Constant) and isinstance(e.value, str)]
        codes = [t for t in texts if CODE.fullmatch(t)]
        if len(codes) == 1 and texts[0] not in codes:
            yield Raised(codes[0], kinds[int(codes[0][1], 16)], texts[0], path, row.lineno)


def message(node: ast.expr) -> str:
    """A message as written, ``{name}`` for what it fills in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(message(part) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return "{" + (re.findall(r"[A-Za-z_]\w*", ast.unparse(node.value)) or ["value"])[-1] + "}"
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return message(node.left) + message(node.right)
    return "{" + (re.findall(r"[A-Za-z_]\w*", ast.unparse(node)) or ["text"])[-1] + "}"


def literal_codes(root: Path = ROOT) -> set[str]:
    """Every code that stands anywhere in the source as a text of its own."""
    found: set[str] = set()
    for path in (p for layer in LAYERS for p in (root / layer).rglob("*.py")):
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        found |= {
            n.value
            for n in nodes
            if isinstance(n, ast.Constant) and isinstance(n.value, str) and CODE.fullmatch(n.value)
        }
    return found


def error_page(root: Path = ROOT) -> str:
    """The page of all errors, a table for each exit code."""
    page = ERRORS_HEAD
    found = raised(root)
    for kind in dict.fromkeys(r.kind for r in found):
        exit_code = getattr(errors, kind).exit_code
        page += f"\n## Exit {exit_code}: {kind}\n\n| code | what | made in |\n|---|---|---|\n"
        texts: dict[tuple[str, str], list[str]] = {}
        for r in found:
            if r.kind == kind:
                texts.setdefault((r.code, r.path), []).append(_cell(r.what))
        page += "".join(
            f"| {code} | {'<br>'.join(dict.fromkeys(whats))} | `{path}` |\n" for (code, path), whats in texts.items()
        )
    return page


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


PAGES = {"recipes.md": recipes, "errors.md": error_page}

if __name__ == "__main__":
    for name, write in PAGES.items():
        (ROOT / "docs" / name).write_text(write(), encoding="utf-8")
