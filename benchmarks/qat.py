"""Quantization-aware distillation on real image sets: each student's fp32 file, its plain and best int8 without
training, and int8 after training in fake int8 with the teacher, with the float student, and with labels alone.

    python benchmarks/qat.py                     all recipes; what is in the store of --work is not trained again, nor
                                                 what was measured there; --files and --runtimes do a part
    python benchmarks/qat.py --markdown          the recorded results into docs/int8.md, nothing is run
    python benchmarks/qat.py --quick             one recipe under its smoke block, one epoch, labelled so

Needs DISTILLEDGE_SHARED: the folder with data/ and weights/. Accuracy only. The best without training is chosen on the
validation split; every metric here is of the test split.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import common
import numpy as np

from distilledge.models import metrics
from distilledge.pipeline import checkpoint as checkpoints
from distilledge.pipeline import stats_counts
from distilledge.pipeline.benchmark import samples_of
from distilledge.pipeline.chain import Chain
from distilledge.pipeline.compress.ladder import RUNGS, Attempt, Bench
from distilledge.pipeline.export import describe
from distilledge.pipeline.inputs import PictureRows, picture_rows
from distilledge.pipeline.outcomes import classified
from distilledge.pipeline.recipe import Recipe
from distilledge.pipeline.recipe_file import load_recipe, schema_path
from distilledge.pipeline.run import run_step
from distilledge.pipeline.steps import steps
from distilledge.pipeline.store import Store
from distilledge.targets import get
from distilledge.targets.base import Deployable, FloatArray
from distilledge.targets.ondevice.preprocess import InputSpec
from distilledge.targets.ondevice.session import open_session

SILU = {
    "student.model": "mobilenetv3_small_050",
    "student.weights": "none",
    "student.training.epochs": 15,
    "name": "x-sdd-mobilenetv3",
}
RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "magnetic-tile-tiny": ("magnetic-tile-tiny", {}),
    "x-sdd-tiny": ("x-sdd-tiny", {}),
    "x-sdd-mobilenetv3": ("x-sdd-tiny", SILU),
    "magnetic-tile-lite0": ("magnetic-tile-lite0", {}),
}
"""Name -> recipe and what is changed in it: hard-swish and squeeze-excite, from random weights, in the third."""
PAGE = Path(__file__).parents[1] / "docs" / "int8.md"
PACKAGES = ("torch", "timm", "onnxruntime", "openvino", "nncf", "ai-edge-litert", "ai-edge-quantizer")
UNTRAINED = ("ptq", "bias")
TEACHERS = {"teacher": "qat, the teacher's answers", "student": "qat, the float student's", "none": "qat, labels alone"}
FILES = {"fp32": "fp32", "plain": "plain int8", "untrained": "best untrained int8", **TEACHERS}
MAX_DROP = 0.5
PICTURES = 64
"""Calibration pictures of the files that are not trained."""
NOTE = "accuracy and agreement; each file beside the student's fp32 file of the same runtime"
TABLE, END = "<!-- qat table -->", "<!-- /qat table -->"


def main() -> None:
    parser = common.arguments(__doc__ or "")
    parser.add_argument("--work", type=Path, default=Path("distilledge-work"))
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=RECIPES)
    parser.add_argument("--runtimes", nargs="+", default=["onnx", "openvino", "tflite"])
    parser.add_argument("--files", nargs="+", default=list(FILES), choices=FILES)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--markdown", action="store_true", help="write the recorded table into the page and stop")
    options = parser.parse_args()
    if options.markdown:
        found = json.loads((options.out / "qat.json").read_text(encoding="utf-8"))
        PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")
        return
    if "DISTILLEDGE_SHARED" not in os.environ:
        sys.exit("set DISTILLEDGE_SHARED to the folder with data/ and weights/")
    names = ["x-sdd-tiny"] if options.quick else options.recipes
    rows = [row for name in names for row in rows_of(name, options)]
    facts = common.conditions(quick=options.quick, packages=PACKAGES, extra={"controls": [], "note": NOTE})
    common.finish_recipes(
        "qat-quick" if options.quick else "qat", facts, rows, bars(rows), list(RECIPES), out=options.out
    )


class Ground(NamedTuple):
    """The pictures of two splits, and what a file's answers to them are compared with."""

    recipe: Recipe
    classes: tuple[str, ...]
    pictures: dict[str, PictureRows]
    labels: dict[str, Any]
    groups: list[str]


def rows_of(name: str, options: argparse.Namespace) -> Iterator[common.Row]:
    """One recipe: everything is trained once, then each runtime's files."""
    chains = {teacher: chain_of(name, teacher, options) for teacher in TEACHERS if teacher in options.files}
    first = next(iter(chains.values()), None) or chain_of(name, "none", options)
    stored = first.done["student"]
    model = checkpoints.load(stored.value, stored.path)
    trained = {teacher: chain.ask("qat") for teacher, chain in chains.items()}
    ground = ground_of(first)
    given = samples_of(*first.inputs("train", calibration=True))
    calibration = [row[None] for row in picture_rows(given.spread(PICTURES), spec_of(stored.value)).real().images]
    folder = options.work / "qat"
    folder.mkdir(parents=True, exist_ok=True)
    for runtime in options.runtimes:
        part = {"recipe": name, "model": stored.value.model, "runtime": runtime}
        places = {file: folder / f"{name}-{runtime}-{file}-{options.epochs}-{options.lr}.json" for file in FILES}
        missing = [file for file in options.files if not places[file].exists()]
        if missing:
            for file, row in files_of(ground, model, (runtime, stored.value), calibration, trained, missing):
                places[file].write_text(json.dumps(part | {"file": FILES[file]} | row), encoding="utf-8")
        yield from (json.loads(place.read_text(encoding="utf-8")) for place in places.values() if place.exists())


def chain_of(name: str, teacher: str, options: argparse.Namespace) -> Chain:
    """With data, teacher and student made or found; the trainings of one recipe share them."""
    base, changes = RECIPES[name]
    epochs = 1 if options.quick else options.epochs
    sets: dict[str, Any] = {"compress.climb": True, "compress.qat.teacher": teacher, "compress.qat.epochs": epochs}
    sets |= {"compress.qat.lr": options.lr, **changes}
    overrides = [f"{key}={json.dumps(value)}" for key, value in sets.items()]
    recipe = load_recipe(schema_path().with_name(f"{base}.yaml"), overrides=overrides, smoke=options.quick)
    chain = Chain(recipe, Store(options.work / "store"), steps(recipe, {}), lambda _event: None)
    for step in chain.steps:
        if step.name in ("data", "teacher", "student"):
            run_step(chain, step)
    return chain


def ground_of(chain: Chain) -> Ground:
    spec = spec_of(chain.done["student"].value)
    pictures, labels = {}, {}
    for split in ("validation", "test"):
        given = chain.inputs(split)  # type: ignore[arg-type]
        pictures[split] = picture_rows(samples_of(*given), spec).real()
        labels[split] = np.array([s.label for s in given[0]], np.int64)
    groups = [s.group for s in chain.samples("test")]
    return Ground(chain.recipe, chain.splits.classes, pictures, labels, groups)


def spec_of(checkpoint: Any) -> InputSpec:
    return InputSpec.from_dict(checkpoint.input_spec)


def files_of(
    ground: Ground,
    model: Any,
    of: tuple[str, Any],
    calibration: list[Any],
    trained: dict[str, Any],
    wanted: list[str],
) -> Iterator[tuple[str, common.Row]]:
    """fp32, plain int8, the best without training by agreement on validation, and one for each teacher.

    ``of``: the runtime, and the student's checkpoint.
    """
    runtime, checkpoint = of
    target = get(runtime)
    deployable = describe(checkpoint, target)
    assert isinstance(deployable, Deployable)
    with TemporaryDirectory(prefix="distilledge-qat-") as folder:
        fp32 = target.export(model, deployable, Path(folder))
        reference = {split: answers(fp32, runtime, rows) for split, rows in ground.pictures.items()}
        bench = Bench(target, model, fp32, deployable, calibration)
        yield "fp32", figures(ground, reference, reference)
        if {"plain", "untrained"} & {*wanted}:
            tried = [made(ground, bench, reference, attempt) for name in UNTRAINED for attempt in RUNGS[name](bench)]
            yield "plain", tried[0]
            yield "untrained", max(tried, key=lambda row: (row["agreement"], -row["kl"]))
        for teacher in (t for t in trained if t in wanted):
            own = Bench(target, model, fp32, deployable, calibration, ask=lambda _name, t=teacher: trained[t])
            rows = [made(ground, own, reference, attempt) for attempt in RUNGS["qat"](own)]
            yield teacher, rows[0] if rows else {"how": own.notes[0]}


def made(ground: Ground, bench: Bench, reference: dict[str, FloatArray], attempt: Attempt) -> common.Row:
    """One int8 file; ``twin``: share of the validation pictures that it answers as its fake-quantised network."""
    started = time.monotonic()
    with TemporaryDirectory(prefix="distilledge-qat-") as folder:
        path, words = bench.make(attempt, Path(folder))
        found = {split: answers(path, bench.target.NAME, rows) for split, rows in ground.pictures.items()}
    row = {**figures(ground, reference, found), "how": words, "seconds": time.monotonic() - started}
    if attempt.source.parent.name == "qat":
        for file in attempt.source.parent.iterdir():
            file.unlink()
        attempt.source.parent.rmdir()
    if attempt.twin is not None:
        twin = ground.pictures["validation"].by_torch(attempt.twin).logits
        row["twin"] = float((twin.argmax(1) == found["validation"].argmax(1)).mean())
        row["twin_max_abs"] = metrics.max_abs(twin, found["validation"])
    return row


def answers(path: Path, runtime: str, rows: PictureRows) -> FloatArray:
    return rows.by_file(open_session(str(path), runtime, threads=1)).logits


def figures(ground: Ground, reference: dict[str, FloatArray], found: dict[str, FloatArray]) -> common.Row:
    labels, metric = ground.labels["test"], ground.recipe.metric
    fp32, counts = (classified(metric, x["test"], labels, ground.classes).counts for x in (reference, found))
    groups = ground.groups if any(ground.groups) else None
    seed = ground.recipe.seed
    value = stats_counts.interval(counts, labels, metric=metric, groups=groups, seed=seed)
    drop = stats_counts.drop(fp32, counts, labels, metric=metric, groups=groups, seed=seed)
    a, b = reference["validation"], found["validation"]
    return {
        **{"value": 100 * value.value, "value_low": 100 * (value.low or 0), "value_high": 100 * (value.high or 0)},
        **{"drop_fp32": drop.value, "drop_fp32_low": drop.low, "drop_fp32_high": drop.high},
        "agreement": float((a.argmax(1) == b.argmax(1)).mean()),
        "kl": metrics.kl(a, b),
        "test_agreement": float((reference["test"].argmax(1) == found["test"].argmax(1)).mean()),
        "pictures": len(labels),
    }


def bars(rows: list[common.Row]) -> list[common.Row]:
    """Of training with the teacher; point estimates, the intervals stand in the rows."""
    taught = [row for row in rows if row["file"] == TEACHERS["teacher"] and "drop_fp32" in row]
    return [
        common.bar(f"{row['recipe']} {row['runtime']}: qat below fp32, points", row["drop_fp32"], MAX_DROP)
        for row in taught
    ]


def filled(page: str, results: common.Row) -> str:
    """The page with the table between its markers."""
    head, _, rest = page.partition(TABLE)
    return f"{head}{TABLE}\n{markdown(results)}\n{END}{rest.partition(END)[2]}"


def markdown(results: common.Row) -> str:
    head = (
        "| recipe | runtime | file | metric, % (95 %) | below fp32, points (95 %) | same answers as fp32, validation, %"
    )
    lines = [f"{head} | KL | as its fake-quantised network, % |", "|---|---|---|---|---|---:|---:|---:|"]
    for row in results["rows"]:
        if "value" not in row:
            lines.append(f"| {row['recipe']} | {row['runtime']} | {row['file']} | {row['how']} | - | - | - | - |")
            continue
        cells = [row["recipe"], row["runtime"], row["file"], interval(row, "value", 1), interval(row, "drop_fp32", 2)]
        cells += [f"{100 * row['agreement']:.1f}", f"{row['kl']:.4f}"]
        cells.append(f"{100 * row['twin']:.1f}" if "twin" in row else "-")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def interval(row: common.Row, name: str, digits: int) -> str:
    return f"{row[name]:.{digits}f} ({row[name + '_low']:.{digits}f} to {row[name + '_high']:.{digits}f})"


if __name__ == "__main__":
    main()
