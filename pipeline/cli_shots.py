"""`distilledge shots`: how far k samples of each class go on the features of a recipe's teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from distilledge.pipeline.cli_lists import Json, table
from distilledge.pipeline.cli_run import load_for

NONE: list[str] = []


def shots(
    recipe: Annotated[Path, typer.Argument(help="Recipe (.yaml), or the name of one that comes with distilledge.")],
    k: Annotated[str, typer.Option("--k", help="Samples of each class, such as 1,5,10.")] = "1,5,10",
    draws: Annotated[int, typer.Option(min=1, help="How often they are drawn anew.")] = 20,
    heads: Annotated[
        list[str], typer.Option("--head", help="linear, knn, prototypes or tip-adapter; repeat for several. All.")
    ] = NONE,
    set_: Annotated[list[str], typer.Option("--set", metavar="PATH=VALUE", help="Override a field.")] = NONE,
    work: Annotated[Path, typer.Option("--work", help="Where the store lies.")] = Path("distilledge-work"),
    as_json: Json = False,
) -> None:
    """Judge heads made of k samples of each class, with 95 % intervals over repeated draws. Nothing is fine-tuned."""
    from distilledge.pipeline.shots import HEADS
    from distilledge.pipeline.shots import shots as measured

    ks = _counts(k)
    unknown = [name for name in heads if name not in HEADS]
    if unknown:
        raise typer.BadParameter(f"{unknown[0]!r}: choose from {', '.join(HEADS)}", param_hint="--head")
    found = measured(load_for(recipe, set_, False), work.absolute(), ks=ks, draws=draws, heads=heads)
    if as_json:
        typer.echo(found.model_dump_json())
        return
    names = list(dict.fromkeys(shot.head for shot in found.shots))
    cells = {(shot.head, shot.k): shot for shot in found.shots}
    columns = sorted({shot.k for shot in found.shots})
    typer.echo(f"{found.model}, {found.classes} classes: {found.metric} on {found.test} test samples, per cent")
    table(
        ("head", *(f"k = {count}" for count in columns)),
        [(name, *(shown(cells.get((name, count))) for count in columns)) for name in names],
    )
    if draws > 1:
        typer.echo(f"mean of {draws} draws of the training samples, and its 95 % t-interval; the test split stays")


def shown(shot: object) -> str:
    """Mean and interval in per cent."""
    from distilledge.pipeline.shots import Shot

    if not isinstance(shot, Shot):
        return ""
    mean = f"{100 * shot.value:.1f}"
    return mean if shot.low is None or shot.high is None else f"{mean} [{100 * shot.low:.1f}, {100 * shot.high:.1f}]"


def _counts(text: str) -> list[int]:
    """Of ``1,5,10``."""
    try:
        found = sorted({int(part) for part in text.replace(" ", ",").split(",") if part})
    except ValueError:
        found = []
    if not found or found[0] < 1:
        raise typer.BadParameter(f"{text!r} is no list of counts; write it like 1,5,10", param_hint="--k")
    return found
