"""What commands do with a recipe: find and check it, run it up to a stage, show what came of it."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any

import typer

from distilledge.models.errors import DistilledgeError


def shipped() -> list[Path]:
    from distilledge.pipeline import recipes as folder

    return sorted(Path(folder.__path__[0]).glob("*.yaml"))


def load_for(recipe: Path | str, overrides: list[str], smoke: bool) -> Any:
    """A recipe by its path or the name of one that comes with distilledge."""
    from distilledge.pipeline.recipe_check import check_recipe
    from distilledge.pipeline.recipe_file import load_recipe

    path = Path(recipe)
    if not path.exists():
        path = next((p for p in shipped() if p.stem == str(recipe)), path)
    loaded = load_recipe(path, overrides=overrides, smoke=smoke)
    check_recipe(loaded)
    return loaded


def run_recipe(
    recipe: str, overrides: list[str], work: Path, smoke: bool, until: str, as_json: bool, *, quiet: bool = False
) -> Path:
    """The run folder. ``quiet``: show nothing but errors."""
    from distilledge.pipeline.progress import Progress
    from distilledge.pipeline.recipe_check import check_models
    from distilledge.pipeline.run import is_trained
    from distilledge.pipeline.run import run as run_chain

    loaded = load_for(recipe, overrides, smoke)
    if not is_trained(loaded, work):  # building the models takes seconds
        check_models(loaded)
    command = shlex.join(
        ["distilledge", "run", recipe, *(a for o in overrides for a in ("--set", o)), *(["--smoke"] if smoke else [])]
    )
    if until == "control" and not loaded.distill.control:
        until = "student"
    failure: DistilledgeError | None = None
    with Progress() as progress:
        try:
            _, directory = run_chain(loaded, work.absolute(), until=until, command=command, report=progress.update)
        except DistilledgeError as error:
            directory, failure = work.absolute() / "runs" / loaded.name, error
    if failure or not quiet:
        _show(directory, until, as_json, failure)
    return directory


def _show(directory: Path, until: str, as_json: bool, failure: DistilledgeError | None) -> None:
    report = directory / "report.json"
    fresh = until == "report" and report.exists() and (failure is None or failure.code in ("E5002", "E5020", "EA001"))
    if as_json:
        body = json.loads(report.read_text(encoding="utf-8")) if fresh else {}
        error = {"code": failure.code, "what": failure.what, "hint": failure.hint} if failure else None
        typer.echo(json.dumps({"run": str(directory), "error": error, "report": body}))
    elif fresh:
        from distilledge.pipeline.report.table import terminal

        typer.echo(terminal(json.loads(report.read_text(encoding="utf-8"))))
        typer.echo(f"report: {os.path.relpath(directory / 'report.html')}")
    elif failure is None:
        typer.echo(f"done: {os.path.relpath(directory / 'run.json')}")
    if failure:
        raise failure
