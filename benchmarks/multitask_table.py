"""What benchmarks/multitask.py recorded, as rows of its table and as the table of docs/multitask.md."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import common
import numpy as np

WEIGHTINGS = ("fixed", "uncertainty", "gradnorm")
SINGLE = "single task"


class Runs:
    """What was trained, one JSON line each; what is there is not trained again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.found = [json.loads(line) for line in lines]

    def get(self, data: str, seed: int, how: str) -> dict[str, Any] | None:
        wanted = {"data": data, "seed": seed, "how": how}
        return next((r for r in self.found if wanted.items() <= r.items()), None)

    def add(self, run: dict[str, Any]) -> None:
        self.found.append(run)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(run) + "\n")


def rows_of(
    data: str, tasks: Sequence[str], tested: tuple[Any, list[str]], runs: Runs, seeds: tuple[int, ...]
) -> Iterator[common.Row]:
    """One for each task and weighting: drop against the single-task student with a paired cluster bootstrap.

    ``tested``: labels (test pictures, tasks), and their groups. Nothing of what was not run with every seed.
    """
    from distilledge.pipeline import stats

    groups = tested[1] * len(seeds)
    if any(runs.get(data, seed, SINGLE) is None for seed in seeds):
        return
    for task, name in enumerate(tasks):
        labels = np.tile(tested[0][:, task], len(seeds))
        alone = _right(runs, data, seeds, SINGLE, name)
        for how in WEIGHTINGS:
            if any(runs.get(data, seed, how) is None for seed in seeds):
                continue
            multi = _right(runs, data, seeds, how, name)
            drop = stats.paired_drop(alone, multi, labels, metric="accuracy", groups=groups)
            per_seed = [100 * (a.mean() - m.mean()) for a, m in zip(*_by_seed(alone, multi, seeds), strict=True)]
            weights = np.mean([_got(runs, data, s, how)["weights"][task] for s in seeds])
            yield {
                "data": data,
                "task": name,
                "weighting": how,
                "single_task": float(alone.mean()),
                "multi_task": float(multi.mean()),
                "points_below": drop.value,
                "low": drop.low,
                "high": drop.high,
                "by_seed": " ".join(f"{points:+.2f}" for points in per_seed),
                "weight": float(weights),
                "pictures": len(tested[1]),
            }


def _got(runs: Runs, data: str, seed: int, how: str) -> dict[str, Any]:
    run = runs.get(data, seed, how)
    assert run is not None
    return run


def _right(runs: Runs, data: str, seeds: tuple[int, ...], how: str, task: str) -> Any:
    return np.concatenate([np.array(_got(runs, data, s, how)["right"][task], bool) for s in seeds])


def _by_seed(alone: Any, multi: Any, seeds: tuple[int, ...]) -> tuple[Any, Any]:
    return np.split(alone, len(seeds)), np.split(multi, len(seeds))


PAGE = Path(__file__).parents[1] / "docs" / "multitask.md"
BEGIN, END = "<!-- measured -->\n", "<!-- end -->"


def markdown(recorded: dict[str, Any]) -> str:
    """Rows as they are recorded, accuracies in per cent."""
    lines = ["| data | task | weighting | two students | one student | points below | by seed | weight |"]
    lines.append("|---|---|---|---:|---:|---:|---|---:|")
    for r in recorded["rows"]:
        below = f"{r['points_below']:.2f} [{r['low']:.2f}, {r['high']:.2f}]"
        cells = (f"{100 * r['single_task']:.1f}", f"{100 * r['multi_task']:.1f}", below, r["by_seed"])
        lines.append(f"| {r['data']} | {r['task']} | {r['weighting']} | {' | '.join(cells)} | {r['weight']:.2f} |")
    facts = recorded["conditions"]
    pictures = ", ".join(f"{name} {n}" for name, n in {r["data"]: r["pictures"] for r in recorded["rows"]}.items())
    lines += [
        "",
        f"{facts['created'][:10]}, {facts['cpu_model']}, {len(facts['seeds'])} seeds; test pictures: {pictures}. "
        "Points below: of the student of both tasks below that of one, paired by picture and seed, 95 % bootstrap "
        "interval over groups of pictures. Weight: the factor of the task's loss in the kept epoch, mean over seeds.",
    ]
    return "\n".join(lines) + "\n"


def filled(page: str, recorded: dict[str, Any]) -> str:
    before, _, rest = page.partition(BEGIN)
    return before + BEGIN + markdown(recorded) + END + rest.partition(END)[2]
