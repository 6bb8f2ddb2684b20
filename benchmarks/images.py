"""The main job on the real image sets: every recipe run for real, the teacher and the student's files in one table.

    python benchmarks/images.py                 all recipes (hours on two cores; what is in the store is not redone)
    python benchmarks/images.py --markdown      the recorded results into docs/results.md, nothing is run
    python benchmarks/images.py --quick         one recipe under its smoke block, labelled so

Needs DISTILLEDGE_SHARED: the folder with data/ and weights/.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import common

RECIPES = (
    "x-sdd-lite0",
    "x-sdd-tiny",
    "x-sdd-scratch",
    "magnetic-tile-lite0",
    "magnetic-tile-tiny",
    "cifar10-lite0",
    "cifar10-tiny",
)
PAGE = Path(__file__).parents[1] / "docs" / "results.md"
PACKAGES = ("torch", "timm", "onnxruntime", "openvino", "nncf", "ai-edge-litert", "litert-torch")
MAX_DROP, MAX_DROP_INT8 = 1.0, 0.5
"""Points below the teacher, and of lite0's int8 below its own fp32."""
MIN_TIMES_SMALLER, MIN_TIMES_FASTER = 20.0, 10.0
"""The tiny student against the fp32 teacher."""


def main() -> None:
    parser = common.arguments(__doc__ or "")
    parser.add_argument("--work", type=Path, default=Path("distilledge-work"))
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=RECIPES)
    parser.add_argument("--markdown", action="store_true", help="print the recorded table and stop")
    options = parser.parse_args()
    if options.markdown:
        PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), recorded(options.out)), encoding="utf-8")
        return
    if "DISTILLEDGE_SHARED" not in os.environ:
        sys.exit("set DISTILLEDGE_SHARED to the folder with data/ and weights/")
    names = ["x-sdd-tiny"] if options.quick else options.recipes
    rows: list[common.Row] = []
    controls: list[common.Row] = []
    for name in names:
        content = report(name, options)
        rows += table_rows(name, content)
        if content["teacher_worth"]:
            controls.append({"recipe": name, **content["teacher_worth"]})
    name = "images-quick" if options.quick else "images"
    facts = common.conditions(quick=options.quick, packages=PACKAGES, extra={"controls": controls})
    common.finish_recipes(name, facts, rows, bars(rows), RECIPES, out=options.out)


def recorded(results: Path) -> common.Row:
    found: common.Row = json.loads((results / "images.json").read_text(encoding="utf-8"))
    return found


def filled(page: str, results: common.Row) -> str:
    """The page with the tables between its markers."""
    page = between(page, "table", markdown(results))
    page = between(page, "machines", machines_markdown(results["conditions"]))
    return between(page, "control", control_markdown(results))


def between(page: str, name: str, text: str) -> str:
    head, _, rest = page.partition(f"<!-- {name} -->")
    tail = rest.partition(f"<!-- /{name} -->")[2]
    return f"{head}<!-- {name} -->\n{text}\n<!-- /{name} -->{tail}"


def report(name: str, options: argparse.Namespace) -> common.Row:
    """Run one recipe through the command line; its report.json."""
    command = [sys.executable, "-m", "distilledge.pipeline.cli", "run", name, "--work", str(options.work), "--json"]
    done = subprocess.run([*command, *(["--smoke"] if options.quick else [])], stdout=subprocess.PIPE, text=True)
    content: common.Row = json.loads(done.stdout or "{}").get("report")
    if not content:
        sys.exit(f"{name} ended with {done.returncode} and no report")
    return content


def table_rows(recipe: str, content: common.Row) -> list[common.Row]:
    teacher_mb = next(f["size_mb"] for f in content["files"] if f["role"] == "teacher")
    return [table_row(recipe, content, file, teacher_mb) for file in content["files"]]


def table_row(recipe: str, content: common.Row, file: common.Row, teacher_mb: float) -> common.Row:
    return {
        "recipe": recipe,
        "role": file["role"],
        "model": file["model"],
        "runtime": file["runtime"],
        "precision": file["precision"],
        "metric": content["recipe"]["metric"],
        "pictures": content["pictures"],
        **spread("value", file["metric"]),
        **spread("drop", file["drop"]),
        **spread("drop_fp32", file["drop_fp32"]),
        "p50_ms": value(file["p50"]),
        "times_faster": value(file["faster_than_teacher"]),
        "over_fp32": value(file["faster_than_fp32"]),
        "size_mb": file["size_mb"],
        "times_smaller": teacher_mb / file["size_mb"],
        "peak_rss_mb": file["peak_rss_mb"],
        "verdict": file["verdict"]["outcome"] if file["verdict"] else None,
        "accuracy_word": file["verdict"]["accuracy_word"] if file["verdict"] else None,
        "ships": file["chosen"],
        "flags": sorted({flag for t in content["timings"] if t["name"] == file["name"] for flag in t["flags"]}),
    }


def value(estimate: common.Row | None) -> float | None:
    return None if estimate is None else estimate["value"]


def spread(name: str, estimate: common.Row | None) -> common.Row:
    found = estimate or {"value": None, "low": None, "high": None}
    return {name: found["value"], f"{name}_low": found["low"], f"{name}_high": found["high"]}


def bars(rows: list[common.Row]) -> list[common.Row]:
    """Point estimates against the bounds; the intervals stand in the rows."""
    found = []
    for row in (r for r in rows if r["role"] == "student" and r["precision"] == "w8a8"):
        where = f"{row['recipe']} {row['runtime']}"
        found.append(common.bar(f"{where}: int8 below the teacher, points", row["drop"], MAX_DROP))
        if row["model"].startswith("tf_efficientnet_lite"):
            found.append(common.bar(f"{where}: int8 below fp32, points", row["drop_fp32"], MAX_DROP_INT8))
        else:
            smaller, faster = row["times_smaller"], row["times_faster"]
            found.append(common.bar(f"{where}: times smaller", smaller, MIN_TIMES_SMALLER, at_most=False))
            found.append(common.bar(f"{where}: times as fast", faster, MIN_TIMES_FASTER, at_most=False))
    return found


def markdown(results: common.Row) -> str:
    head = "| recipe | model | runtime | precision | metric, % (95 %) | below teacher, points (95 %) | below own fp32"
    lines = [f"{head} | p50, ms | times as fast | MB | verdict |", "|---|---|---|---|---|---|---|---:|---:|---:|---|"]
    for row in results["rows"]:
        name = f"{row['model']} ({row['role']})"
        cells = [row["recipe"], name, row["runtime"], row["precision"]]
        cells += [interval(row, "value", 1), interval(row, "drop", 2), interval(row, "drop_fp32", 2)]
        cells += [f"{row['p50_ms']:.3f}", f"{row['times_faster']:.1f}" if row["times_faster"] else "-"]
        cells += [f"{row['size_mb']:.2f}", row["verdict"] or "reference"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def machines_markdown(conditions: common.Row) -> str:
    """Which machine each recipe was run on: not all in one session."""
    lines = ["| recipe | recorded | CPU | int8 instructions |", "|---|---|---|---|"]
    for name, facts in conditions["recipes"].items():
        int8 = ", ".join(flag for flag in facts["cpu_flags"] if "vnni" in flag or "int8" in flag) or "none"
        lines.append(f"| {name} | {facts['created'][:10]} | {facts['cpu_model']} | {int8} |")
    return "\n".join(lines)


def control_markdown(results: common.Row) -> str:
    lines = [
        "| recipe | student, % (95 %) | control, % (95 %) | gain, points (95 %) | McNemar p |",
        "|---|---|---|---|---:|",
    ]
    for row in results["conditions"]["controls"]:
        cells = [row["recipe"], *(wide(row[name], 1) for name in ("student", "control")), wide(row["gain"], 2)]
        lines.append("| " + " | ".join([*cells, f"{row['p_value']:.3g}"]) + " |")
    return "\n".join(lines)


def wide(estimate: common.Row, digits: int) -> str:
    return interval(spread("x", estimate), "x", digits)


def interval(row: common.Row, name: str, digits: int) -> str:
    if row[name] is None:
        return "-"
    return f"{row[name]:.{digits}f} ({row[name + '_low']:.{digits}f} to {row[name + '_high']:.{digits}f})"


if __name__ == "__main__":
    main()
