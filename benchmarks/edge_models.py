"""Models of third parties, run as they are: Coral's MobileNets, MLPerf Tiny, EfficientNet-Lite0, from the shared data.

All files are timed in turn in each launch. Bar: every file runs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import arguments, bar, conditions, finish

from distilledge.pipeline import stats
from distilledge.pipeline.foreign import Settings, measure_files, open_files
from distilledge.pipeline.result_file import Item
from distilledge.targets.devices.local import LocalDevice

FOLDER = Path(os.environ.get("DISTILLEDGE_SHARED", Path(__file__).parents[2] / "shared")) / "data" / "edge-models"


def row(item: Item) -> dict[str, Any]:
    assert item.timing is not None
    launches = [launch.latency_ns for launch in item.timing.launches]
    p50, p90, p99 = (None if e is None else e.value / 1e6 for e in stats.percentiles(launches, (50, 90, 99)))
    port = item.file.inputs[0]
    return {
        "file": item.name,
        "input": f"{'x'.join(map(str, port.shape))} {port.dtype}",
        "constants": item.file.precision,
        "operations": sum(item.file.operations.values()),
        "size_mb": item.file.size_bytes / 1e6,
        "p50_ms": p50,
        "p90_ms": p90,
        "p99_ms": p99,
        "load_ms": min(launch.load_ns for launch in item.timing.launches) / 1e6,
        "peak_rss_mb": max(launch.peak_rss_bytes for launch in item.timing.launches) / 1e6,
        "inferences": sum(map(len, launches)),
        "flags": " ".join(item.timing.flags),
    }


def shown(rows: Sequence[dict[str, Any]]) -> str:
    """The table of docs/benchmarking.md."""
    lines = ["| file | input | constants | size, MB | p50, ms | p90, ms | flags |", "|---|---|---|---:|---:|---:|---|"]
    lines += [
        f"| {r['file']} | {r['input']} | {r['constants']} | {r['size_mb']:.2f} | {r['p50_ms']:.2f} | {r['p90_ms']:.2f} "
        f"| {r['flags']} |"
        for r in rows
    ]
    return "\n".join(lines)


def filled(page: str, rows: Sequence[dict[str, Any]]) -> str:
    before, mark, rest = page.partition("<!-- edge models -->\n")
    after = rest.partition("<!-- /edge models -->")[2]
    return f"{before}{mark}{shown(rows)}\n<!-- /edge models -->{after}"


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--seconds", type=float, default=10.0, help="timed seconds of each file")
    options = parser.parse_args()
    paths = sorted(FOLDER.glob("*/*.tflite"))
    if not paths:
        parser.error(f"no .tflite below {FOLDER}: set DISTILLEDGE_SHARED")
    settings = Settings(samples=1024, seconds=options.seconds, launches=3, quick=options.quick)
    _, items = measure_files(open_files(paths, None), LocalDevice(), "local", settings, None, lambda _words: None)
    facts = conditions(quick=options.quick, packages=("ai-edge-litert", "numpy"))
    facts["runtime"] = items[0].timing.runtime_version if items[0].timing else ""
    facts["settings"] = settings.model_dump(mode="json")
    rows = [row(item) for item in items]
    finish("edge_models", facts, rows, [bar("files that ran", len(rows), len(paths), at_most=False)], out=options.out)


if __name__ == "__main__":
    main()
