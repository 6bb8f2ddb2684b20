"""The main job on text: every text recipe run for real, the teacher and the student's files in one table.

    python benchmarks/text_recipes.py --encoder DIRECTORY      recipes whose teacher is all-MiniLM-L6-v2 read it there
    python benchmarks/text_recipes.py --markdown               the recorded results into docs/results-text.md
    python benchmarks/text_recipes.py --quick                  one recipe on generated tickets under its smoke block

Without ``--encoder`` those recipes fetch it from the hub. Needs DISTILLEDGE_SHARED: the folder with data/.
Bars (Sanh et al. 2019; Jiao et al. 2020): a ``distil`` student keeps 97 % of the teacher's score with at most 60 % of
its parameters, a ``tiny`` one 96.8 % with 7.5 times fewer and at a ninth of the latency; int8 is within 0.5 points of
fp32.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import common
import images

RECIPES = (
    "trec-distil",
    "trec-tiny",
    "banking77-distil",
    "banking77-tiny",
    "trec-scratch",
    "tickets-labels",
    "tickets-ner",
    "tickets-qa",
)
PAGE = Path(__file__).parents[1] / "docs" / "results-text.md"
PACKAGES = ("torch", "transformers", "tokenizers", "onnxruntime", "openvino", "nncf", "ai-edge-litert", "litert-torch")
MAX_SHARE_OF_PARAMETERS, MIN_SHARE_OF_SCORE = 0.6, 0.97
MIN_TIMES_FEWER, MIN_TIMES_FASTER, MIN_SHARE_TINY = 7.5, 9.0, 0.968
MAX_DROP_INT8 = 0.5


def main() -> None:
    parser = common.arguments(__doc__ or "")
    parser.add_argument("--work", type=Path, default=Path("distilledge-work"))
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=RECIPES)
    parser.add_argument("--encoder", type=Path, help="directory of all-MiniLM-L6-v2")
    parser.add_argument("--markdown", action="store_true", help="print the recorded table and stop")
    options = parser.parse_args()
    if options.markdown:
        results = json.loads((options.out / "text_recipes.json").read_text(encoding="utf-8"))
        page = images.between(PAGE.read_text(encoding="utf-8"), "table", images.markdown(results))
        page = images.between(page, "bars", bars_markdown(results["bars"]))
        page = images.between(page, "machines", images.machines_markdown(results["conditions"]))
        PAGE.write_text(images.between(page, "control", images.control_markdown(results)), encoding="utf-8")
        return
    rows: list[common.Row] = []
    bars: list[common.Row] = []
    controls: list[common.Row] = []
    for name in ["tickets-labels"] if options.quick else options.recipes:
        content = report(name, options)
        made = images.table_rows(name, content)
        rows += made
        bars += judged(name, made, {c["role"]: c["parameters"] for c in content["checkpoints"]})
        if content["teacher_worth"]:
            controls.append({"recipe": name, **content["teacher_worth"]})
    name = "text_recipes-quick" if options.quick else "text_recipes"
    facts = common.conditions(quick=options.quick, packages=PACKAGES, extra={"controls": controls})
    common.finish_recipes(name, facts, rows, bars, RECIPES, out=options.out)


def report(name: str, options: argparse.Namespace) -> common.Row:
    """Run one recipe through the command line; its report.json."""
    command = [sys.executable, "-m", "distilledge.pipeline.cli", "run", name, "--work", str(options.work), "--json"]
    if options.encoder is not None and name.startswith(("trec-distil", "trec-tiny", "banking77")):
        command += ["--set", f"teacher.weights={options.encoder.absolute()}"]
    done = subprocess.run([*command, *(["--smoke"] if options.quick else [])], stdout=subprocess.PIPE, text=True)
    content: common.Row = json.loads(done.stdout or "{}").get("report")
    if not content:
        sys.exit(f"{name} ended with {done.returncode} and no report")
    return content


def judged(recipe: str, rows: list[common.Row], parameters: dict[str, int]) -> list[common.Row]:
    """Point estimates against the bounds; the intervals stand in the rows."""
    teachers = {row["runtime"]: row for row in rows if row["role"] == "teacher" and row["precision"] == "fp32"}
    share = parameters["student"] / parameters["teacher"]
    found = []
    if recipe.endswith("-distil"):
        found.append(common.bar(f"{recipe}: share of the parameters", share, MAX_SHARE_OF_PARAMETERS))
    if recipe.endswith("-tiny"):
        found.append(common.bar(f"{recipe}: times fewer parameters", 1 / share, MIN_TIMES_FEWER, at_most=False))
    for row in (r for r in rows if r["role"] == "student" and r["ships"]):
        where = f"{recipe} {row['runtime']} {row['precision']}"
        kept = row["value"] / teachers[row["runtime"]]["value"]
        if recipe.endswith("-distil"):
            found.append(common.bar(f"{where}: share of the score", kept, MIN_SHARE_OF_SCORE, at_most=False))
        if recipe.endswith("-tiny"):
            found.append(common.bar(f"{where}: share of the score", kept, MIN_SHARE_TINY, at_most=False))
            found.append(common.bar(f"{where}: times as fast", row["times_faster"], MIN_TIMES_FASTER, at_most=False))
        if row["drop_fp32"] is not None:
            found.append(common.bar(f"{where}: int8 below fp32, points", row["drop_fp32"], MAX_DROP_INT8))
    return found


def bars_markdown(bars: list[common.Row]) -> str:
    lines = ["| bar | measured | bound | holds |", "|---|---:|---:|---|"]
    for bar in bars:
        holds = "yes" if bar["holds"] else "**no**"
        lines.append(f"| {bar['name']} | {bar['value']:.3f} | {bar['bound']:g} | {holds} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
