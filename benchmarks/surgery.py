"""Students that are cut: surgery and pruning, trained, and what is left of them.

    python benchmarks/surgery.py                   all of it; what is in the store of --work is not redone
    python benchmarks/surgery.py --only networks   surgery and pruning, trained
    python benchmarks/surgery.py --only sizes      MACs and parameters after surgery and pruning; no data, no training
    python benchmarks/surgery.py --markdown        the recorded tables into the pages, nothing is run
    python benchmarks/surgery.py --quick           the networks under their smoke blocks, labelled so

Needs torch-pruning, and DISTILLEDGE_SHARED, the folder with data/ and weights/. Networks are judged on the test split:
fp32 beside the same network uncut, paired; int8 is plain static int8 in ONNX Runtime. No latency is recorded here. The
ladder's rung of surgery is in rungs.py.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import common
import numpy as np

from distilledge.pipeline.outcomes import classified
from distilledge.pipeline.record import Checkpoint, ExportResult, RunRecord, Scores
from distilledge.pipeline.stats_counts import drop

PAGE = Path(__file__).parents[1] / "docs" / "students.md"
PACKAGES = ("torch", "timm", "torch-pruning", "onnxruntime", "openvino", "nncf", "ai-edge-litert", "ai-edge-quantizer")
MAX_DROP = 0.5
"""Points that a pruned network may lose to the uncut one, by value."""


class Variant(NamedTuple):
    """One student of a recipe; the first of each recipe and model is the uncut one."""

    recipe: str
    name: str
    what: str
    settings: tuple[str, ...] = ()


SMALL = (
    *("student.model=mobilenetv3_small_050", "student.training.epochs=20"),
    *("teacher.training.epochs=5", "distill.control=false"),
)
CUT = "student.surgery={activation: relu6, squeeze_excite: drop}"
STEEL = ("distill.control=false",)
RECOVERY = (
    "student.prune.training={epochs: 8, batch_size: 32, lr: 1e-3, ema: 0.99, "
    "augment: {crop_scale: [0.6, 1.0], vertical_flip: 0.5}}"
)
VARIANTS = {
    v.name: v
    for v in (
        Variant("demo", "surgery-none", "as it is", SMALL),
        Variant("demo", "surgery-relu6", "ReLU6, no squeeze-excite", (*SMALL, CUT)),
        Variant("x-sdd-tiny", "prune-none", "as it is", STEEL),
        Variant("x-sdd-tiny", "prune-60", "60 % of the MACs", (*STEEL, "student.prune.macs=0.6", RECOVERY)),
        Variant("x-sdd-tiny", "prune-30", "30 % of the MACs", (*STEEL, "student.prune.macs=0.3", RECOVERY)),
    )
}
EXPORT = "export.targets=[{runtime: onnx, precisions: [fp32, w8a8]}]"
FREE = ("gate.on_fail=report", "measure.quick=true", "verify.min_agreement_int8=0", "verify.min_cosine_int8=0", EXPORT)


def run(variant: Variant, options: argparse.Namespace) -> None:
    """The chain up to the scores; nothing is timed."""
    command = [sys.executable, "-m", "distilledge.pipeline.cli", "run", variant.recipe, "--work", str(options.work)]
    for setting in (f"name={variant.name}", *FREE, *variant.settings):
        command += ["--set", setting]
    done = subprocess.run([*command, *(["--smoke"] if options.quick else [])], stdout=subprocess.DEVNULL)
    if done.returncode:
        sys.exit(f"{variant.name} ended with {done.returncode}")


def networks(options: argparse.Namespace) -> list[common.Row]:
    """A row for each variant, beside the uncut network of its recipe."""
    rows: list[common.Row] = []
    first: dict[str, np.ndarray[Any, Any]] = {}
    for variant in (VARIANTS[name] for name in options.variants):
        run(variant, options)
        record = RunRecord.model_validate_json((options.work / "runs" / variant.name / "run.json").read_bytes())
        checkpoint = read(record, options.work, "student", Checkpoint)
        scores = read(record, options.work, "score", Scores)
        where = stage(record, options.work, "score")
        logits = {i.precision: np.load(where / i.logits) for i in scores.items if i.role == "student"}
        labels = np.asarray(scores.labels, np.int64)
        uncut = first.setdefault(variant.recipe, logits["fp32"])
        exported = read(record, options.work, "export-student-onnx", ExportResult)
        sizes = {file.precision: file.size_bytes / 1e6 for file in exported.files}
        counts = {p: classified(record.recipe.metric, x, labels, checkpoint.classes).counts for p, x in logits.items()}
        before = classified(record.recipe.metric, uncut, labels, checkpoint.classes).counts
        how = {"metric": record.recipe.metric, "groups": None, "seed": record.recipe.seed}
        rows.append(
            {
                "table": "networks",
                "recipe": variant.recipe,
                "model": checkpoint.model,
                "student": variant.what,
                "pictures": len(labels),
                "value": 100 * float((logits["fp32"].argmax(1) == labels).mean()),
                **spread("below_uncut", drop(before, counts["fp32"], labels, **how)),
                **spread("int8_below_fp32", drop(counts["fp32"], counts["w8a8"], labels, **how)),
                "mmacs": checkpoint.macs / 1e6,
                "parameters": checkpoint.parameters,
                "fp32_mb": sizes["fp32"],
                "int8_mb": sizes["w8a8"],
                "float_operations": list(next(f for f in exported.files if f.precision == "w8a8").float_operations),
                "epochs": checkpoint.epochs,
                "architecture": {k: v for k, v in checkpoint.architecture.items() if k != "channels"},
            }
        )
    return rows


def stage(record: RunRecord, work: Path, name: str) -> Path:
    return work / next(s.path for s in record.stages if s.name == name)


def read(record: RunRecord, work: Path, name: str, kind: Any) -> Any:
    return kind.model_validate_json((stage(record, work, name) / "value.json").read_bytes())


def spread(name: str, estimate: Any) -> common.Row:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


# --- sizes -----------------------------------------------------------------------------------------------------------

SIZED = {"mobilenetv1_025": (96, (0.6, 0.3)), "mobilenetv3_small_100": (96, (0.6,)), "efficientnet_b0": (128, ())}
"""Model -> pixels, and the goals it is pruned to."""


def sizes() -> Iterator[common.Row]:
    """Of networks for six classes with random weights: counts do not depend on them."""
    import torch

    from distilledge.models import vision
    from distilledge.models.pruning import widest
    from distilledge.models.surgery import operated, variants

    for name, (size, goals) in SIZED.items():
        model = vision.create(name, classes=6, size=size).eval()
        whole = vision.profile(model, size)
        changed = {"as it is": model}
        for surgery in variants(model):
            words = f"{surgery.activation or 'as it is'}, squeeze-excite: {surgery.squeeze_excite or 'as it is'}"
            changed[words] = operated(vision.create(name, classes=6, size=size).eval(), surgery)
        for goal in goals:
            most = goal * whole.macs
            changed[f"pruned to {goal:.0%} of the MACs"] = widest(
                model,
                torch.zeros(1, 3, size, size),
                lambda m, most=most, size=size: vision.profile(m, size).macs <= most,  # type: ignore[misc]
                by="magnitude",
                multiple=8,
            )
        for words, own in changed.items():
            found = vision.profile(own, size)
            yield {
                "table": "sizes",
                "recipe": f"{name} at {size}",
                "student": words,
                "mmacs": found.macs / 1e6,
                "parameters": found.parameters,
                "share_of_macs": found.macs / whole.macs,
                "int8": vision.int8_friendliness(own)[0],
            }


# --- results ---------------------------------------------------------------------------------------------------------


def bars(rows: list[common.Row]) -> list[common.Row]:
    """By value; the intervals stand in the rows."""
    return [
        common.bar(f"{row['recipe']} {row['student']}: points below the uncut student", row["below_uncut"], MAX_DROP)
        for row in rows
        if row["table"] == "networks" and row["student"] != "as it is"
    ]


def place(row: common.Row) -> tuple[object, ...]:
    """What a row is of: a later run takes the place of an earlier one."""
    return row["table"], row["recipe"], row["student"]


def recorded(results: Path) -> common.Row:
    path = results / "surgery.json"
    found: common.Row = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"rows": [], "bars": []}
    return found


def points(row: common.Row, name: str) -> str:
    return f"{row[name]:.2f} ({row[name + '_low']:.2f} to {row[name + '_high']:.2f})"


def table_of_networks(rows: list[common.Row]) -> str:
    lines = [
        "| recipe | model | student | test pictures | accuracy, % | below the uncut, points (95 %) | "
        "int8 below fp32, points (95 %) | MMACs | parameters | fp32, MB | int8, MB |",
        "|---|---|---|---:|---:|---|---|---:|---:|---:|---:|",
    ]
    for row in (r for r in rows if r["table"] == "networks"):
        cells = [row["recipe"], row["model"], row["student"], str(row["pictures"]), f"{row['value']:.1f}"]
        cells += [points(row, "below_uncut") if row["student"] != "as it is" else "-", points(row, "int8_below_fp32")]
        cells += [f"{row['mmacs']:.2f}", f"{row['parameters']:,}", f"{row['fp32_mb']:.2f}", f"{row['int8_mb']:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def table_of_sizes(rows: list[common.Row]) -> str:
    lines = [
        "| network | student | MMACs | of all, % | parameters | int8 is likely to go |",
        "|---|---|---:|---:|---:|---|",
    ]
    for row in (r for r in rows if r["table"] == "sizes"):
        cells = [row["recipe"], row["student"], f"{row['mmacs']:.2f}", f"{100 * row['share_of_macs']:.1f}"]
        lines.append("| " + " | ".join([*cells, f"{row['parameters']:,}", row["int8"]]) + " |")
    return "\n".join(lines)


TABLES = {"sizes": table_of_sizes, "networks": table_of_networks}
"""Markers of the page, and the table between them."""
NOT_YET = "Not recorded yet."


def filled(page: str, results: common.Row) -> str:
    for marker, make in TABLES.items():
        head, _, rest = page.partition(f"<!-- {marker} -->")
        tail = rest.partition(f"<!-- /{marker} -->")[2]
        there = any(row["table"] == marker for row in results["rows"])
        content = make(results["rows"]) if there else NOT_YET
        page = f"{head}<!-- {marker} -->\n{content}\n<!-- /{marker} -->{tail}"
    return page


def main() -> None:
    parser = common.arguments(__doc__ or "")
    parser.add_argument("--work", type=Path, default=Path("distilledge-work"))
    parser.add_argument("--only", choices=("networks", "sizes"))
    parser.add_argument(
        "--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), help="uncut ones first"
    )
    parser.add_argument("--markdown", action="store_true", help="write the recorded tables into the pages and stop")
    options = parser.parse_args()
    options.work = options.work.absolute()
    if options.markdown:
        PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), recorded(options.out)), encoding="utf-8")
        return
    if "DISTILLEDGE_SHARED" not in os.environ and options.only != "sizes":
        sys.exit("set DISTILLEDGE_SHARED to the folder with data/ and weights/")
    made = list(sizes()) if options.only in (None, "sizes") else []
    made += networks(options) if options.only in (None, "networks") else []
    name = "surgery-quick" if options.quick else "surgery"
    earlier = [] if options.quick else recorded(options.out)["rows"]
    again = {place(row): row for row in made}
    rows = [again.pop(place(row), row) for row in earlier]
    rows += again.values()
    facts = common.conditions(quick=options.quick, packages=PACKAGES, extra={"note": "accuracy only; nothing is timed"})
    common.finish(name, facts, rows, bars(rows), out=options.out)


if __name__ == "__main__":
    main()
