"""Every rung of the ladder on real students: the best file of each, whether the ladder would stop before it or not.

    python benchmarks/rungs.py                     all recipes; what is in the store of --work is not trained again, nor
                                                   made there: --files and --runtimes do a part
    python benchmarks/rungs.py --accuracy-only     nothing is timed: for a busy machine; later again without it
    python benchmarks/rungs.py --markdown          the recorded results into docs/int8.md, nothing is run
    python benchmarks/rungs.py --quick             one recipe under its smoke block, one epoch, labelled so

Needs DISTILLEDGE_SHARED: the folder with data/ and weights/. Of each rung the attempt is kept that answers as fp32 in
most of the validation pictures; every metric is of the test split, paired with the student's fp32 file. All files of a
student and runtime are timed in turns. ``qat`` is trained with each of its three teachers.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import common
import numpy as np
from rungs_table import FILES, TAUGHT, bars, filled, marked

from distilledge.models import metrics
from distilledge.pipeline import checkpoint as checkpoints
from distilledge.pipeline import stats, stats_counts
from distilledge.pipeline.benchmark import samples_of
from distilledge.pipeline.chain import Chain
from distilledge.pipeline.compress.ladder import RUNGS, Attempt, Bench
from distilledge.pipeline.export import describe, finished
from distilledge.pipeline.inputs import PictureRows, picture_rows
from distilledge.pipeline.outcomes import classified
from distilledge.pipeline.recipe_file import load_recipe, schema_path
from distilledge.pipeline.run import run_step
from distilledge.pipeline.steps import steps
from distilledge.pipeline.store import Store
from distilledge.targets import get
from distilledge.targets.base import Deployable, Exported, FloatArray
from distilledge.targets.devices.local import LocalDevice
from distilledge.targets.measure import Candidate, measure
from distilledge.targets.ondevice.preprocess import InputSpec
from distilledge.targets.ondevice.session import open_session

SCRATCH: dict[str, Any] = {
    "student.weights": "none",
    "distill.control": False,
    "student.training.precision": "auto",
}
"""Students that no weights are at hand for, from random ones."""
RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "x-sdd-tiny": ("x-sdd-tiny", {}),
    "magnetic-tile-tiny": ("magnetic-tile-tiny", {}),
    "cifar10-tiny": ("cifar10-tiny", {}),
    "x-sdd-lite0": ("x-sdd-lite0", {}),
    "x-sdd-mobilenetv3": (
        "x-sdd-tiny",
        {**SCRATCH, "student.model": "mobilenetv3_small_100", "student.training.epochs": 20},
    ),
    "x-sdd-b0": ("x-sdd-tiny", {**SCRATCH, "student.model": "efficientnet_b0", "student.training.epochs": 15}),
}
"""Name -> recipe and what is changed in it. The last two have SiLU or hard-swish, and squeeze-excite."""
PAGE = Path(__file__).parents[1] / "docs" / "int8.md"
PACKAGES = ("torch", "timm", "onnxruntime", "openvino", "nncf", "ai-edge-litert", "ai-edge-quantizer")
PICTURES = 64
"""Calibration pictures."""
SAMPLES, LAUNCHES = 384, 3
NOTE = "each file beside the student's fp32 file of the same runtime; quantization-aware training: --epochs, --lr"


def main() -> None:
    parser = common.arguments(__doc__ or "")
    parser.add_argument("--work", type=Path, default=Path("distilledge-work"))
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=RECIPES)
    parser.add_argument("--runtimes", nargs="+", default=["onnx", "openvino", "tflite"])
    parser.add_argument("--files", nargs="+", default=list(FILES), choices=FILES)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--accuracy-only", action="store_true")
    parser.add_argument("--markdown", action="store_true", help="write the recorded table into the page and stop")
    options = parser.parse_args()
    if options.markdown:
        found = json.loads((options.out / "rungs.json").read_text(encoding="utf-8"))
        PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")
        return
    if "DISTILLEDGE_SHARED" not in os.environ:
        sys.exit("set DISTILLEDGE_SHARED to the folder with data/ and weights/")
    names = ["x-sdd-tiny"] if options.quick else options.recipes
    rows = [row for name in names for row in rows_of(name, options)]
    timed = {"controls": [], "note": NOTE, "qat": {"epochs": options.epochs, "lr": options.lr}}
    facts = common.conditions(quick=options.quick, packages=PACKAGES, extra=timed)
    label = "rungs-quick" if options.quick else "rungs"
    common.finish_recipes(label, facts, rows, bars(rows), list(RECIPES), out=options.out)


class Ground(NamedTuple):
    """One student in one runtime; the pictures of two splits, and fp32's answers to them."""

    chain: Chain
    bench: Bench
    pictures: dict[str, PictureRows]
    labels: dict[str, Any]
    folder: Path
    reference: dict[str, FloatArray]


def rows_of(name: str, options: argparse.Namespace) -> Iterator[common.Row]:
    """One recipe: each runtime's files, those of earlier calls too."""
    chain = chain_of(name, "teacher", options)
    stored = chain.done["student"]
    model = checkpoints.load(stored.value, stored.path)
    spec = InputSpec.from_dict(stored.value.input_spec)
    pictures, labels = {}, {}
    for split in ("validation", "test"):
        given = chain.inputs(split)  # type: ignore[arg-type]
        pictures[split] = picture_rows(samples_of(*given), spec).real()
        labels[split] = np.array([s.label for s in given[0]], np.int64)
    calibration, train = (samples_of(*chain.inputs("train", calibration=c)) for c in (True, False))
    given_rows = [row[None] for row in picture_rows(calibration.spread(PICTURES), spec).real().images]
    for runtime in options.runtimes:
        folder = (options.work / "rungs" / name / runtime).absolute()
        target, deployable = get(runtime), describe(stored.value, get(runtime))
        assert isinstance(deployable, Deployable)
        (folder / "fp32").mkdir(parents=True, exist_ok=True)
        path = folder / "fp32" / f"model.fp32{target.SUFFIX}"
        if not path.exists():
            path = target.export(model, deployable, folder / "fp32")
        bench = Bench(target, model, path, deployable, given_rows, train.rows, ask=chain.ask)
        ground = Ground(chain, bench, pictures, labels, folder, {})
        ground.reference.update(answers(ground, path))
        for file in options.files:
            make(file, ground, name, options)
        for changed in path.parent.glob("changed-*"):
            shutil.rmtree(changed)
        rows = [json.loads(p.read_text()) for f in FILES if (p := folder / f / "row.json").exists()]
        marked(rows)
        if not options.accuracy_only:
            timed(ground, [r for r in rows if "value" in r])
        yield from ({"recipe": name, "model": stored.value.model, "runtime": runtime, **row} for row in rows)


def chain_of(name: str, teacher: str, options: argparse.Namespace) -> Chain:
    """With data, teacher and student made or found; the trainings of one recipe share them."""
    base, changes = RECIPES[name]
    sets: dict[str, Any] = {"compress.climb": True, "compress.qat.teacher": teacher, "compress.qat.lr": options.lr}
    for rung in ("qat", "surgery"):
        sets[f"compress.{rung}.epochs"] = 1 if options.quick else options.epochs
    overrides = [f"{key}={json.dumps(value)}" for key, value in {**sets, **changes, "name": name}.items()]
    recipe = load_recipe(schema_path().with_name(f"{base}.yaml"), overrides=overrides, smoke=options.quick)
    chain = Chain(recipe, Store(options.work / "store"), steps(recipe, {}), lambda _event: None)
    for step in chain.steps:
        if step.name in ("data", "teacher", "student"):
            run_step(chain, step)
    return chain


def make(file: str, ground: Ground, name: str, options: argparse.Namespace) -> None:
    """The best attempt of one rung, kept in a folder of its own with its row; nothing where that is there already."""
    place = ground.folder / file
    if (place / "row.json").exists():
        return
    if file == "fp32":
        row = {"file": file, "rung": "-", "how": "as exported", **figures(ground, ground.reference)}
        keep(place, row, ground, ground.bench.fp32, ("fp32", 0.0))
        return
    if file in TAUGHT:
        chain = chain_of(name, TAUGHT[file], options)
        ground.bench.ask = chain.ask
    rung = "qat" if file in TAUGHT else file
    best: common.Row | None = None
    for number, attempt in enumerate(RUNGS[rung](ground.bench)):  # type: ignore[index]
        row, path = tried(ground, attempt, ground.folder / f"{file}-{number}")
        row |= {"file": file, "rung": rung, "attempt": number}
        if file in (*TAUGHT, "surgery"):
            row |= {"epochs": options.epochs, "lr": options.lr}
        if best is None or better(row, best):
            best = row
            shutil.rmtree(place, ignore_errors=True)
            keep(place, row, ground, path, (attempt.precision, row["seconds"]))
        shutil.rmtree(path.parent)
    if best is None:
        place.mkdir(exist_ok=True)
        why = ground.bench.notes[-1] if ground.bench.notes else "nothing to try"
        (place / "row.json").write_text(json.dumps({"file": file, "rung": rung, "how": why}), encoding="utf-8")
    shutil.rmtree(ground.bench.fp32.parent / "qat", ignore_errors=True)


def better(row: common.Row, than: common.Row) -> bool:
    return (row["agreement"], -row["kl"]) > (than["agreement"], -than["kl"])


def tried(ground: Ground, attempt: Attempt, folder: Path) -> tuple[common.Row, Path]:
    """One int8 file; ``twin``: share of the validation pictures that it answers as its fake-quantised network."""
    folder.mkdir(exist_ok=True)
    started = time.monotonic()
    path, words = ground.bench.make(attempt, folder)
    seconds = time.monotonic() - started
    found = answers(ground, path)
    row = {"how": words, "seconds": seconds, **figures(ground, found)}
    if attempt.twin is not None:
        twin = ground.pictures["validation"].by_torch(attempt.twin).logits
        row["twin"] = float((twin.argmax(1) == found["validation"].argmax(1)).mean())
    return row, path


def keep(place: Path, row: common.Row, ground: Ground, path: Path, of: tuple[Any, float]) -> None:
    """The file with what describes it. ``of``: its precision, and how long it took."""
    place.mkdir(exist_ok=True)
    bench = ground.bench
    if path.parent != place:
        for own in path.parent.glob(f"{path.stem}.*"):
            shutil.copyfile(own, place / own.name)
    started = time.perf_counter() - of[1]
    exported = finished(bench.target, [place / path.name], of[0], row["how"], bench.deployable, started)
    row |= {"precision": of[0], "size_bytes": exported.size_bytes}
    (place / "exported.json").write_text(exported.model_dump_json(), encoding="utf-8")
    (place / "row.json").write_text(json.dumps(row), encoding="utf-8")


def answers(ground: Ground, path: Path) -> dict[str, FloatArray]:
    session = open_session(str(path), ground.bench.target.NAME, threads=1)
    return {split: rows.by_file(session).logits for split, rows in ground.pictures.items()}


def figures(ground: Ground, found: dict[str, FloatArray]) -> common.Row:
    recipe, labels = ground.chain.recipe, ground.labels["test"]
    groups = [s.group for s in ground.chain.samples("test")]
    named = groups if any(groups) else None
    counts = counts_of(ground, found, "test")
    value = stats_counts.interval(counts, labels, metric=recipe.metric, groups=named, seed=recipe.seed)
    drop = stats_counts.drop(
        counts_of(ground, ground.reference, "test"),
        counts,
        labels,
        metric=recipe.metric,
        groups=named,
        seed=recipe.seed,
    )
    a, b = ground.reference["validation"], found["validation"]
    return {
        **{"value": 100 * value.value, "value_low": 100 * (value.low or 0), "value_high": 100 * (value.high or 0)},
        **{"drop_fp32": drop.value, "drop_fp32_low": drop.low, "drop_fp32_high": drop.high},
        "validation_drop": validation_drop(ground, found),
        "agreement": float((a.argmax(1) == b.argmax(1)).mean()),
        "kl": metrics.kl(a, b),
        "pictures": len(labels),
    }


def validation_drop(ground: Ground, found: dict[str, FloatArray]) -> float:
    """Points below fp32, by value: what a ladder decides by."""
    recipe, labels = ground.chain.recipe, ground.labels["validation"]
    fp32, counts = (counts_of(ground, logits, "validation") for logits in (ground.reference, found))
    return stats_counts.drop(fp32, counts, labels, metric=recipe.metric, seed=recipe.seed).value


def counts_of(ground: Ground, logits: dict[str, FloatArray], split: str) -> Any:
    return classified(
        ground.chain.recipe.metric, logits[split], ground.labels[split], ground.chain.splits.classes
    ).counts


def timed(ground: Ground, rows: list[common.Row]) -> None:
    """p50 of each file over that of fp32, all interleaved, on one thread."""
    candidates = [
        Candidate(
            name=row["file"],
            role="student",
            directory=str(ground.folder / row["file"]),
            exported=Exported.model_validate_json((ground.folder / row["file"] / "exported.json").read_text()),
        )
        for row in rows
    ]
    inputs = samples_of(*ground.chain.inputs("test"))
    how: dict[str, Any] = {"threads": 1, "samples": SAMPLES, "launches": LAUNCHES, "warmup": 20, "quick": False}
    found = measure(candidates, LocalDevice(), min_seconds=0.0, end_to_end=0, inputs=inputs, **how)
    launches = [[tuple(launch.latency_ns) for launch in one.launches] for one in found]
    for row, taken in zip(rows, launches, strict=True):
        ratio = stats.median_ratio(taken, launches[0])
        assert ratio is not None
        row |= {"p50_ratio": ratio.value, "p50_ratio_low": ratio.low, "p50_ratio_high": ratio.high}


if __name__ == "__main__":
    main()
