"""Commands that list what there is: models, and what of the environment would stop a run."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
PIPED_WIDTH = 200
"""Columns of a table that no terminal shows."""

DEMOS = {"image": ("demo", "PICTURES"), "text": ("demo-text", "TEXTS.csv")}
"""Task -> its recipe, and what the next command is given."""


def known_task(task: str) -> None:
    if task not in DEMOS:
        raise typer.BadParameter(f"choose from {', '.join(DEMOS)}", param_hint="--task")


def models(task: Annotated[str, typer.Option(help=f"{' or '.join(DEMOS)}.")] = "image", as_json: Json = False) -> None:
    """List teachers and students: parameters, MACs, licence of the weights, int8-friendliness."""
    known_task(task)
    if task == "text":
        _text_models(as_json)
        return
    from distilledge.models.vision import catalogue

    cards = catalogue()
    if as_json:
        typer.echo(json.dumps([card.model_dump() for card in cards]))
        return
    table(
        ("model", "role", "parameters", "MACs", "px", "weights' licence", "int8"),
        [
            (c.name, c.role, f"{c.parameters / 1e6:.2f} M", f"{c.macs / 1e9:.2f} G", str(c.size), c.license, c.int8)
            for c in cards
        ],
    )


def _text_models(as_json: bool) -> None:
    from distilledge.models.text_catalogue import TOKENS, catalogue

    cards = catalogue()
    if as_json:
        typer.echo(json.dumps([card.model_dump() for card in cards]))
        return
    table(
        ("model", "role", "layers", "width", "parameters", f"MACs ({TOKENS} tokens)", "weights' licence"),
        [
            (
                c.name,
                c.role,
                str(c.layers),
                str(c.width),
                f"{c.parameters / 1e6:.1f} M",
                f"{c.macs / 1e9:.2f} G",
                c.license,
            )
            for c in cards
        ],
    )


def doctor(
    deep: Annotated[bool, typer.Option(help="Also run a tiny model in each runtime.")] = False, as_json: Json = False
) -> None:
    """Check packages, runtimes, CPU, GPU, disk and telemetry."""
    from distilledge.pipeline.doctor import examine

    report = examine(deep=deep)
    if as_json:
        typer.echo(report.model_dump_json())
    else:
        table(("", "what", "found", "hint"), [(r.state, r.name, r.detail, r.hint) for r in report.rows()])
    if any(r.state == "fail" for r in report.rows()):
        raise typer.Exit(4)


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table

    made = Table(*head, box=None, pad_edge=False)
    for row in rows:
        made.add_row(*row)
    width = None if sys.stdout.isatty() else PIPED_WIDTH
    Console(width=width).print(made)
