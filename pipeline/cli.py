"""The command line: each command parses, calls one function and prints. Prints and exits, with ``cli_lists.py``.

Heavy imports stand inside commands; importing this module imports no torch.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from distilledge.models.errors import DistilledgeError
from distilledge.pipeline.cli_benchmark import benchmark, compare
from distilledge.pipeline.cli_choose import lr_find, show_suggestion
from distilledge.pipeline.cli_devices import app as devices
from distilledge.pipeline.cli_lists import DEMOS, Json, doctor, known_task, models, table
from distilledge.pipeline.cli_run import load_for, run_recipe, shipped
from distilledge.pipeline.cli_search import fit, search
from distilledge.pipeline.cli_shots import shots

app = typer.Typer(
    name="distilledge",
    help="Distil a large model into a small one, export it, and prove it on the device against its teacher.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

WORK = Path("distilledge-work")
RecipePath = Annotated[Path, typer.Argument(help="Recipe (.yaml), or the name of one that comes with distilledge.")]
Overrides = Annotated[list[str], typer.Option("--set", metavar="PATH=VALUE", help="Override a field of the recipe.")]
NO_OVERRIDES: list[str] = []
Work = Annotated[Path, typer.Option("--work", help="Where the store and the runs lie.")]
Smoke = Annotated[bool, typer.Option("--smoke", help="The recipe shrunk by its own `smoke` block.")]


@app.callback(invoke_without_command=True)
def main_options(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Tracebacks for errors, and a full log.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Warnings and errors only.")] = False,
) -> None:
    if show_version:
        typer.echo(version("distilledge"))
        raise typer.Exit
    context.obj = debug
    level = logging.DEBUG if debug else logging.WARNING if quiet else logging.INFO
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("distilledge").setLevel(level)
    # a note of torch's to its own developers, about a package that transformers imports
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)


@app.command()
def demo(
    task: Annotated[str, typer.Option(help=f"{' or '.join(DEMOS)}.")] = "image",
    work: Work = WORK,
    smoke: Smoke = False,
    as_json: Json = False,
    set_: Overrides = NO_OVERRIDES,
) -> None:
    """Run the whole chain on a generated set: surface inspection, or maintenance tickets (both synthetic)."""
    known_task(task)
    recipe, data = DEMOS[task]
    run_recipe(recipe, set_, work, smoke, "report", as_json)
    if not as_json:
        typer.echo(f"next: distilledge init PATH/TO/YOUR/{data} > recipe.yaml && distilledge run recipe.yaml")


@app.command()
def init(
    data: Annotated[Path, typer.Argument(help="Folder or file of pictures or texts, or a datasets directory.")],
    explain: Annotated[bool, typer.Option(help="Every field with its meaning.")] = False,
) -> None:
    """Look at a data folder and write a commented recipe to stdout."""
    from distilledge.pipeline.init import draft

    typer.echo(draft(data, explain=explain), nl=False)


@app.command()
def plan(
    recipe: Annotated[Path, typer.Argument(help="Recipe (.yaml) or the name of one; with --suggest also a data set.")],
    set_: Overrides = NO_OVERRIDES,
    work: Work = WORK,
    smoke: Smoke = False,
    as_json: Json = False,
    suggest: Annotated[bool, typer.Option("--suggest", help="Look at the data and propose a strategy.")] = False,
    target: Annotated[str, typer.Option(help="With --suggest: pictures of where the model will run.")] = "",
    keep_source: Annotated[
        bool, typer.Option("--keep-source", help="With --suggest: the old answers must survive.")
    ] = False,
) -> None:
    """Say what `run` would do: each stage, run or cached, why, and how long it may take."""
    if suggest:
        show_suggestion(recipe, set_, smoke, as_json, target=target, keep=keep_source)
        return
    from distilledge.pipeline.plan import plan as make_plan

    rows = make_plan(load_for(recipe, set_, smoke), work)
    if as_json:
        typer.echo(json.dumps([row._asdict() for row in rows]))
        return
    table(
        ("stage", "", "reason", "estimate"),
        [(r.stage, "cached" if r.cached else "run", r.reason, "" if r.cached else _duration(r.seconds)) for r in rows],
    )


@app.command()
def run(
    recipe: RecipePath,
    set_: Overrides = NO_OVERRIDES,
    work: Work = WORK,
    smoke: Smoke = False,
    no_control: Annotated[
        bool, typer.Option("--no-control", help="Leave out the student without the teacher.")
    ] = False,
    allow_leakage: Annotated[
        bool, typer.Option("--allow-leakage", help="Go on although test pictures are in train.")
    ] = False,
    on_nan: Annotated[str, typer.Option("--on-nan", help="stop or skip, for teacher and student.")] = "",
    as_json: Json = False,
) -> None:
    """Run the whole chain: data, teacher, student, export, verify, measure, score, gate, report."""
    run_recipe(str(recipe), [*set_, *_flags(no_control, allow_leakage, on_nan)], work, smoke, "report", as_json)


def _flags(no_control: bool, allow_leakage: bool, on_nan: str) -> list[str]:
    found = ["distill.control=false"] if no_control else []
    if allow_leakage:
        found.append("data.allow_leakage=true")
    if on_nan:
        found += [f"teacher.training.on_nan={on_nan}", f"student.training.on_nan={on_nan}"]
    return found


STAGE_VERBS: dict[str, tuple[str, str]] = {
    "data": ("data", "Read, audit and split the data."),
    "train": ("teacher", "Fine-tune the teacher."),
    "distill": ("control", "Distil the student, and train its control."),
    "export": ("export", "Export and quantize teacher and student."),
    "verify": ("verify", "Compare every exported file with its model, rung by rung."),
    "score": ("gate", "Score every file on the test split and judge the budgets."),
    "report": ("report", "Write the report (running what is missing)."),
}
"""Verb -> the stage it runs up to, and its help."""


def _stage_command(until: str) -> Callable[..., None]:
    def command(
        recipe: RecipePath,
        set_: Overrides = NO_OVERRIDES,
        work: Work = WORK,
        smoke: Smoke = False,
        as_json: Json = False,
    ) -> None:
        run_recipe(str(recipe), set_, work, smoke, until, as_json)

    return command


for _verb, (_until, _help) in STAGE_VERBS.items():
    app.command(_verb, help=f"{_help} Earlier stages are run or found first.")(_stage_command(_until))


app.command()(benchmark)
app.command()(compare)
app.command()(shots)
app.command(name="lr-find")(lr_find)
app.command()(fit)
app.command()(search)
app.command()(models)
app.command()(doctor)
app.add_typer(devices, name="devices")


@app.command()
def recipes() -> None:
    """List the recipes that come with distilledge."""
    for path in shipped():
        typer.echo(f"{path.stem:28s}{path.read_text(encoding='utf-8').splitlines()[1].lstrip('# ')}")


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


@contextmanager
def _errors() -> Iterator[None]:
    """Errors a user can fix become one message and their exit code; anything else is our bug, with its traceback."""
    debug = "--debug" in sys.argv
    try:
        yield
    except DistilledgeError as error:
        if debug:
            raise
        typer.echo(str(error), err=True)
        sys.exit(error.exit_code)
    except (ImportError, RuntimeError) as error:
        from distilledge.pipeline.doctor import explain

        mismatch = explain(error)
        if mismatch is None or debug:
            raise
        typer.echo(str(mismatch), err=True)
        sys.exit(mismatch.exit_code)


def main() -> None:
    """Entry point of the ``distilledge`` command."""
    from distilledge.pipeline.interrupt import Interrupted
    from distilledge.targets.telemetry import switch_off

    switch_off()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # what LiteRT's converter says of itself is not for the user

    try:
        with _errors():
            app()
    except Interrupted as interrupted:
        typer.echo(f"interrupted: state is kept, the same command goes on from there ({interrupted})", err=True)
        sys.exit(interrupted.exit_code)
    except KeyboardInterrupt:
        typer.echo("interrupted: state is kept, the same command goes on from there", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
