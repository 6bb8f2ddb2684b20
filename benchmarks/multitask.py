"""One student of two tasks against two students of one: same size, epochs, seeds, pictures and teacher.

    python benchmarks/multitask.py           some ten minutes on one core; goes on from what was run before (--runs)
    python benchmarks/multitask.py --quick   the generated set, one seed, a few epochs: labelled so

Two data sets. ``x-sdd``: real pictures of hot-rolled steel; they have one label column, so the second task, the family
of the defect, is DERIVED from it (``FAMILIES``). ``synthetic``: the generated surfaces, whose defect and texture are
independent. Both sides of a comparison see the same splits and are distilled from one teacher of two tasks, a student
of one task from that task's columns of it. Compared on the test split in torch, in points of accuracy, paired by
picture and seed. Needs DISTILLEDGE_SHARED.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import common
import numpy as np
from multitask_table import PAGE, SINGLE, WEIGHTINGS, Runs, filled, rows_of

SEEDS = (0, 1, 2)
WITHIN = 1.0
"""Points that the multi-task student may lie below the single-task one."""
TEACHER_SIDE, STUDENT_SIDE = 64, 48
EPOCHS = {"x-sdd": (5, 6), "synthetic": (10, 12)}
"""Of the teacher and the student."""
FAMILIES = {
    "finishing_roll_printing": "mechanical",
    "surface_scratch": "mechanical",
    "iron_sheet_ash": "foreign",
    "slag_inclusion": "foreign",
    "oxide_scale_of_plate_system": "scale",
    "oxide_scale_of_temperature_system": "scale",
    "red_iron": "scale",
}
TASKS = {"x-sdd": ("defect", "family"), "synthetic": ("defect", "texture")}


class Set(NamedTuple):
    """A data stage of two tasks, and one of each task alone, of the same pictures and splits."""

    name: str
    stages: dict[str, tuple[Any, Path]]
    """By task, ``both`` for two: splits and directory."""
    labels: Any
    """(test pictures, 2)."""
    tested: list[Any]


def recipe_of(name: str, seed: int, weighting: str, epochs: tuple[int, int], data: dict[str, Any]) -> Any:
    from distilledge.pipeline.recipe import Recipe

    weights = f"{os.environ['DISTILLEDGE_SHARED']}/weights/mobilenetv1_025_tfqat/model.safetensors"
    augment = {"crop_scale": [0.8, 1.0], "vertical_flip": 0.5}

    def part(side: int, count: int) -> dict[str, Any]:
        training = {"epochs": count, "batch_size": 32, "lr": 2e-3, "device": "cpu", "augment": augment}
        return {"model": "mobilenetv1_025", "weights": weights, "input": {"size": side}, "training": training}

    return Recipe.model_validate(
        {
            "name": f"multitask-{name}",
            "seed": seed,
            "data": data,
            "teacher": part(TEACHER_SIDE, epochs[0]),
            "student": part(STUDENT_SIDE, epochs[1]),
            "multitask": {"weighting": weighting},
        }
    )


def data_of(name: str, folder: Path, *, quick: bool) -> dict[str, Any]:
    """The recipe's data section."""
    first, second = TASKS[name]
    if name == "synthetic":
        generated = {"per_class": 40 if quick else 80, "size": 64, "difficulty": 0.1}
        return {"synthetic": generated, "columns": {"labels": {first: "label", second: "texture"}}}
    real = Path(os.environ["DISTILLEDGE_SHARED"]) / "data" / "x-sdd"
    header, *lines = (real / "splits.csv").read_text(encoding="utf-8").splitlines()
    columns = header.split(",")
    file, label = columns.index("file"), columns.index("label")
    rows = [line.split(",") for line in lines]
    made = [",".join([str(real / r[file]), *r[1:], FAMILIES[r[label]]]) for r in rows]
    manifest = folder / "manifest.csv"
    manifest.write_text("\n".join([",".join([*columns, second]), *made]) + "\n", encoding="utf-8")
    return {"path": str(manifest), "columns": {"path": "file", "labels": {first: "label", second: second}}}


def prepared(name: str, folder: Path, *, quick: bool) -> tuple[Set, dict[str, Any]]:
    from distilledge.pipeline.data.labels import read_labels
    from distilledge.pipeline.data.prepare import prepare
    from distilledge.pipeline.record import read_samples

    both = folder / name / "both"
    both.mkdir(parents=True)
    data = data_of(name, folder / name, quick=quick)
    recipe = recipe_of(name, 0, "fixed", (1, 1), data)
    splits = prepare(recipe.data, bit_depth=8, seed=0, out=both)
    splits = splits.model_copy(update={"root": str(both) if splits.root == "." else splits.root})
    samples = read_samples(both)
    labels = read_labels(both, samples)
    stages: dict[str, tuple[Any, Path]] = {"both": (splits, both)}
    for number, head in enumerate(splits.heads):
        alone = folder / name / head.name
        alone.mkdir()
        own = [s._replace(label=int(label)) for s, label in zip(samples, labels[:, number], strict=True)]
        (alone / "samples.jsonl").write_text("".join(json.dumps(s._asdict()) + "\n" for s in own), encoding="utf-8")
        stages[head.name] = splits.model_copy(update={"classes": head.classes, "heads": ()}), alone
    tested = [s for s in samples if s.split == "test"]
    return Set(name, stages, read_labels(both, tested), tested), data


def answers(found: Set, checkpoint: Any, out: Path) -> Any:
    """Logits (test pictures, classes), with the device's own preprocessing."""
    import torch

    from distilledge.pipeline import checkpoint as checkpoints
    from distilledge.pipeline.training.views import ToInput, evaluation_batches

    spec = checkpoints.spec(checkpoint)
    model, to_input = checkpoints.load(checkpoint, out), ToInput(spec)
    with torch.inference_mode():
        batches = evaluation_batches(found.tested, Path(found.stages["both"][0].root), spec, 64)
        return torch.cat([model(to_input(pictures)) for pictures, _ in batches]).numpy()


def teach(found: Set, recipe: Any, folder: Path) -> dict[str, tuple[Any, Path]]:
    """One teacher of both tasks, and it as a teacher of each alone: the same network, its other columns cut off."""
    import torch
    from safetensors.torch import load_file

    from distilledge.models.heads import spans
    from distilledge.pipeline.checkpoint import save_weights
    from distilledge.pipeline.training.events import silent
    from distilledge.pipeline.training.teacher import finetune

    splits, directory = found.stages["both"]
    out = folder / f"{found.name}-teacher"
    (out / "partial").mkdir(parents=True)
    both = finetune(recipe, splits, directory, out, out / "partial", silent)
    taught = {"both": (both, out)}
    state = load_file(out / "model.safetensors")
    for head, columns in zip(splits.heads, spans(splits.heads), strict=True):
        alone = folder / f"{found.name}-teacher-{head.name}"
        alone.mkdir()
        own: dict[str, torch.Tensor] = {
            name: tensor[columns] if name.startswith("classifier.") else tensor for name, tensor in state.items()
        }
        digest = save_weights(own, alone)
        cut = {"classes": head.classes, "heads": (), "weights_sha256": digest}
        taught[head.name] = both.model_copy(update=cut), alone
    return taught


def train(found: Set, recipe: Any, what: str, taught: tuple[Any, Path], out: Path) -> tuple[Any, list[float]]:
    """Logits of the student, and the weights of its losses at the end. ``what``: a task, or ``both``."""
    from distilledge.pipeline.training.distill import distill
    from distilledge.pipeline.training.events import silent

    splits, directory = found.stages[what]
    (out / "partial").mkdir(parents=True)
    made = distill(recipe, splits, directory, taught, out, partial=out / "partial", report=silent)
    return answers(found, made, out), [made.validation.get(f"weight.{head.name}", 1.0) for head in splits.heads]


def right(found: Set, task: int, logits: Any, *, joint: bool) -> list[bool]:
    """Which test pictures are answered right."""
    from distilledge.models.heads import spans

    columns = spans(found.stages["both"][0].heads)[task] if joint else slice(None)
    answered: list[bool] = (logits[:, columns].argmax(1) == found.labels[:, task]).tolist()
    return answered


class Bench(NamedTuple):
    found: Set
    data: dict[str, Any]
    epochs: tuple[int, int]
    folder: Path
    taught: dict[str, tuple[Any, Path]]
    """Filled when it is first needed."""


def run_all(bench: Bench, seeds: tuple[int, ...], runs: Runs, hows: tuple[str, ...]) -> None:
    """What is not in ``runs`` yet."""
    found, data, epochs, folder, taught = bench
    left = [(how, seed) for seed in seeds for how in hows if runs.get(found.name, seed, how) is None]
    if left and not taught:
        taught.update(teach(found, recipe_of(found.name, 0, "fixed", epochs, data), folder))
    for how, seed in left:
        started = time.perf_counter()
        recipe = recipe_of(found.name, seed, how if how != SINGLE else "fixed", epochs, data)
        if how == SINGLE:
            recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"columns": no_tasks()})})
        answered: dict[str, list[bool]] = {}
        weights: list[float] = []
        for what in TASKS[found.name] if how == SINGLE else ("both",):
            out = folder / f"{found.name}-{seed}-{how}-{what}".replace(" ", "-")
            logits, weights = train(found, recipe, what, taught[what], out)
            for task, name in enumerate(TASKS[found.name]):
                if what in (name, "both"):
                    answered[name] = right(found, task, logits, joint=how != SINGLE)
        seconds = time.perf_counter() - started
        shown = ", ".join(f"{name} {np.mean(answered[name]):.3f}" for name in TASKS[found.name])
        print(f"{found.name}, seed {seed}, {how}: {shown} in {seconds:.0f} s", file=sys.stderr, flush=True)
        one = {"data": found.name, "seed": seed, "how": how, "seconds": seconds, "weights": weights}
        runs.add({**one, "right": {name: [int(r) for r in answered[name]] for name in TASKS[found.name]}})


def no_tasks() -> Any:
    from distilledge.pipeline.recipe import Columns

    return Columns()


def main() -> None:
    parser = common.arguments(__doc__ or "")
    parser.add_argument("--only-recorded", action="store_true", help="train nothing: the rows of what was run")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), choices=(1, 2, 3), help="the first so many")
    parser.add_argument("--runs", type=Path, default=None, help="file of the trainings that were run before")
    parser.add_argument("--markdown", action="store_true", help="the recorded table into docs/multitask.md, no run")
    options = parser.parse_args()
    if options.markdown:
        recorded = json.loads((options.out / "multitask.json").read_text(encoding="utf-8"))
        PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), recorded), encoding="utf-8")
        return
    if "DISTILLEDGE_SHARED" not in os.environ:
        sys.exit("set DISTILLEDGE_SHARED to the folder with data/ and weights/")
    import torch

    torch.set_num_threads(1)
    seeds = SEEDS[: 1 if options.quick else options.seeds]
    rows: list[common.Row] = []
    with TemporaryDirectory() as place:
        folder = Path(place)
        runs = Runs(options.runs or folder / "runs.jsonl")
        benches = []
        for name in TASKS if not options.quick else ("synthetic",):
            if options.only_recorded and not any(run["data"] == name for run in runs.found):
                continue
            found, data = prepared(name, folder, quick=options.quick)
            benches.append(Bench(found, data, (2, 2) if options.quick else EPOCHS[name], folder, {}))
        for hows in ((SINGLE, "fixed"), WEIGHTINGS[1:]) if not options.only_recorded else ():
            for bench in benches:
                run_all(bench, seeds, runs, hows)
        for bench in benches:
            tested = bench.found.labels, [s.group for s in bench.found.tested]
            rows += rows_of(bench.found.name, TASKS[bench.found.name], tested, runs, seeds)
    facts = common.conditions(
        quick=options.quick,
        packages=("torch", "timm", "accelerate"),
        extra={"teacher": f"mobilenetv1_025 at {TEACHER_SIDE} px", "student": f"mobilenetv1_025 at {STUDENT_SIDE} px"}
        | {"seeds": list(seeds), "threads": 1, "epochs": EPOCHS, "derived": "x-sdd family is derived from its label"},
    )
    bars = [
        common.bar(f"{r['data']}, {r['task']}: points below single-task", r["points_below"], WITHIN)
        for r in rows
        if r["weighting"] == "fixed"
    ]
    common.finish("multitask-quick" if options.quick else "multitask", facts, rows, bars, out=options.out)


if __name__ == "__main__":
    main()
