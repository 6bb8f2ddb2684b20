"""The documentation is checked like code: generated pages are current, links lead somewhere, commands exist."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import re
import shlex
from collections import defaultdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer.main

from distilledge.models import errors
from distilledge.pipeline.cli import app

LINK = re.compile(r"\[[^\]]*\]\((?!https?:|#)([^)#]+)")
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def generate(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", root / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages(root: Path) -> dict[str, str]:
    paths = [*root.glob("*.md"), *(root / "docs").glob("*.md")]
    assert len(paths) >= 8
    return {p.relative_to(root).as_posix(): p.read_text(encoding="utf-8") for p in paths}


@pytest.mark.parametrize("name", ["recipes.md", "errors.md"])
def test_generated_page_is_current(root: Path, generate: ModuleType, name: str) -> None:
    assert (root / "docs" / name).read_text(encoding="utf-8") == generate.PAGES[name](), "run `make docs`"


def test_results_are_those_recorded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/results.md holds the tables of benchmarks/results/images.json, unedited."""
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    images = importlib.import_module("images")
    page = (root / "docs" / "results.md").read_text(encoding="utf-8")
    assert page == images.filled(page, images.recorded(root / "benchmarks" / "results"))
    assert page.count("| student") + page.count("(student)") >= 12


def test_edge_models_are_those_recorded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/benchmarking.md holds the table of benchmarks/results/edge_models.json."""
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    page = (root / "docs" / "benchmarking.md").read_text(encoding="utf-8")
    rows = json.loads((root / "benchmarks" / "results" / "edge_models.json").read_text(encoding="utf-8"))["rows"]
    assert page == importlib.import_module("edge_models").filled(page, rows)
    assert page.count(".tflite | ") >= 12


def test_int8_results_are_those_recorded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/int8.md holds the table of benchmarks/results/int8.json, whose bars are those of its rows."""
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    int8 = importlib.import_module("int8")
    page, results = (root / "docs" / "int8.md").read_text(encoding="utf-8"), int8.recorded(root / "benchmarks/results")
    assert page == int8.filled(page, results)
    assert results["bars"] == int8.bars(results["rows"])
    assert page.count("ladder (") >= 3


def test_results_of_rungs_and_speeds_are_those_recorded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    rungs, speed, images = (importlib.import_module(name) for name in ("rungs_table", "int8_speed", "images"))
    page = (root / "docs" / "int8.md").read_text(encoding="utf-8")
    of_rungs, of_speed = (
        json.loads((root / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("rungs", "int8_speed")
    )
    assert page == rungs.filled(page, of_rungs)
    assert page == images.between(page, "speed", speed.markdown(of_speed["rows"]))
    for bars, results in ((rungs.bars, of_rungs), (speed.bars, of_speed)):
        assert results["bars"] == bars(results["rows"])


def test_results_beside_other_tools_are_those_recorded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    tools = importlib.import_module("tools")
    page = (root / "docs" / "int8.md").read_text(encoding="utf-8")
    results = json.loads((root / "benchmarks" / "results" / "tools.json").read_text(encoding="utf-8"))
    assert page == tools.filled(page, results)
    expected = {bar["name"]: bar for bar in tools.bars(results["rows"])}
    assert {bar["name"]: bar for bar in results["bars"]} == expected
    assert {row["tool"] for row in results["rows"]} >= {tools.PLAIN, tools.LADDER, "nncf.quantize"}


def test_every_error_code_is_listed(root: Path, generate: ModuleType) -> None:
    page = (root / "docs" / "errors.md").read_text(encoding="utf-8")
    codes = generate.literal_codes()
    assert len(codes) > 40
    assert sorted(code for code in codes if f"| {code} |" not in page) == []


def test_an_error_code_has_one_meaning(generate: ModuleType) -> None:
    """One class of errors, whose exit code is the first digit, and one folder that makes it."""
    kinds: dict[str, set[str]] = defaultdict(set)
    folders: dict[str, set[str]] = defaultdict(set)
    for made in generate.raised(generate.ROOT):  # as the page above does: read once
        kinds[made.code].add(made.kind)
        folders[made.code].add(made.path.rpartition("/")[0])
    assert {code: found for code, found in kinds.items() if len(found) > 1} == {}
    assert {code: found for code, found in folders.items() if len(found) > 1} == {}
    wrong = {c: k for c, (k,) in kinds.items() if getattr(errors, k).exit_code != int(c[1], 16)}
    assert wrong == {}


def test_every_field_of_a_recipe_is_listed(root: Path, generate: ModuleType) -> None:
    page = (root / "docs" / "recipes.md").read_text(encoding="utf-8")
    names = {note.path.rpartition(".")[2] for note in generate.fields()}
    assert len(names) > 80
    assert [name for name in names if f"| `{name}` |" not in page] == []


def test_links_lead_somewhere(root: Path, pages: dict[str, str]) -> None:
    links = [(name, link) for name, text in pages.items() for link in LINK.findall(text)]
    assert len(links) > 5
    assert [(name, link) for name, link in links if not (root / name).parent.joinpath(link).exists()] == []


def test_commands_and_options_exist(pages: dict[str, str]) -> None:
    """Every line of a ``sh`` block that starts with distilledge; what a command does is tested where it lives."""
    lines = [line for text in pages.values() for block in BLOCK.findall(text) for line in block.splitlines()]
    typed = [shlex.split(part, comments=True) for line in lines for part in re.split(r"&&|\|", line)]
    commands = [words for words in typed if words[:1] == ["distilledge"]]
    assert len(commands) > 8
    assert [problem for words in commands if (problem := unknown(words[1:]))] == []


@functools.cache
def command_tree() -> Any:
    return typer.main.get_command(app)


def unknown(words: list[str]) -> str:
    """What of a command line the program does not know; empty where it knows all of it."""
    group = command_tree()
    known = group.commands
    if not words or (words[0] not in known and not words[0].startswith("-")):
        return f"no such command: {words}"
    command = known.get(words[0], group)
    if words[1:] and words[1] in getattr(command, "commands", {}):  # of a group of commands
        command = command.commands[words[1]]
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    given = [word.partition("=")[0] for word in words if word.startswith("--")]
    strange = [name for name in given if name not in options | {"--help"}]
    return f"{words[0]} has no {strange}" if strange else ""


def test_unknown_commands_would_be_found() -> None:
    assert unknown(["frobnicate"])
    assert unknown(["run", "x.yaml", "--frobnicate"])
    assert unknown(["devices", "list", "--host", "h"])
    assert unknown(["run", "x.yaml", "--smoke", "--set", "a.b=1"]) == ""
