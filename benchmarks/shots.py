"""Accuracy of heads made of k pictures of each class of x-sdd, on features of two backbones, over repeated draws.

    python benchmarks/shots.py             some minutes on one core, most of them for the features
    python benchmarks/shots.py --quick     MobileNetV1 x 0.25 alone, three draws: labelled so
    python benchmarks/shots.py --markdown  the recorded tables into docs/shots.md, nothing is run

Both backbones have ImageNet weights and are not trained. Every head of a draw is made of the same pictures, and judged
on the same test split. Needs DISTILLEDGE_SHARED.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import common

MODELS = {"deit_tiny_patch16_224": (224, "deit_tiny_patch16_224"), "mobilenetv1_025": (128, "mobilenetv1_025_tfqat")}
"""Model -> pixels of a side, folder of its weights."""
KS = (1, 5, 10, 20)
DRAWS = 20
PAGE = Path(__file__).parents[1] / "docs" / "shots.md"
BEGIN, END = "<!-- measured -->\n", "<!-- end -->"


def recipe_of(model: str) -> Any:
    from distilledge.pipeline.recipe import Recipe

    shared, (size, folder) = os.environ["DISTILLEDGE_SHARED"], MODELS[model]
    return Recipe.model_validate(
        {
            "name": "shots",
            "data": {"path": f"{shared}/data/x-sdd", "columns": {"path": "file"}, "workers": 0},
            "teacher": {
                "model": model,
                "weights": f"{shared}/weights/{folder}/model.safetensors",
                "input": {"size": size},
                "training": {"device": "cpu"},
            },
            "student": {"model": "mobilenetv1_025", "input": {"size": 128}},
        }
    )


def rows_of(model: str, work: Path, ks: tuple[int, ...], draws: int) -> tuple[list[common.Row], dict[str, int]]:
    from distilledge.pipeline.shots import shots

    found = shots(recipe_of(model), work, ks=ks, draws=draws)
    print(f"{model}: done", file=sys.stderr, flush=True)
    made = [
        {
            "model": model,
            "head": shot.head,
            "k": shot.k,
            "accuracy": shot.value,
            "low": shot.low,
            "high": shot.high,
            "draws": " ".join(f"{value:.4f}" for value in shot.draws),
        }
        for shot in found.shots
    ]
    return made, {"test": found.test, "classes": found.classes}


def bars_of(rows: list[common.Row]) -> list[common.Row]:
    """More pictures help every head: the least gain between the fewest and the most, in points."""
    by_head: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        by_head.setdefault((row["model"], row["head"]), []).append(row["accuracy"])
    gain = min(100 * (values[-1] - values[0]) for values in by_head.values())
    return [common.bar("least gain of a head from the fewest to the most pictures, points", gain, 0.0, at_most=False)]


def markdown(recorded: dict[str, Any]) -> str:
    """Heads against k for each model, in per cent, with the interval of the mean."""
    rows, facts = recorded["rows"], recorded["conditions"]
    ks = sorted({row["k"] for row in rows})
    lines = ["| backbone | head | " + " | ".join(f"k = {k}" for k in ks) + " |", "|---|---|" + "---|" * len(ks)]
    for model, head in dict.fromkeys((row["model"], row["head"]) for row in rows):
        own = {row["k"]: row for row in rows if (row["model"], row["head"]) == (model, head)}
        lines.append(f"| {model} | {head} | " + " | ".join(_cell(own.get(k)) for k in ks) + " |")
    lines += [
        "",
        f"{facts['created'][:10]}, {facts['cpu_model']}, {facts['draws']} draws; accuracy on the {facts['test']} test "
        f"pictures of {facts['classes']} classes in per cent: mean and 95 % t-interval over the draws.",
    ]
    return "\n".join(lines) + "\n"


def _cell(row: common.Row | None) -> str:
    return "" if row is None else f"{100 * row['accuracy']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"


def filled(page: str, recorded: dict[str, Any]) -> str:
    before, _, rest = page.partition(BEGIN)
    return before + BEGIN + markdown(recorded) + END + rest.partition(END)[2]


def main() -> None:
    parser = common.arguments(__doc__ or "")
    parser.add_argument("--markdown", action="store_true", help="write the recorded tables into the page and stop")
    parser.add_argument("--work", type=Path, default=None, help="folder of the data and features that are kept")
    options = parser.parse_args()
    if options.markdown:
        recorded = json.loads((options.out / "shots.json").read_text(encoding="utf-8"))
        PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), recorded), encoding="utf-8")
        return
    if "DISTILLEDGE_SHARED" not in os.environ:
        sys.exit("set DISTILLEDGE_SHARED to the folder with data/ and weights/")
    import torch

    torch.set_num_threads(1)
    models = list(MODELS)[1:] if options.quick else list(MODELS)
    ks, draws = ((1, 5), 3) if options.quick else (KS, DRAWS)
    rows: list[common.Row] = []
    counts: dict[str, int] = {}
    with TemporaryDirectory() as place:
        for model in models:
            made, counts = rows_of(model, options.work or Path(place), ks, draws)
            rows += made
    facts = common.conditions(
        quick=options.quick,
        packages=("torch", "timm", "scikit-learn"),
        extra={"draws": draws, "threads": 1, "pixels": {m: MODELS[m][0] for m in models}, **counts},
    )
    common.finish("shots-quick" if options.quick else "shots", facts, rows, bars_of(rows), out=options.out)


if __name__ == "__main__":
    main()
