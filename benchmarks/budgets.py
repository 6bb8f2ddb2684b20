"""The budget is honoured: 20 random budgets and seeds on a small model with the quantization ladder, each run for real.

    python benchmarks/budgets.py             all; what is in the store of --work is not redone
    python benchmarks/budgets.py --quick     three of them on fewer pictures, labelled so

MobileNetV1 x 0.25 at 64 pixels on the generated set (SYNTHETIC). A combination draws a seed (of the data's splits and
of the training), a runtime, and limits around what can be reached; some cannot be. Either the run ends with 0 and what
shipped.json names keeps every limit, or it ends otherwise and nothing is named. What is named is looked at again here:
its bytes, and its answers to the test pictures, by plain numpy.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import common
import numpy as np

RUNTIMES = ("onnx", "openvino", "tflite")
PACKAGES = ("torch", "timm", "onnxruntime", "openvino", "nncf", "ai-edge-litert", "ai-edge-quantizer")
COMBINATIONS, SEEDS = 20, 4
ALLOWED = {0: "shipped", 5: "refused", 10: "undecided"}
"""Exit code -> what came of the run."""
INTERRUPTED = (130, 143)
RECIPE = """\
schema: 1
name: {name}
seed: {seed}
data:
  path: synthetic
  synthetic: {{per_class: {per_class}, size: 64, difficulty: {difficulty}}}
  splits: {{train: 0.4, validation: 0.2, test: 0.4}}
  calibration: 64
teacher:
  model: mobilenetv1_050
  input: {{size: 64}}
  training: {{epochs: {epochs}, batch_size: 16, lr: 3e-3, ema: 0.95}}
student:
  model: mobilenetv1_025
  input: {{size: 64}}
  training: {{epochs: {epochs}, batch_size: 16, lr: 5e-3, ema: 0.95}}
distill: {{control: false}}
compress: {{climb: true}}
export:
  teacher_precisions: [fp32]
  targets: [{{runtime: {runtime}, precisions: [fp32, w8a8]}}]
verify: {{samples: 32, min_agreement_int8: 0.5, min_agreement_fp16: 0.5, min_cosine_int8: 0.5}}
measure: {{quick: true, end_to_end: 0, warmup: 5}}
budgets:
  default: {budget}
"""


class Drawn(NamedTuple):
    number: int
    seed: int
    runtime: str
    budget: dict[str, float | None]


def main() -> None:
    parser = common.arguments(__doc__ or "")
    parser.add_argument("--work", type=Path, default=Path("distilledge-work"))
    options = parser.parse_args()
    drawn = [draw(number) for number in range(3 if options.quick else COMBINATIONS)]
    rows = []
    for one in drawn:
        rows.append(row(one, options))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    facts = common.conditions(quick=options.quick, packages=PACKAGES, extra={"synthetic": True, "note": NOTE})
    common.finish("budgets-quick" if options.quick else "budgets", facts, rows, bars(rows), out=options.out)


NOTE = "latency limits are judged by each run's own quick measurement; sizes and answers of shipped files again here"


def draw(number: int) -> Drawn:
    """A combination by its number: about half of the limits of each kind are set, around what can be reached."""
    rng = np.random.default_rng((2026, number))

    def limit(low: float, high: float, chance: float = 0.5) -> float | None:
        value = float(np.exp(rng.uniform(np.log(low), np.log(high))))
        return float(f"{value:.3g}") if rng.random() < chance else None

    budget = {
        "max_drop_points_fp32": limit(0.1, 8.0, 0.8),
        "max_drop_points": limit(1.0, 30.0),
        "max_size_mb": limit(0.2, 2.0, 0.6),
        "max_latency_ms": limit(0.05, 10.0, 0.3),
        "max_peak_rss_mb": limit(50.0, 300.0, 0.3),
    }
    return Drawn(number, number % SEEDS, RUNTIMES[int(rng.integers(len(RUNTIMES)))], budget)


def row(one: Drawn, options: argparse.Namespace) -> common.Row:
    name = f"budgets-{one.number:02d}"
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.yaml"
        path.write_text(recipe(one, name, quick=options.quick), encoding="utf-8")
        code, stdout = distilledge("run", str(path), "--work", str(options.work), "--json")
    run = options.work / "runs" / name
    said = json.loads(stdout or "{}")
    error = (said.get("error") or {}).get("what", "")
    found = json.loads((run / "shipped.json").read_text()) if (run / "shipped.json").exists() else {"files": []}
    broken = [words for file in found["files"] for words in outside(one, file, run, options.work)]
    broken += [f"report.json ships {f['name']}" for f in marked(said) if f["verdict"]["outcome"] == "fail"]
    limits = ", ".join(f"{k.removeprefix('max_')} {v:g}" for k, v in one.budget.items() if v is not None)
    return {
        "number": one.number,
        "seed": one.seed,
        "runtime": one.runtime,
        "limits": limits or "none",
        "exit": code,
        "outcome": ALLOWED.get(code, "error"),
        "rung": rung(said),
        "shipped": ", ".join(f["precision"] for f in found["files"]) or None,
        "size_mb": found["files"][0]["size_bytes"] / 1e6 if found["files"] else None,
        "broken": "; ".join(broken) or None,
        "named_though_refused": bool(found["files"]) and code != 0,
        "why": error or None,
    }


def distilledge(*arguments: str) -> tuple[int, str]:
    """Exit code and stdout of the command, in this process: what it imports is imported once."""
    from distilledge.pipeline.cli import main as command

    before, said = sys.argv, StringIO()
    sys.argv = ["distilledge", *arguments]
    try:
        with redirect_stdout(said):
            command()
    except SystemExit as ended:
        code = int(ended.code or 0)
        if code in INTERRUPTED:
            raise  # the same command goes on from there
        return code, said.getvalue()
    finally:
        sys.argv = before
    return 0, said.getvalue()


def recipe(one: Drawn, name: str, *, quick: bool) -> str:
    return RECIPE.format(
        name=name,
        seed=one.seed,
        runtime=one.runtime,
        per_class=30 if quick else 120,
        epochs=2 if quick else 12,
        difficulty=0.05 * (1 + one.seed % 3),
        budget=json.dumps(one.budget),
    )


def marked(said: common.Row) -> list[common.Row]:
    """Files that the report calls shipped."""
    return [f for f in (said.get("report") or {}).get("files", []) if f["shipped"]]


def rung(said: common.Row) -> str | None:
    for _, ledger in (said.get("report") or {}).get("ledgers", []):
        taken = ledger["tried"][ledger["taken"]]
        return f"{taken['rung']} ({ledger['taken'] + 1} of {len(ledger['tried'])}), {ledger['outcome']}"
    return None


def outside(one: Drawn, file: common.Row, run: Path, work: Path) -> list[str]:
    """Every limit that a shipped file does not keep: by the run's own checks, its bytes on disk, its answers."""
    budget = one.budget
    words = [c["what"] for c in file["checks"] if c["limit"] is not None and (c["high"] or c["value"]) > c["limit"]]
    folder = work / file["directory"]
    size = sum((folder / name).stat().st_size for name in file["files"]) / 1e6
    if budget["max_size_mb"] is not None and size > budget["max_size_mb"]:
        words.append(f"{size:.3f} MB on disk")
    drops = drops_of(json.loads((run / "run.json").read_text()), file, work)
    for name, drop in drops.items():
        limit = budget[name]
        if limit is not None and drop > limit:
            words.append(f"{drop:.2f} points below: {name}")
    return words


def drops_of(record: common.Row, file: common.Row, work: Path) -> dict[str, float]:
    """Points below the student's fp32 file and below the teacher's, on test: each file run again, by numpy alone."""
    stages = {s["name"]: work / s["path"] for s in record["stages"]}
    samples = [json.loads(line) for line in (stages["data"] / "samples.jsonl").read_text().splitlines()]
    test = [s for s in samples if s["split"] == "test"]
    labels = np.array([s["label"] for s in test])
    paths = [stages["data"] / s["path"] for s in test]
    runtime = file["runtime"]
    right = {
        key: float((answers(stages[f"export-{role}-{runtime}"], precision, paths) == labels).mean())
        for key, role, precision in (
            ("own", "student", file["precision"]),
            ("max_drop_points_fp32", "student", "fp32"),
            ("max_drop_points", "teacher", "fp32"),
        )
    }
    return {name: 100 * (right[name] - right["own"]) for name in ("max_drop_points_fp32", "max_drop_points")}


def answers(directory: Path, precision: str, paths: list[Path]) -> Any:
    """Classes (N,) that the file gives on this machine."""
    from distilledge.pipeline.record import ExportResult
    from distilledge.targets.devices.local import LocalDevice
    from distilledge.targets.measure import Candidate, score
    from distilledge.targets.samples import pictures

    result = ExportResult.model_validate_json((directory / "value.json").read_bytes())
    exported = result.precision(precision)
    assert exported is not None
    candidate = Candidate(name="again", role="student", directory=str(directory), exported=exported)
    with TemporaryDirectory() as out:
        found = score(candidate, LocalDevice(), inputs=pictures(paths), out=Path(out))
        return np.load(Path(out) / found.logits).argmax(1)


def bars(rows: list[common.Row]) -> list[common.Row]:
    counts = {name: sum(r["outcome"] == name for r in rows) for name in (*ALLOWED.values(), "error")}
    return [
        common.bar("shipped files outside their budget", sum(r["broken"] is not None for r in rows), 0),
        common.bar("runs that did not pass and name a file", sum(r["named_though_refused"] for r in rows), 0),
        common.bar("runs that ended in another way", counts["error"], 0),
        common.bar("runs that shipped", counts["shipped"], 1, at_most=False),
        common.bar("runs that refused", counts["refused"], 1, at_most=False),
    ]


if __name__ == "__main__":
    main()
