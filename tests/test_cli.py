"""The command line: every verb answers, every mistake has its exit code, the recipes that ship are sound."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from launched import distilledge
from typer.testing import CliRunner

from distilledge.models.errors import (
    DeviceError,
    DistilledgeError,
    GateFailedError,
    InconclusiveError,
    IntegrityError,
    LockedError,
    MissingPackageError,
    RejectedError,
    ResourceError,
    UsageError,
)
from distilledge.pipeline import cli
from distilledge.pipeline.recipe_file import load_recipe

RECIPES = sorted((Path(cli.__file__).parent / "recipes").glob("*.yaml"))


def test_help_lists_every_verb() -> None:
    result = CliRunner().invoke(cli.app, ["--help"])
    assert result.exit_code == 0
    for verb in ("demo", "init", "plan", "run", "models", "doctor", "recipes", *cli.STAGE_VERBS):
        assert verb in result.output


def test_exit_codes_are_those_documented() -> None:
    tree = {
        UsageError: 2, RejectedError: 3, MissingPackageError: 4, GateFailedError: 5, DeviceError: 6, IntegrityError: 7,
        LockedError: 8, ResourceError: 9, InconclusiveError: 10,
    }  # fmt: skip
    assert {kind: kind.exit_code for kind in DistilledgeError.__subclasses__()} == tree


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("run", "nowhere.yaml"), 2, "nowhere.yaml"),
        (("plan", "demo", "--set", "teacher.training.epoch=3"), 2, "epochs"),
        (("plan", "demo", "--set", "student.model=mobilenetv1_02"), 2, "mobilenetv1_025"),
        (("plan", "demo", "--set", "data.path=nothing_here"), 3, "nothing_here"),
        (("plan", "demo", "--set", "student.weights=missing.safetensors"), 3, "missing.safetensors"),
    ],
)
def test_a_mistake_is_one_message_with_a_hint(
    arguments: tuple[str, ...], code: int, words: str, tmp_path: Path
) -> None:
    done = distilledge(*arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert done.stderr.startswith("error[E")
    assert "hint:" in done.stderr
    assert "Traceback" not in done.stderr


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = distilledge("--debug", "run", "nowhere.yaml", cwd=tmp_path)
    assert "Traceback" in done.stderr


def test_the_recipes_that_ship_are_found() -> None:
    assert len(RECIPES) >= 8
    assert {p.stem for p in RECIPES} >= {"demo", "x-sdd-lite0", "x-sdd-tiny", "magnetic-tile-lite0", "cifar10-tiny"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
@pytest.mark.parametrize("smoke", [False, True])
def test_a_recipe_loads_and_says_how_to_run_it(path: Path, smoke: bool) -> None:
    head = path.read_text().splitlines()[:5]
    assert head[0].startswith("# yaml-language-server: $schema=")
    assert any(line.startswith("# Run:") for line in head)
    assert any(line.startswith("# Cost:") for line in head)
    assert any(line.startswith("# Expect:") for line in head)
    recipe = load_recipe(path, smoke=smoke)
    assert recipe.name == path.stem
    assert recipe.student.training.epochs == (1 if smoke else recipe.student.training.epochs)


def test_plan_of_the_demo_names_every_stage(tmp_path: Path) -> None:
    done = distilledge("plan", "demo", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for stage in ("data", "teacher", "student", "control", "export-student-tflite", "verify", "measure", "gate"):
        assert stage in done.stdout
    assert "never built" in done.stdout
    assert os.listdir(tmp_path) == []
