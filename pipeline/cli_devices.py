"""Commands of the inventory of devices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distilledge.pipeline.cli_lists import Json, table

if TYPE_CHECKING:
    from distilledge.pipeline.fleet import Examined

app = typer.Typer(help="Your own boards: reach them, look at them, measure on them.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="What recipes call it: `measure.device`.")]
NO_OPTIONS: list[str] = []
NO_NAMES: list[str] = []


@app.command()
def add(
    name: Name,
    host: Annotated[str | None, typer.Option(help="As ssh takes it: USER@HOST, or a name of ~/.ssh/config.")] = None,
    port: Annotated[int | None, typer.Option()] = None,
    option: Annotated[list[str], typer.Option(help="Of ssh_config, such as IdentityFile=PATH.")] = NO_OPTIONS,
    adb: Annotated[
        str | None, typer.Option(help="A phone: its serial number of `adb devices`, or HOST:PORT; '': the only one.")
    ] = None,
    browser: Annotated[
        str | None, typer.Option(help="Command of a browser here; '': the first on PATH; manual: anywhere, by hand.")
    ] = None,
    listen: Annotated[str | None, typer.Option(help="Of a browser's page: address here, 0.0.0.0 for all.")] = None,
    python: Annotated[str | None, typer.Option(help="The interpreter there that has the runtime: python3.")] = None,
    folder: Annotated[str | None, typer.Option(help="Where files go there.")] = None,
) -> None:
    """Write a device into devices.yaml."""
    from distilledge.models.errors import UsageError
    from distilledge.pipeline import inventory

    ways = [kind for kind, way in {"ssh": host, "adb": adb, "browser": browser}.items() if way is not None]
    if len(ways) != 1:
        hint = "give one of: --host USER@HOST, --adb SERIAL, --browser COMMAND"
        raise UsageError("E2081", "a device is reached in one way", hint)
    fields = {"host": host, "serial": adb, "port": port, "options": tuple(option) or None}
    fields |= {"python": python, "folder": folder, "listen": listen}
    manual = browser == "manual"
    fields |= {"command": None if manual else browser or None, "open": "manual" if manual else None}
    inventory.add(name, inventory.made(ways[0], {key: value for key, value in fields.items() if value is not None}))
    typer.echo(f"written: {inventory.place()}\nnext: distilledge devices doctor {name}")


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List the devices of devices.yaml."""
    from distilledge.pipeline import inventory

    found = inventory.load().devices
    if as_json:
        typer.echo(json.dumps({name: entry.model_dump() for name, entry in found.items()}))
        return
    rows = [(n, e.kind, e.address, e.python, e.folder) for n, e in found.items()]
    table(("device", "kind", "address", "python", "folder"), [("local", "local", "this machine", "", ""), *rows])


@app.command("fetch-web")
def fetch_web(
    archives: Annotated[Path | None, typer.Option(help="A folder of what `npm pack` made elsewhere.")] = None,
) -> None:
    """Fetch the runtimes that browsers need, by npm: fixed versions, compared with recorded hashes."""
    from distilledge.targets.web_files import fetch, versions

    folder = fetch(archives)
    named = ", ".join(f"{name} {version}" for name, version in versions().items())
    typer.echo(f"{named}\nwritten: {folder}")


@app.command()
def doctor(names: Annotated[list[str], typer.Argument(help="Default: all.")] = NO_NAMES, as_json: Json = False) -> None:
    """Reach devices, all at once, and say what they are and what is wrong with them."""
    from distilledge.pipeline.fleet import examine

    reports = examine(names)
    if as_json:
        typer.echo(json.dumps([report._asdict() for report in reports]))
    else:
        table(
            ("device", "", "board", "CPU", "cores", "memory", "python", "runtimes"),
            [(r.name, r.state, *shown(r)) for r in reports],
        )
        for report in reports:
            if report.error:
                typer.echo(f"{report.name}: {report.error}\nhint: {report.hint}", err=True)
    worst = next((r for r in reports if r.exit_code), None)
    if worst:
        raise typer.Exit(worst.exit_code)


def shown(report: Examined) -> tuple[str, ...]:
    card = report.card
    if not card:
        return ("",) * 6
    return (
        f"{card['board'] or card['machine']}{' (emulated)' if card['emulated'] else ''}",
        str(card["cpu_model"]),
        str(card["cpu_count"]),
        "?" if card["memory_bytes"] is None else f"{card['memory_bytes'] / 1e9:.1f} GB",
        card["python"],
        ", ".join(report.runtimes.values()),
    )


@app.command()
def time(
    name: Name,
    file: Annotated[Path, typer.Argument(help=".tflite, .onnx or .xml.")],
    threads: Annotated[int, typer.Option(min=1)] = 1,
    runs: Annotated[int, typer.Option(min=1, help="Timed inferences.")] = 1024,
    warmup: Annotated[int, typer.Option(min=0, help="Untimed ones before.")] = 50,
    limit: Annotated[float, typer.Option(min=1, help="Seconds after which it is given up.")] = 600,
    as_json: Json = False,
) -> None:
    """Time one file on a phone without Python, by the runtime's own program (`native:` in devices.yaml)."""
    from distilledge.pipeline.native import time_natively

    made = time_natively(name, file, threads=threads, runs=runs, warmup=warmup, limit_s=limit)
    if as_json:
        typer.echo(made.model_dump_json())
        return
    figures = made.figures
    known = {"p50": figures.summary.median_ns, "mean": figures.summary.mean_ns, "load": figures.load_ns}
    known |= {"min": figures.summary.min_ns, "max": figures.summary.max_ns, "first": figures.first_inference_ns}
    times = ["?" if ns is None else f"{ns / 1e6:.3f}" for ns in known.values()]
    headers = ("file", "program", *(f"{key}, ms" for key in known), "runs", "samples", "flags")
    samples = "all kept" if figures.latency_ns else "summary only"
    table(headers, [(made.name, made.program, *times, str(figures.summary.count), samples, " ".join(made.flags))])


@app.command()
def clean(name: Name) -> None:
    """Remove all that was ever sent to a device."""
    from distilledge.pipeline import inventory

    with inventory.opened(name) as device:
        freed = device.clean()
    typer.echo(f"{name}: {freed / 1e6:.1f} MB freed")


@app.command()
def remove(name: Name) -> None:
    """Take a device out of devices.yaml."""
    from distilledge.pipeline import inventory

    inventory.remove(name)
    typer.echo(f"written: {inventory.place()}")
