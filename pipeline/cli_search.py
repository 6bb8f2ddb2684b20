"""``fit``, what would fit a device before anything is trained, and ``search``, the best student of those that do."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distilledge.models.errors import GateFailedError, UsageError
from distilledge.pipeline.cli_lists import Json, table
from distilledge.pipeline.cli_run import load_for

if TYPE_CHECKING:
    from distilledge.pipeline.search.fits import FitResult

WORK = Path("distilledge-work")
NONE: list[str] = []
CLASSES = 10
"""Where there is neither a recipe nor --classes."""
UNDECIDED = 10


def fit(  # noqa: PLR0913, PLR0917 (the options of a command)
    recipe: Annotated[str, typer.Argument(help="Recipe (.yaml), or the name of one that comes along.")] = "",
    students: Annotated[list[str], typer.Option(help="Models: a,b,c, or one each time.")] = NONE,
    sizes: Annotated[list[str], typer.Option(help="Pixels of each side: 96,128, or one each time.")] = NONE,
    device: Annotated[str, typer.Option(help="A name of devices.yaml; default: measure.device.")] = "",
    classes: Annotated[int | None, typer.Option(min=2, help="Default: those of the recipe's data.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Time anew what was timed before.")] = False,
    set_: Annotated[list[str], typer.Option("--set", metavar="PATH=VALUE", help="Override a field.")] = NONE,
    work: Annotated[Path, typer.Option("--work", help="Where the store and the runs lie.")] = WORK,
    smoke: Annotated[bool, typer.Option("--smoke", help="The recipe shrunk by its own `smoke` block.")] = False,
    as_json: Json = False,
) -> None:
    """Say which students keep the budgets on the device, before anything is trained: random weights, no data."""
    from distilledge.pipeline.search.candidates import check_candidates, class_count
    from distilledge.pipeline.search.fit import fit as find
    from distilledge.pipeline.search.fit import standing

    asked = [*set_, *_search_of(students, sizes), *([f"measure.device={device}"] if device else [])]
    loaded = load_for(recipe, asked, smoke) if recipe else _bare(asked)
    check_candidates(loaded)
    counted = classes or (class_count(loaded) if recipe else CLASSES)
    with standing(loaded, work.absolute(), counted, again=again) as ground:
        result = find(ground, _say)
    if as_json:
        typer.echo(result.model_dump_json())
    else:
        _show_fit(result)
    _end(result, climbs=loaded.compress.climb)


def _search_of(students: list[str], sizes: list[str]) -> list[str]:
    """As overrides."""
    found = []
    for field, given in (("students", students), ("sizes", sizes)):
        names = [name for word in given for name in word.replace(",", " ").split()]
        if field == "sizes" and not all(name.isdigit() for name in names):
            raise UsageError("E2692", f"not sizes: {' '.join(names)}", "write --sizes 96,128")
        found += [f"search.{field}=[{', '.join(names)}]"] if names else []
    return found


def _bare(overrides: list[str]) -> Any:
    """A recipe of defaults alone: no data, no budgets but those given by --set."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "fit.yaml"
        path.write_text("schema: 1\nname: fit\ndata: {path: synthetic}\n", encoding="utf-8")
        return load_for(path, overrides, smoke=False)


def _say(words: str) -> None:
    print(f"  {words}", file=sys.stderr, flush=True)


def _show_fit(result: FitResult) -> None:
    typer.echo(f"device {result.device}, {result.classes} classes; random weights: nothing is said of accuracy")
    head = ("student", "px", "runtime", "precision", "p50, ms (95 %)", "MB", "peak RSS, MB", "", "why", "flags")
    lines: list[tuple[str, ...]] = []
    for row in result.rows:
        p50 = "" if row.p50 is None else _interval(row.p50)
        size, rss = ("" if v is None else f"{v:.2f}" for v in (row.size_mb, row.peak_rss_mb))
        file = (row.model, str(row.size), row.runtime, row.precision, p50, size, rss)
        lines.append((*file, row.word, row.why, " ".join(row.flags)))
    table(head, lines)


def _interval(found: Any) -> str:
    return f"{found.value:.3g}" + ("" if found.low is None else f" ({found.low:.3g} to {found.high:.3g})")


def _end(result: FitResult, *, climbs: bool) -> None:
    """Exit 5 where no student fits, 10 where that is not decided of any."""
    from distilledge.pipeline.search.fits import by_candidate, of_candidate

    found = {one.name: of_candidate(rows, climbs=climbs) for one, rows in by_candidate(result.rows).items()}
    if "fits" in found.values():
        return
    if "inconclusive" in found.values():
        raise typer.Exit(UNDECIDED)
    raise GateFailedError(
        "E5040", f"no student fits: {', '.join(found)}", "name smaller ones, smaller sizes, or widen `budgets`"
    )


def search(
    recipe: Annotated[str, typer.Argument(help="Recipe (.yaml), or the name of one that comes along.")],
    set_: Annotated[list[str], typer.Option("--set", metavar="PATH=VALUE", help="Override a field.")] = NONE,
    work: Annotated[Path, typer.Option("--work", help="Where the store and the runs lie.")] = WORK,
    smoke: Annotated[bool, typer.Option("--smoke", help="The recipe shrunk by its own `smoke` block.")] = False,
    as_json: Json = False,
) -> None:
    """Find the best student within the budgets: fit first, then short trainings of which the better halves go on."""
    from distilledge.pipeline.progress import Progress
    from distilledge.pipeline.search.report import terminal
    from distilledge.pipeline.search.search import search as find

    loaded = load_for(recipe, set_, smoke)
    overrides = [word for override in set_ for word in ("--set", override)]
    command = shlex.join(["distilledge", "search", recipe, *overrides, *(["--smoke"] if smoke else [])])
    with Progress() as progress:
        result, directory = find(loaded, work.absolute(), command=command, report=progress.update, told=_say)
    if as_json:
        typer.echo(json.dumps({"search": str(directory), "result": result.model_dump(mode="json", by_alias=True)}))
        return
    typer.echo(terminal(result))
    where = os.path.relpath(directory)
    typer.echo(f"report: {where}/search.html\nnext: distilledge run {where}/winner.yaml")
