"""What every benchmark script does: arguments, conditions, bars, a printed table, and results/<name>.json."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

from distilledge.targets.ondevice.facts import counters, device_card

RESULTS = Path(__file__).parent / "results"
GATE_FAILED = 5
Row = dict[str, Any]


def arguments(description: str) -> argparse.ArgumentParser:
    """A parser with ``--quick`` and ``--out``; scripts add their own options."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="under 60 seconds where the subject allows; labelled so")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON file")
    return parser


def conditions(*, quick: bool, packages: Sequence[str] = (), extra: Mapping[str, Any] | None = None) -> Row:
    """What the figures were taken under: the machine, its load, versions, ``--quick``."""
    card = device_card()
    keep = (
        "cpu_model",
        "cpu_count",
        "memory_bytes",
        "kernel",
        "governor",
        "virtual",
        "emulated",
        "python",
        "cpu_flags",
    )
    return {
        "quick": quick,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **{key: card[key] for key in keep},
        "load": counters()["load"],
        "packages": {name: installed(name) for name in packages},
        **(extra or {}),
    }


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def bar(name: str, value: float, bound: float, *, at_most: bool = True) -> Row:
    """A bound that the value must hold: at most (or at least) ``bound``. NaN never holds."""
    return {"name": name, "value": value, "bound": bound, "holds": value <= bound if at_most else value >= bound}


def kept(path: Path, again: Sequence[str]) -> tuple[list[Row], list[Row], Row]:
    """Rows, bars and conditions (by recipe) of an earlier file, without the recipes that were run again."""
    if not path.exists():
        return [], [], {"recipes": {}, "controls": []}
    found: Row = json.loads(path.read_text(encoding="utf-8"))
    was = found["conditions"]
    old = {key: was[key] for key in ("created", "cpu_model", "cpu_flags", "load")}
    recipes = {row["recipe"]: was.get("recipes", {}).get(row["recipe"], old) for row in found["rows"]}
    return (
        [row for row in found["rows"] if row["recipe"] not in again],
        [b for b in found["bars"] if re.split("[ :]", b["name"])[0] not in again],
        {
            "recipes": {name: facts for name, facts in recipes.items() if name not in again},
            "controls": [c for c in was["controls"] if c["recipe"] not in again],
        },
    )


def beside(rows: Sequence[Row], path: Path, key: Sequence[str]) -> list[Row]:
    """The rows of an earlier file, in its order, those with the ``key`` of one of ``rows`` replaced by it."""
    again = {tuple(row[name] for name in key): row for row in rows}
    old: list[Row] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return [again.get(tuple(row[name] for name in key), row) for row in old]


def finish_recipes(
    name: str, facts: Row, rows: Sequence[Row], bars: Sequence[Row], order: Sequence[str], *, out: Path = RESULTS
) -> NoReturn:
    """``finish``, beside what the file holds of recipes that were not run now, each with the machine it was run on."""
    again = list(dict.fromkeys(row["recipe"] for row in rows))
    old_rows, old_bars, old = kept(out / f"{name}.json", again)
    own = {key: facts[key] for key in ("created", "cpu_model", "cpu_flags", "load")}
    machines = {**old["recipes"], **dict.fromkeys(again, own)}
    facts["recipes"] = {name: machines[name] for name in order if name in machines}
    facts["controls"] = sorted([*old["controls"], *facts["controls"]], key=lambda c: order.index(c["recipe"]))
    rows = sorted([*old_rows, *rows], key=lambda row: order.index(row["recipe"]))
    finish(name, facts, rows, [*old_bars, *bars], out=out)


def finish(name: str, facts: Row, rows: Sequence[Row], bars: Sequence[Row], *, out: Path = RESULTS) -> NoReturn:
    """Print, write ``out/<name>.json`` and exit: 5 when a bar does not hold, else 0."""
    label = f"{name} (quick)" if facts["quick"] else name
    print(f"{label}: {facts['cpu_model']}, {facts['cpu_count']} cores, load {facts['load']}")
    print(table(rows))
    print(table(bars))
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.json"
    partial = path.with_suffix(".tmp")
    partial.write_text(json.dumps({"conditions": facts, "rows": rows, "bars": bars}, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
    print(f"written: {path}")
    sys.exit(0 if all(b["holds"] for b in bars) else GATE_FAILED)


def table(rows: Sequence[Row]) -> str:
    """Columns in the order of their first appearance, numbers to the right."""
    if not rows:
        return "(no rows)"
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_text(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(column), *(len(line[i]) for line in cells)) for i, column in enumerate(columns)]
    right = [all(isinstance(row.get(c), (int, float, type(None))) for row in rows) for c in columns]
    lines = [columns, *cells]
    return "\n".join(
        "  ".join(
            cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    )


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return "" if value is None else str(value)
