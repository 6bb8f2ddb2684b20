"""What a teacher forgets of its source while it learns a target, by strategy, with intervals over seeds.

    python benchmarks/forgetting.py           some minutes on one core; --runs FILE goes on from what was run before
    python benchmarks/forgetting.py --quick   one seed, two strategies, one epoch: labelled so

Source: six classes of CIFAR-10, learned by MobileNetV1 x 0.25 at 48 pixels from its ImageNet weights. Target: the
other four. After it the source's own head is put back on the new backbone. BatchNorm statistics are frozen throughout.
A lower learning rate forgets less too: plain fine-tuning has one as a control. Needs DISTILLEDGE_SHARED.
"""

from __future__ import annotations

import csv
import json
import os
import sys
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import common
import numpy as np
from transfer import T_95, Data, accuracy_of

SIDE, SEEDS, TESTED = 48, tuple(range(8)), 100
SOURCE = ("airplane", "automobile", "bird", "cat", "deer", "dog")
TARGET = ("frog", "horse", "ship", "truck")
"""Not as many as the source's: the target's head must not start from the source's."""
PER_CLASS = {"source": 200, "target": 120}
EPOCHS = {"source": 4, "target": 4}
EQUAL = 1.0
"""Points of target accuracy that a strategy may lie below fine-tuning to be called equal."""
FROZEN = {"batch_norm": "frozen"}
STRATEGIES: dict[str, dict[str, Any]] = {
    "fine-tune": {"strategy": "fine-tune", "training": FROZEN},
    "fine-tune, a quarter of the lr": {"strategy": "fine-tune", "training": {**FROZEN, "lr": 2.5e-3}},
    "l2-sp 1": {"strategy": "l2-sp", "arguments": {"alpha": 1.0, "beta": 0.01}, "training": FROZEN},
    "ewc 10": {"strategy": "ewc", "arguments": {"strength": 10.0, "samples": 200}, "training": FROZEN},
    "ewc 100": {"strategy": "ewc", "arguments": {"strength": 100.0, "samples": 200}, "training": FROZEN},
}
PLAIN, KEEPING = "fine-tune", ("l2-sp 1", "ewc 10", "ewc 100")


def made_set(folder: Path, classes: tuple[str, ...], per_class: int, seed: int) -> Path:
    """A manifest of some classes: ``TESTED`` test pictures, ``per_class`` to learn from, 10 to validate on."""
    shared = Path(os.environ["DISTILLEDGE_SHARED"]) / "data" / "cifar10-subset"
    rows = [r for r in csv.DictReader((shared / "splits.csv").open(encoding="utf-8")) if r["label"] in classes]
    random, lines = np.random.default_rng(seed), ["path,label,split"]
    for label in classes:
        own = [r for r in rows if r["label"] == label and r["split"] == "train"]
        drawn = [own[i]["file"] for i in random.permutation(len(own))[: per_class + 10]]
        lines += [f"{file},{label},{'train' if i < per_class else 'validation'}" for i, file in enumerate(drawn)]
        lines += [f"{r['file']},{label},test" for r in rows if r["label"] == label and r["split"] == "test"][:TESTED]
    folder.mkdir(parents=True)
    (folder / "images").symlink_to(shared / "images")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def prepared(data: Path, seed: int) -> Data:
    """As the pipeline audits it; once for each set."""
    from distilledge.pipeline.data.prepare import prepare
    from distilledge.pipeline.record import Splits, read_samples

    out, failed = data / "store" / "data", data / "failed"
    if not out.exists():
        out.mkdir(parents=True)
        failed.mkdir()
        splits = prepare(_recipe(data, {}, seed).data, bit_depth=8, seed=seed, out=out, unlabelled=None, failed=failed)
        (out / "splits.json").write_text(splits.model_dump_json(), encoding="utf-8")
    splits = Splits.model_validate_json((out / "splits.json").read_bytes())
    return Data(splits, out, read_samples(out))


def _recipe(data: Path, teacher: dict[str, Any], seed: int) -> Any:
    from distilledge.pipeline.recipe import Recipe

    settings = {"batch_size": 32, "optimizer": "sgd", "lr": 1e-2, "weight_decay": 1e-4, "select": "last"}
    training = {**settings, "device": "cpu", **teacher.get("training", {})}
    own = {"model": "mobilenetv1_025", "input": {"size": SIDE}, **teacher, "training": training}
    place = {"path": str(data), "workers": 0, "allow_leakage": True, "min_size": 8}
    return Recipe.model_validate({"name": "forgetting", "seed": seed, "data": place, "teacher": own})


def trained(pictures: Path, out: Path, teacher: dict[str, Any], seed: int) -> tuple[Any, float]:
    """The checkpoint of a teacher, and its accuracy on the test part of its own data."""
    from distilledge.pipeline.training.events import silent
    from distilledge.pipeline.training.teacher import finetune

    data = prepared(pictures, seed)
    for made in (out / "model", out / "partial"):
        made.mkdir(parents=True)
    recipe = _recipe(pictures, teacher, seed)
    made = finetune(recipe, data.splits, data.directory, out / "model", out / "partial", silent)
    (out / "model" / "value.json").write_text(made.model_dump_json(), encoding="utf-8")
    return made, accuracy_of(data, made, out / "model")


class Bench:
    """A folder of one process; the source's models are trained once for each seed."""

    def __init__(self, folder: Path, epochs: dict[str, int]) -> None:
        self.folder, self.epochs = folder, epochs

    def source(self, seed: int) -> tuple[Path, Path]:
        """Weights and pictures."""
        pictures, out = self.folder / f"source-{seed}", self.folder / f"source-model-{seed}"
        if not out.exists():
            made_set(pictures, SOURCE, PER_CLASS["source"], seed)
            imagenet = f"{os.environ['DISTILLEDGE_SHARED']}/weights/mobilenetv1_025_tfqat/model.safetensors"
            teacher = {"weights": imagenet, "training": {"epochs": self.epochs["source"]}}
            _, accuracy = trained(pictures, out, teacher, seed)
            print(f"source, seed {seed}: {accuracy:.3f}", file=sys.stderr, flush=True)
        return out / "model" / "model.safetensors", pictures

    def run(self, name: str, options: dict[str, Any], seed: int) -> common.Row:
        weights, pictures = self.source(seed)
        target = self.folder / f"target-{seed}"
        if not target.exists():
            made_set(target, TARGET, PER_CLASS["target"], seed + 100)
        arguments = {"source": str(pictures), **options.get("arguments", {})}
        teacher = {
            "weights": str(weights),
            "strategy": {"name": options["strategy"], "arguments": arguments},
            "training": {"epochs": self.epochs["target"], **options["training"]},
        }
        out = self.folder / f"run-{len(list(self.folder.iterdir()))}"
        made, accuracy = trained(target, out, teacher, seed)
        kept = made.source
        found = {"target": accuracy, "before": kept.before.value, "after": kept.after.value, "pictures": kept.samples}
        print(f"{name}, seed {seed}: {found}", file=sys.stderr, flush=True)
        return {"strategy": name, "seed": seed, **found}


class Runs:
    """Trainings as they were recorded, a JSON line each; one that is there is not redone."""

    def __init__(self, bench: Bench, path: Path | None) -> None:
        self.bench, self.path = bench, path
        there = path is not None and path.exists()
        self.found = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path and there else []

    def get(self, name: str, options: dict[str, Any], seed: int) -> common.Row:
        for row in self.found:
            if (row["strategy"], row["options"], row["seed"]) == (name, options, seed):
                return dict(row)
        made = {**self.bench.run(name, options, seed), "options": options}
        self.found.append(made)
        if self.path is not None:
            self.path.write_text("".join(json.dumps(row) + "\n" for row in self.found), encoding="utf-8")
        return made


def interval(values: list[float]) -> tuple[float, float | None, float | None]:
    """Mean in points with Student's 95 % interval over the seeds."""
    points = 100 * np.array(values)
    if len(points) < 2:
        return float(points.mean()), None, None
    half = {**T_95, 8: 2.365}[len(points)] * points.std(ddof=1) / np.sqrt(len(points))
    return float(points.mean()), float(points.mean() - half), float(points.mean() + half)


def rows_of(runs: list[common.Row], names: list[str], seeds: tuple[int, ...]) -> list[common.Row]:
    """Accuracies, and the paired differences from plain fine-tuning, seed by seed."""
    found = {(r["strategy"], r["seed"]): r for r in runs}
    made = []
    for name in names:
        own = [found[name, seed] for seed in seeds]
        row: common.Row = {"strategy": name, "before": 100 * float(np.mean([r["before"] for r in own]))}
        for key in ("target", "after"):
            row |= dict(zip((key, f"{key}_low", f"{key}_high"), interval([r[key] for r in own]), strict=True))
            plain = [r[key] - found[PLAIN, r["seed"]][key] for r in own]
            row |= dict(zip((f"{key}_gain", f"{key}_gain_low", f"{key}_gain_high"), interval(plain), strict=True))
        made.append(row)
    return made


def bars_of(rows: list[common.Row]) -> list[common.Row]:
    """Of the best strategy that is level with fine-tuning on the target: the lower end of what it keeps more."""
    level = [r for r in rows if r["strategy"] in KEEPING and r["target_gain"] >= -EQUAL]
    best = max(level, key=lambda r: r["after_gain"], default=None)
    named = f" ({best['strategy']})" if best else ""
    low = float("nan") if best is None else best["after_gain_low"]
    target = float("nan") if best is None else best["target_gain"]
    return [
        common.bar(f"points of target accuracy above fine-tuning{named}", target, -EQUAL, at_most=False),
        common.bar(f"points of the source kept more, lower end{named}", float("nan") if low is None else low, 0.0)
        | {"holds": low is not None and low > 0},
    ]


def main() -> None:
    parser = common.arguments(__doc__ or "")
    parser.add_argument("--runs", type=Path, default=None, help="file of the trainings that were run before")
    options = parser.parse_args()
    if "DISTILLEDGE_SHARED" not in os.environ:
        sys.exit("set DISTILLEDGE_SHARED to the folder with data/ and weights/")
    import torch

    torch.set_num_threads(1)
    seeds, epochs = (SEEDS[:1], {"source": 1, "target": 1}) if options.quick else (SEEDS, EPOCHS)
    names = [PLAIN, "l2-sp 1"] if options.quick else list(STRATEGIES)
    with TemporaryDirectory() as place:
        runs = Runs(Bench(Path(place), epochs), options.runs)
        made = [runs.get(name, STRATEGIES[name], seed) for seed, name in product(seeds, names)]
    rows = rows_of(made, names, seeds)
    extra = {"model": "mobilenetv1_025", "size": SIDE, "seeds": list(seeds), "threads": 1, "per_class": PER_CLASS}
    extra |= {"epochs": epochs, "test_pictures": made[0]["pictures"], "settings": {n: STRATEGIES[n] for n in names}}
    facts = common.conditions(quick=options.quick, packages=("torch", "timm", "accelerate"), extra=extra)
    name = "forgetting-quick" if options.quick else "forgetting"
    common.finish(name, facts, rows, bars_of(rows), out=options.out)


if __name__ == "__main__":
    main()
