"""The student's files of a finished run on a board of devices.yaml: answers on the whole test split, p50.

    python benchmarks/boards.py --device NAME --run distilledge-work/runs/x-sdd-tiny
    python benchmarks/boards.py --markdown        the recorded results into docs/devices.md, nothing is run

``--quick``: 16 timed inferences, for emulated boards, whose latencies say nothing. Bar: a file answers on the board as
on this machine for at least 99.9 % of the test pictures.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import common
import images
import numpy as np

from distilledge.pipeline.benchmark import measure_exports, predict_export, samples_of
from distilledge.pipeline.data.content import location
from distilledge.pipeline.inventory import opened
from distilledge.pipeline.recipe import Measure
from distilledge.pipeline.record import ExportResult, Measurements, RunRecord, Splits, data_root, read_samples
from distilledge.targets.base import Predictions

PAGE = Path(__file__).parents[1] / "docs" / "devices.md"
MIN_AGREEMENT = 0.999
PACKAGES = ("torch", "onnxruntime", "openvino", "ai-edge-litert")
FEW = Measure(samples=16, min_seconds=0, launches=1, warmup=2, end_to_end=4)


def main() -> None:
    parser = common.arguments(__doc__ or "")
    parser.add_argument("--device", default="local")
    parser.add_argument("--run", type=Path, help="directory of a run, with its run.json")
    parser.add_argument("--markdown", action="store_true", help="write the recorded table into the page and stop")
    options = parser.parse_args()
    if options.markdown:
        results = json.loads((options.out / "boards.json").read_text(encoding="utf-8"))
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(images.between(page, "boards", markdown(results["rows"])), encoding="utf-8")
        return
    if options.run is None:
        sys.exit("--run: the directory of a finished run")
    run = RunRecord.model_validate_json((options.run / "run.json").read_text(encoding="utf-8"))
    splits = Splits.model_validate_json((run.directory("data") / "value.json").read_bytes())
    splits = splits.model_copy(update={"root": location(run.recipe.data, run.recipe.task)})
    given = (read_samples(run.directory("data"), "test"), data_root(splits, run.directory("data")), [])
    names = [s.name for s in run.stages if s.name.startswith("export-student")]
    directories = [run.directory(name) for name in names]
    exports = [(ExportResult.model_validate_json((d / "value.json").read_bytes()), d) for d in directories]
    rows: list[common.Row] = []
    with opened(options.device) as device, TemporaryDirectory() as folder:
        card = device.facts()
        timed = measure_exports(exports, samples_of(*given), FEW if options.quick else Measure(quick=True), device)
        labels = np.array([s.label for s in given[0]])
        for result, directory in exports:
            scores = predict_export(result, directory, given, Path(folder), device)
            for item in scores.items:
                found = np.load(Path(folder) / item.logits).argmax(1)
                rows.append(row(item, float((found == labels).mean()), len(labels), timed))
    bars = [
        common.bar(f"{r['file']}: answers as here", r["agreement"], MIN_AGREEMENT, at_most=False)
        for r in rows
        if r["agreement"] is not None
    ]
    board = {key: card.get(key) for key in ("board", "cpu_model", "machine", "emulated", "packages")}
    extra = {"board": board, "recipe": run.recipe.name}
    common.finish(
        "boards", common.conditions(quick=options.quick, packages=PACKAGES, extra=extra), rows, bars, out=options.out
    )


def row(item: Predictions, accuracy: float, pictures: int, timed: Measurements) -> common.Row:
    times = next(m for m in timed.items if m.name == item.name)
    return {
        "file": item.name,
        "accuracy": 100 * accuracy,
        "pictures": pictures,
        "agreement": item.host_agreement,
        "max_abs": item.host_max_abs,
        "p50_ms": statistics.median(n for launch in times.launches for n in launch.latency_ns) / 1e6,
        "runtime": times.runtime_version,
        "computes_in": times.execution_precision,
        "flags": " ".join(times.flags),
    }


def markdown(rows: list[common.Row]) -> str:
    head = "| file | accuracy, % | answers as here, % | largest difference of logits | p50, ms | runtime | flags |"
    lines = [head, "|---|---:|---:|---:|---:|---|---|"]
    for r in rows:
        agreement = "-" if r["agreement"] is None else f"{100 * r['agreement']:.2f}"
        difference = "-" if r["max_abs"] is None else f"{r['max_abs']:.2g}"
        cells = [
            r["file"],
            f"{r['accuracy']:.1f}",
            agreement,
            difference,
            f"{r['p50_ms']:.1f}",
            r["runtime"],
            r["flags"],
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
