"""Commands that help to choose: a learning rate, a strategy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from distilledge.pipeline.cli_lists import Json
from distilledge.pipeline.cli_run import load_for, shipped

NO_OVERRIDES: list[str] = []


def lr_find(
    recipe: Annotated[Path, typer.Argument(help="Recipe (.yaml), or the name of one that comes with distilledge.")],
    role: Annotated[str, typer.Option(help="teacher or student.")] = "teacher",
    lowest: Annotated[float, typer.Option(help="First learning rate.")] = 1e-6,
    highest: Annotated[float, typer.Option(help="Last learning rate.")] = 1.0,
    steps: Annotated[int, typer.Option(min=20, max=10000, help="Optimizer steps from one to the other.")] = 200,
    set_: Annotated[
        list[str], typer.Option("--set", metavar="PATH=VALUE", help="Override a field of the recipe.")
    ] = NO_OVERRIDES,
    work: Annotated[Path, typer.Option("--work", help="Where the store lies.")] = Path("distilledge-work"),
    smoke: Annotated[bool, typer.Option("--smoke", help="The recipe shrunk by its own `smoke` block.")] = False,
    as_json: Json = False,
) -> None:
    """Try rising learning rates on a copy of a training, and suggest one. Steps before it are run or found first."""
    if role not in ("teacher", "student"):
        raise typer.BadParameter("choose from teacher, student", param_hint="--role")
    from distilledge.pipeline.progress import Progress
    from distilledge.pipeline.training.lr_find import find_lr, plotted

    loaded = load_for(recipe, set_, smoke)
    with Progress() as progress:
        found = find_lr(
            loaded,
            work.absolute(),
            "teacher" if role == "teacher" else "student",
            progress.update,
            lowest=lowest,
            highest=highest,
            count=steps,
        )
    if as_json:
        typer.echo(json.dumps(found.model_dump()))
        return
    typer.echo(plotted(found))
    typer.echo(
        f"{role}: the loss falls fastest at {found.steepest:.2g}, is least at {10 * found.tenth:.2g}; "
        f"suggested (v): {found.suggestion:.2g}; the recipe has (|) {found.configured:.2g}"
    )
    if not found.diverged:
        typer.echo("the loss did not diverge before the last step: --highest may be too low")
    typer.echo(f"next: distilledge run {recipe} --set {role}.training.lr={found.suggestion:.1e}")


def show_suggestion(
    place: Path, overrides: list[str], smoke: bool, as_json: bool, *, target: str = "", keep: bool = False
) -> None:
    """Of a recipe, or of a data set that ``init`` could draft one for."""
    from distilledge.pipeline.suggest import propose
    from distilledge.pipeline.suggest_look import facts_of, recipe_of

    is_recipe = place.suffix in (".yaml", ".yml") or any(p.stem == str(place) for p in shipped())
    recipe = load_for(place, overrides, smoke) if is_recipe else recipe_of(place, overrides)
    facts = facts_of(recipe, place, target=target, keep=keep)
    made = propose(facts)
    if as_json:
        typer.echo(json.dumps({"facts": facts._asdict(), "proposal": made._asdict()}))
        return
    typer.echo(
        f"{facts.samples} labelled samples to learn from, {facts.classes} classes, {facts.per_class} of the "
        f"smallest; {facts.unlabelled} without labels"
    )
    if facts.distance is not None:
        typer.echo(f"distance to the source of the weights: {facts.distance:.2f} nats")
    if facts.separation is not None:
        typer.echo(f"neighbours of the same class in frozen features: {100 * facts.separation:.0f} %, classes alike")
    for note in facts.unknown:
        typer.echo(f"not known: {note}")
    typer.echo(f"\nproposed: {made.strategy}: {made.reason}")
    if made.lines:
        typer.echo("\n" + made.lines)
    for note in made.also:
        typer.echo(f"also: {note}")
