"""Accuracy by strategy and number of pictures on x-sdd, with intervals over seeds; what the feature cache saves.

    python benchmarks/transfer.py             about a quarter of an hour on one core; goes on from what was run before
    python benchmarks/transfer.py --quick     one seed, two sizes, a few epochs: labelled so
    python benchmarks/transfer.py --cache     what the feature cache saves alone, into the recorded results
    python benchmarks/transfer.py --markdown  the recorded table into docs/transfer.md, nothing is run

The teacher is MobileNetV1 x 0.25 at 64 pixels with its ImageNet weights, small enough to be trained some hundred times.
The test split is always the same; a seed draws the training pictures and the new weights. Needs DISTILLEDGE_SHARED.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import common
import numpy as np

T_95 = {1: float("nan"), 2: 12.706, 3: 4.303}
"""Student's t at 97.5 % for the mean of so many seeds."""
SIDE = 64
SIZES: tuple[int | None, ...] = (5, 20, 100, None)
"""Training pictures of each class at most; None: all."""
EPOCHS = {5: 20, 20: 12, 100: 5, None: 4}
HEAD = {"strategy": "feature-extraction", "lr": 1e-2, "epochs": 60, "batch_size": 64}
SEEDS = (0, 1, 2)
TIMES_FASTER = 20.0
STRATEGIES: dict[str, dict[str, Any]] = {
    "from scratch": {"weights": "none", "lr": 3e-3},
    "knn": {"strategy": {"name": "feature-extraction", "arguments": {"head": "knn", "k": 5}}},
    "linear probe": HEAD,
    "fine-tune": {"lr": 1e-3},
    "top 2 layers": {"strategy": {"name": "fine-tune", "arguments": {"layers": 2}}, "lr": 1e-3},
    "discriminative": {"strategy": "discriminative", "lr": 1e-3},
    "progressive": {"strategy": "progressive", "lr": 1e-3},
    "l2-sp": {"strategy": "l2-sp", "lr": 1e-3},
}


class Data(NamedTuple):
    splits: Any
    directory: Path
    samples: list[Any]


def recipe_of(options: dict[str, Any], epochs: int, seed: int) -> Any:
    from distilledge.pipeline.recipe import Recipe

    shared = os.environ["DISTILLEDGE_SHARED"]
    weights = f"{shared}/weights/mobilenetv1_025_tfqat/model.safetensors"
    return Recipe.model_validate(
        {
            "name": "transfer",
            "seed": seed,
            "data": {"path": f"{shared}/data/x-sdd", "columns": {"path": "file"}, "workers": 0},
            "teacher": {
                "model": "mobilenetv1_025",
                "weights": options.get("weights", weights),
                "input": {"size": SIDE},
                "strategy": options.get("strategy", "fine-tune"),
                "training": {
                    "epochs": options.get("epochs", epochs),
                    "batch_size": options.get("batch_size", 16 if epochs == EPOCHS[5] else 32),
                    "lr": options.get("lr", 1e-3),
                    "select": "last",
                    "device": "cpu",
                },
            },
        }
    )


def prepared(folder: Path) -> Data:
    """The data set as the pipeline audits and splits it."""
    from distilledge.pipeline.data.prepare import prepare
    from distilledge.pipeline.record import read_samples

    directory = folder / "store" / "data-all"
    failed = folder / "failed"
    for made in (directory, failed):
        made.mkdir(parents=True)
    recipe = recipe_of({}, 1, 0)
    splits = prepare(recipe.data, bit_depth=8, seed=0, out=directory, unlabelled=None, failed=failed)
    return Data(splits, directory, read_samples(directory))


def part(data: Data, size: int | None, seed: int) -> tuple[Path, int]:
    """A data directory with ``size`` training pictures of each class, and how many that are.

    One picture of each class is left to validate on, which the loop asks for; the last epoch is kept, so none chooses.
    """
    random = np.random.default_rng((seed, size or 0))
    kept = []
    for split, most in (("train", size), ("validation", 1)):
        samples = [s for s in data.samples if s.split == split]
        for label in range(len(data.splits.classes)):
            own = [s for s in samples if s.label == label]
            order = random.permutation(len(own))[: most or len(own)]
            kept += [own[i] for i in sorted(order)]
    directory = data.directory.parent / f"data-{size}-{seed}"
    directory.mkdir(exist_ok=True)
    lines = "".join(json.dumps(s._asdict()) + "\n" for s in kept)
    (directory / "samples.jsonl").write_text(lines, encoding="utf-8")
    return directory, sum(s.split == "train" for s in kept)


def accuracy_of(data: Data, checkpoint: Any, out: Path) -> float:
    """On the test split, with the device's own preprocessing."""
    import torch

    from distilledge.models.metrics import accuracy, top1
    from distilledge.pipeline import checkpoint as checkpoints
    from distilledge.pipeline.training.views import ToInput, evaluation_batches

    spec = checkpoints.spec(checkpoint)
    model, to_input = checkpoints.load(checkpoint, out), ToInput(spec)
    test = [s for s in data.samples if s.split == "test"]
    with torch.inference_mode():
        batches = list(evaluation_batches(test, Path(data.splits.root), spec, 64))
        logits = torch.cat([model(to_input(pictures)) for pictures, _ in batches]).numpy()
    return accuracy(top1(logits), np.array([s.label for s in test]))


def train(data: Data, name: str, size: int | None, seed: int, *, folder: Path, epochs: int) -> dict[str, float]:
    from distilledge.pipeline.training.events import silent
    from distilledge.pipeline.training.teacher import finetune

    directory, pictures = part(data, size, seed)
    out = folder / f"{name}-{size}-{seed}"
    (out / "partial").mkdir(parents=True)
    started = time.perf_counter()
    recipe = recipe_of(STRATEGIES[name], epochs, seed)
    made = finetune(recipe, data.splits, directory, out, out / "partial", silent)
    seconds = time.perf_counter() - started
    found = accuracy_of(data, made, out)
    print(f"{name}, {size or 'all'}, seed {seed}: {found:.3f} in {seconds:.0f} s", file=sys.stderr, flush=True)
    return {"accuracy": found, "seconds": seconds, "pictures": pictures}


def row(name: str, size: int | None, runs: list[dict[str, float]]) -> common.Row:
    """Mean over seeds with Student's 95 % interval."""
    values = np.array([run["accuracy"] for run in runs])
    spread = values.std(ddof=1) if len(values) > 1 else float("nan")
    half = T_95[len(values)] * spread / np.sqrt(len(values))
    none = not np.isfinite(half)
    return {
        "strategy": name,
        "per_class": "all" if size is None else str(size),
        "pictures": int(runs[0]["pictures"]),
        "accuracy": float(values.mean()),
        "low": None if none else float(max(0.0, values.mean() - half)),
        "high": None if none else float(min(1.0, values.mean() + half)),
        "seeds": " ".join(f"{v:.3f}" for v in values),
        "seconds": float(np.mean([run["seconds"] for run in runs])),
    }


def cache_ratio(data: Data, folder: Path, rounds: int) -> tuple[float, float, float]:
    """Medians of seconds: one pass of the backbone over the training pictures, one epoch of the head with its
    validation; and their ratio.

    Both on pictures and features in memory, taken in turns, so that other load meets both.
    """
    import torch

    from distilledge.models import vision
    from distilledge.models.neighbours import Features
    from distilledge.pipeline import checkpoint as checkpoints
    from distilledge.pipeline.training.events import silent
    from distilledge.pipeline.training.teacher import finetune
    from distilledge.pipeline.training.views import ToInput, evaluation_batches

    recipe = recipe_of({**HEAD, "epochs": 5}, 5, 0)
    spec = checkpoints.input_spec(recipe.teacher.input, recipe.data, vision.input_defaults(recipe.teacher.model))
    train_samples = [s for s in data.samples if s.split == "train"]
    batches = [p for p, _ in evaluation_batches(train_samples, Path(data.splits.root), spec, 64)]
    weights = Path(recipe.teacher.weights)
    model = vision.create("mobilenetv1_025", classes=len(data.splits.classes), size=SIDE, weights=str(weights))
    features, to_input = Features(model.eval()), ToInput(spec)
    passes, epochs = [], []
    directory, _ = part(data, None, 0)
    for number in range(rounds):
        started = time.perf_counter()
        with torch.inference_mode():
            for pictures in batches:
                features(to_input(pictures))
        passes.append(time.perf_counter() - started)
        out = folder / f"ratio-{number}"
        (out / "partial").mkdir(parents=True)
        finetune(recipe, data.splits, directory, out, out / "partial", silent)
        lines = (out / "curves.jsonl").read_text(encoding="utf-8").splitlines()
        epochs += [json.loads(line)["seconds"] for line in lines]
    slow, fast = float(np.median(passes)), float(np.median(epochs))
    return slow, fast, slow / fast


class Runs:
    """Trainings as they were recorded, one JSON line each; a run that is there is not redone."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.found = [json.loads(line) for line in lines]

    def get(self, name: str, size: int | None, seed: int) -> dict[str, Any] | None:
        wanted = {"strategy": name, "per_class": size, "seed": seed}
        return next((r for r in self.found if wanted.items() <= r.items()), None)

    def add(self, name: str, size: int | None, seed: int, made: dict[str, float]) -> None:
        self.found.append({"strategy": name, "per_class": size, "seed": seed, **made})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("".join(json.dumps(r) + "\n" for r in self.found), encoding="utf-8")

    def rows(self, seeds: Sequence[int]) -> list[common.Row]:
        """Of what was run with every seed."""
        made = []
        for size in SIZES:
            for name in STRATEGIES:
                own = [r for s in seeds if (r := self.get(name, size, s)) is not None]
                made += [row(name, size, own)] if len(own) == len(seeds) else []
        return made


PAGE = Path(__file__).parents[1] / "docs" / "transfer.md"
BEGIN, END = "<!-- measured -->\n", "<!-- end -->"


def markdown(recorded: dict[str, Any]) -> str:
    """Strategies against sizes, in per cent, with the interval of the mean."""
    rows = recorded["rows"]
    sizes = list(dict.fromkeys(r["per_class"] for r in rows))
    cells = {(r["strategy"], r["per_class"]): r for r in rows}
    lines = ["| strategy | " + " | ".join(f"{s} per class" if s != "all" else "all" for s in sizes) + " |"]
    lines.append("|---|" + "---|" * len(sizes))
    for name in dict.fromkeys(r["strategy"] for r in rows):
        lines.append(f"| {name} | " + " | ".join(_cell(cells.get((name, size))) for size in sizes) + " |")
    facts = recorded["conditions"]
    ratio = recorded["bars"][0]["value"]
    lines += [
        "",
        f"{facts['created'][:10]}, {facts['cpu_model']}, {facts['threads']} thread, {len(facts['seeds'])} seeds; test "
        "accuracy in per cent, mean and 95 % t-interval over the seeds, the same test pictures throughout. One pass of "
        f"the backbone over the {facts['train_pictures']} training pictures: {facts['backbone_pass_seconds']:.2f} s; "
        f"one epoch of the head on cached features, with its validation: {facts['head_epoch_seconds']:.3f} s, "
        f"{ratio:.0f} times less (measured {facts.get('cache', facts)['created'][:10]}).",
    ]
    return "\n".join(lines) + "\n"


def _cell(found: common.Row | None) -> str:
    if found is None:
        return "not run"
    return f"{100 * found['accuracy']:.1f} [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"


def fill_page(out: Path) -> None:
    recorded = json.loads((out / "transfer.json").read_text(encoding="utf-8"))
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    PAGE.write_text(before + BEGIN + markdown(recorded) + END + rest.partition(END)[2], encoding="utf-8")


def cache_alone(out: Path) -> None:
    """The ratio measured anew, beside rows that stay; its own date is recorded."""
    path = out / "transfer.json"
    recorded = json.loads(path.read_text(encoding="utf-8"))
    with TemporaryDirectory() as place:
        slow, fast, ratio = cache_ratio(prepared(Path(place)), Path(place), 5)
    now = common.conditions(quick=False)
    recorded["conditions"] |= {"backbone_pass_seconds": slow, "head_epoch_seconds": fast}
    recorded["conditions"]["cache"] = {key: now[key] for key in ("created", "cpu_model", "load")}
    recorded["bars"] = [common.bar("backbone pass over head epoch", ratio, TIMES_FASTER, at_most=False)]
    path.write_text(json.dumps(recorded, indent=1) + "\n", encoding="utf-8")
    print(f"backbone pass {slow:.2f} s, head epoch {fast:.4f} s: {ratio:.1f} times less; written: {path}")
    sys.exit(0 if recorded["bars"][0]["holds"] else common.GATE_FAILED)


def main() -> None:
    parser = common.arguments(__doc__ or "")
    parser.add_argument("--cache", action="store_true", help="what the feature cache saves alone, into the results")
    parser.add_argument("--markdown", action="store_true", help="write the recorded table into the page and stop")
    parser.add_argument("--runs", type=Path, default=None, help="file of the trainings that were run before")
    parser.add_argument("--sizes", nargs="+", choices=["5", "20", "100", "all"], help="run these, record all there are")
    options = parser.parse_args()
    if options.markdown:
        fill_page(options.out)
        return
    if "DISTILLEDGE_SHARED" not in os.environ:
        sys.exit("set DISTILLEDGE_SHARED to the folder with data/ and weights/")
    import torch

    torch.set_num_threads(1)
    if options.cache:
        cache_alone(options.out)
    name = "transfer-quick" if options.quick else "transfer"
    sizes, seeds = ((5, 20), SEEDS[:1]) if options.quick else (SIZES, SEEDS)
    with TemporaryDirectory() as place:
        folder = Path(place)
        runs = Runs(options.runs or folder / "runs.jsonl")
        data = prepared(folder)
        slow, fast, ratio = cache_ratio(data, folder, 1 if options.quick else 5)
        if options.sizes:
            sizes = tuple(size for size in sizes if str(size or "all") in options.sizes)
        for size, strategy, seed in product(sizes, STRATEGIES, seeds):
            if runs.get(strategy, size, seed) is None:
                epochs = 4 if options.quick else EPOCHS[size]
                runs.add(strategy, size, seed, train(data, strategy, size, seed, folder=folder, epochs=epochs))
        rows = runs.rows(seeds)
    facts = common.conditions(
        quick=options.quick,
        packages=("torch", "timm", "accelerate"),
        extra={"model": "mobilenetv1_025", "size": SIDE, "seeds": list(seeds), "threads": 1}
        | {"train_pictures": sum(s.split == "train" for s in data.samples)}
        | {"backbone_pass_seconds": slow, "head_epoch_seconds": fast},
    )
    bars = [common.bar("backbone pass over head epoch", ratio, TIMES_FASTER, at_most=False)]
    common.finish(name, facts, rows, bars, out=options.out)


if __name__ == "__main__":
    main()
