"""int8 on real data: each student's fp32 file, its plain int8, and what the ladder ships, per runtime.

    python benchmarks/int8.py                 all recipes; what is in the store of --work is not redone
    python benchmarks/int8.py --encoder DIR   the teacher of texts is read there, not fetched
    python benchmarks/int8.py --markdown      the recorded results into docs/int8.md, nothing is run
    python benchmarks/int8.py --quick         one recipe under its smoke block, labelled so

Needs DISTILLEDGE_SHARED: the folder with data/ and weights/. The ladder decides on the validation split; every figure
here is of the test split.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import common

TEXTS = ("trec-tiny", "trec-distil")
RECIPES = ("x-sdd-tiny", "magnetic-tile-tiny", "x-sdd-lite0", "cifar10-lite0", "magnetic-tile-lite0", *TEXTS)
PAGE = Path(__file__).parents[1] / "docs" / "int8.md"
PACKAGES = ("torch", "timm", "onnxruntime", "openvino", "nncf", "ai-edge-litert", "ai-edge-quantizer")
MAX_DROP, MAX_SIZE = 0.5, 0.3
"""Points of the shipped file below its own fp32, and its share of that file's size, where it computes in int8."""
INT8 = ("w8a8", "w8dyn")


def main() -> None:
    parser = common.arguments(__doc__ or "")
    parser.add_argument("--work", type=Path, default=Path("distilledge-work"))
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=RECIPES)
    parser.add_argument("--encoder", type=Path, help="directory of all-MiniLM-L6-v2")
    parser.add_argument("--markdown", action="store_true", help="write the recorded table into the page and stop")
    options = parser.parse_args()
    if options.markdown:
        PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), recorded(options.out)), encoding="utf-8")
        return
    if "DISTILLEDGE_SHARED" not in os.environ:
        sys.exit("set DISTILLEDGE_SHARED to the folder with data/ and weights/")
    rows: list[common.Row] = []
    for name in ["x-sdd-tiny"] if options.quick else options.recipes:
        plain = report(name, options, climb=False)
        rows += table_rows(name, plain, report(name, options, climb=True))
    name = "int8-quick" if options.quick else "int8"
    facts = common.conditions(quick=options.quick, packages=PACKAGES, extra={"controls": [], "note": NOTE})
    common.finish_recipes(name, facts, rows, bars(rows), RECIPES, out=options.out)


NOTE = "p50 ratios are of the measure stage of two runs, each interleaved with its own fp32 file; accuracy is of test"


def recorded(results: Path) -> common.Row:
    found: common.Row = json.loads((results / "int8.json").read_text(encoding="utf-8"))
    return found


def report(name: str, options: argparse.Namespace, *, climb: bool) -> common.Row:
    """Run one recipe through the command line; its report.json."""
    command = [sys.executable, "-m", "distilledge.pipeline.cli", "run", name, "--work", str(options.work), "--json"]
    command += ["--set", f"compress.climb={str(climb).lower()}", "--set", "gate.on_fail=report"]
    if name in TEXTS and options.encoder is not None:
        command += ["--set", f"teacher.weights={options.encoder.absolute()}"]
    done = subprocess.run([*command, *(["--smoke"] if options.quick else [])], stdout=subprocess.PIPE, text=True)
    content: common.Row = json.loads(done.stdout or "{}").get("report")
    if not content:
        sys.exit(f"{name} ended with {done.returncode} and no report")
    return content


def table_rows(recipe: str, plain: common.Row, climbed: common.Row) -> list[common.Row]:
    ledgers = dict(climbed["ledgers"])
    rows = []
    for runtime, ledger in ledgers.items():
        fp32 = student(plain, runtime, "fp32")
        naive = next(found for p in INT8 if (found := student(plain, runtime, p)))
        taken = ledger["tried"][ledger["taken"]]
        ladder = student(climbed, runtime, taken["precision"])
        float_file = student(climbed, runtime, "fp32")
        common_part = {"recipe": recipe, "model": fp32["model"], "runtime": runtime, "pictures": plain["pictures"]}
        rows.append({**common_part, "file": "fp32", **figures(fp32, fp32), "rung": None, "rungs": 0, "agreement": 1.0})
        rows.append({**common_part, "file": "plain int8", **figures(naive, fp32), "rung": "ptq", "rungs": 1})
        rows[-1] |= {"precision": naive["precision"], "agreement": agreement(ledger, naive["precision"])}
        shipped = {"rung": taken["rung"], "rungs": len(ledger["tried"]), "agreement": taken["agreement"]}
        rows.append({**common_part, "file": "ladder", **figures(ladder, float_file), **shipped})
        rows[-1] |= {"precision": taken["precision"], "outcome": ledger["outcome"], "how": taken["recipe"]}
    return rows


def agreement(ledger: common.Row, precision: str) -> float | None:
    """Of the plain file, where the ladder tried it too: of texts it may begin with another precision."""
    found = (t["agreement"] for t in ledger["tried"] if (t["rung"], t["precision"]) == ("ptq", precision))
    return next(found, None)


def student(content: common.Row, runtime: str, precision: str) -> common.Row:
    """Empty where there is none."""
    wanted = ("student", runtime, precision)
    return next((f for f in content["files"] if (f["role"], f["runtime"], f["precision"]) == wanted), {})


def figures(file: common.Row, fp32: common.Row) -> common.Row:
    faster = file["faster_than_fp32"]
    return {
        **spread("value", file["metric"]),
        **spread("drop_fp32", file["drop_fp32"]),
        "p50_ratio": 1 / faster["value"] if faster else 1.0,
        "size_share": file["size_mb"] / fp32["size_mb"],
    }


def spread(name: str, estimate: common.Row | None) -> common.Row:
    found = estimate or {"value": None, "low": None, "high": None}
    return {name: found["value"], f"{name}_low": found["low"], f"{name}_high": found["high"]}


def bars(rows: list[common.Row]) -> list[common.Row]:
    """Point estimates against the bounds; the intervals stand in the rows."""
    found = []
    for row in (r for r in rows if r["file"] == "ladder"):
        where = f"{row['recipe']} {row['runtime']}"
        found.append(common.bar(f"{where}: shipped file below fp32, points", row["drop_fp32"] or 0.0, MAX_DROP))
        if row["precision"] in INT8:
            found.append(common.bar(f"{where}: share of fp32's size", row["size_share"], MAX_SIZE))
    return found


def filled(page: str, results: common.Row) -> str:
    """The page with the table between its markers."""
    head, _, rest = page.partition("<!-- table -->")
    tail = rest.partition("<!-- /table -->")[2]
    return f"{head}<!-- table -->\n{markdown(results)}\n<!-- /table -->{tail}"


def markdown(results: common.Row) -> str:
    head = (
        "| recipe | runtime | file | rung | metric, % (95 %) | below fp32, points (95 %) | same answers, validation, %"
    )
    lines = [f"{head} | p50 over fp32 | size over fp32 |", "|---|---|---|---|---|---|---:|---:|---:|"]
    for row in results["rows"]:
        shipped = row["file"] + (f" ({row['precision']})" if row["file"] == "ladder" else "")
        cells = [row["recipe"], row["runtime"], shipped, row["rung"] or "-"]
        cells += [interval(row, "value", 1), interval(row, "drop_fp32", 2)]
        cells += ["-" if row["agreement"] is None else f"{100 * row['agreement']:.1f}"]
        cells += [f"{row['p50_ratio']:.2f}", f"{row['size_share']:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def interval(row: common.Row, name: str, digits: int) -> str:
    if row[name] is None:
        return "-"
    return f"{row[name]:.{digits}f} ({row[name + '_low']:.{digits}f} to {row[name + '_high']:.{digits}f})"


if __name__ == "__main__":
    main()
