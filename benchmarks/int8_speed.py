"""int8 over fp32 p50 and size of known networks at the size they are known at, beside the best recipes that are known.

    python benchmarks/int8_speed.py --prepare    the files alone, into --work: may be done while the machine is busy
    python benchmarks/int8_speed.py              timing, minutes once the files are there; an idle machine is needed
    python benchmarks/int8_speed.py --markdown   the recorded results into docs/int8.md, nothing is run
    python benchmarks/int8_speed.py --quick      EfficientNet-Lite0 in ONNX Runtime, fewer samples: labelled so

Random weights (of pictures with statistics from generated pictures): latency does not depend on them. Our int8 files of
a network and runtime and its fp32 file take turns in one run, on one thread. Bars: the fastest of them takes at most
1.1 times the ratio of the best recipe that is known on a CPU with VNNI, and 0.3 of the size. MobileNetV3 has no bar:
there no recipe is faster than float in ONNX Runtime and LiteRT, and its files are there to be refused.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import common
import images
import text
from fit import CLASSES, Student, recipe_of

from distilledge.pipeline import stats
from distilledge.pipeline.recipe import ExportTarget
from distilledge.pipeline.record import ExportResult
from distilledge.pipeline.run import device_card
from distilledge.pipeline.search import candidates as search
from distilledge.pipeline.search.fit import Ground, made_files, made_pictures
from distilledge.pipeline.store import Store
from distilledge.targets.base import Precision
from distilledge.targets.devices.local import LocalDevice
from distilledge.targets.measure import Candidate, measure
from distilledge.targets.samples import Samples, pictures

PAGE = Path(__file__).parents[1] / "docs" / "int8.md"
PACKAGES = (*text.PACKAGES, "timm", "ai-edge-quantizer")
MARGIN, MAX_SIZE = 1.1, 0.3
SAMPLES, LAUNCHES = 384, 3


class Network(NamedTuple):
    """A timm model of so many pixels, or a BERT of so many tokens."""

    size: int
    best: dict[str, float]
    """Runtime -> p50 over fp32's of the best recipe that is known."""
    config: dict[str, int] | None = None


def bert(layers: int, width: int, heads: int, wide: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": wide,
    }


NETWORKS = {
    "tf_efficientnet_lite0": Network(224, {"onnx": 0.50, "openvino": 0.34, "tflite": 0.47}),
    "efficientnet_b0": Network(224, {"openvino": 0.70, "tflite": 0.43}),
    "mobilenetv3_small_100": Network(224, {}),
    "bert 4x312": Network(32, {"onnx": 0.41, "openvino": 0.35, "tflite": 0.19}, bert(4, 312, 12, 1200)),
    "bert 6x768": Network(128, {"onnx": 0.27, "openvino": 0.20, "tflite": 0.12}, bert(6, 768, 12, 3072)),
}
PRECISIONS: dict[bool, tuple[Precision, ...]] = {False: ("fp32", "w8a8"), True: ("fp32", "w8dyn", "w8a8")}
"""Of pictures, of texts."""
RUNTIMES = ("onnx", "openvino", "tflite")


def main() -> None:
    parser = common.arguments(__doc__ or "")
    parser.add_argument("--work", type=Path, default=Path("distilledge-work"))
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--prepare", action="store_true", help="make the files and stop")
    parser.add_argument("--markdown", action="store_true", help="write the recorded table into the page and stop")
    options = parser.parse_args()
    if options.markdown:
        rows = json.loads((options.out / "int8_speed.json").read_text(encoding="utf-8"))["rows"]
        PAGE.write_text(images.between(PAGE.read_text(encoding="utf-8"), "speed", markdown(rows)), encoding="utf-8")
        return
    names, runtimes = (list(NETWORKS)[:1], RUNTIMES[:1]) if options.quick else (options.networks, RUNTIMES)
    files = {(name, runtime): made(name, runtime, options) for name in names for runtime in runtimes}
    if options.prepare:
        return
    rows = [row for pair in files for row in timed(*pair, *files[pair], quick=options.quick)]
    if names != list(NETWORKS) and not options.quick:
        rows = common.beside(rows, options.out / "int8_speed.json", ("network", "runtime", "precision"))
    facts = common.conditions(quick=options.quick, packages=PACKAGES, extra={"threads": 1, "samples": SAMPLES})
    common.finish("int8_speed-quick" if options.quick else "int8_speed", facts, rows, bars(rows), out=options.out)


def made(name: str, runtime: str, options: argparse.Namespace) -> tuple[ExportResult, Path]:
    """The exports and their folder, of this call or an earlier one."""
    network = NETWORKS[name]
    if network.config is None:
        return of_pictures(name, runtime, network.size, options.work)
    folder: Path = options.work / "int8-speed" / f"{name.replace(' ', '-')}-{runtime}"
    record = folder / "value.json"
    if not record.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory() as place:
            checkpoint = text.network(name, network.config, network.size, Path(place) / "network")
            result = text.exported(runtime, checkpoint, PRECISIONS[True], folder)
        record.write_text(result.model_dump_json(), encoding="utf-8")
    return ExportResult.model_validate_json(record.read_text(encoding="utf-8")), folder


def of_pictures(name: str, runtime: str, size: int, work: Path) -> tuple[ExportResult, Path]:
    recipe = recipe_of(Student(name, size))
    target = ExportTarget.model_validate({"runtime": runtime, "precisions": PRECISIONS[False]})
    ground = Ground(recipe, CLASSES, LocalDevice(), device_card(recipe), Store(work / "store"))
    stored = made_files(ground, search.Candidate(name, size), target)
    return stored.value, stored.path


def timed(name: str, runtime: str, result: ExportResult, folder: Path, *, quick: bool) -> list[common.Row]:
    """All files of one network in one runtime, in turn."""
    network = NETWORKS[name]
    candidates = [Candidate(name=e.precision, role="student", directory=str(folder), exported=e) for e in result.files]
    with TemporaryDirectory() as place:
        is_text = network.config is not None
        inputs: Samples = text.lines() if is_text else pictures(made_pictures(network.size, Path(place)))
        found = measure(
            candidates,
            LocalDevice(),
            threads=1,
            samples=SAMPLES // 3 if quick else SAMPLES,
            min_seconds=0.0,
            launches=LAUNCHES,
            warmup=20,
            end_to_end=0,
            quick=quick,
            inputs=inputs,
            length=network.size if is_text else None,
        )
    launches = [[launch.latency_ns for launch in one.launches] for one in found]
    rows = []
    for one, taken, exported in zip(found, launches, result.files, strict=True):
        ratio, p50 = stats.median_ratio(taken, launches[0]), stats.percentile(taken, 50)
        assert ratio is not None
        rows.append(
            {
                "network": name,
                "size": f"{network.size} {'tokens' if is_text else 'px'}",
                "runtime": runtime,
                "precision": one.precision,
                "p50_ms": p50.value / 1e6 if p50 else None,
                **{"p50_ratio": ratio.value, "p50_ratio_low": ratio.low, "p50_ratio_high": ratio.high},
                "known_ratio": network.best.get(runtime) if one.precision != "fp32" else None,
                "size_share": exported.size_bytes / result.files[0].size_bytes,
                "flags": " ".join(one.flags),
            }
        )
    return rows


def bars(rows: list[common.Row]) -> list[common.Row]:
    """Of the fastest int8 file; point estimates, the intervals stand in the rows."""
    found = []
    for name, runtime in dict.fromkeys((r["network"], r["runtime"]) for r in rows):
        own = [r for r in rows if (r["network"], r["runtime"]) == (name, runtime) and r["precision"] != "fp32"]
        best = min(own, key=lambda r: r["p50_ratio"])
        if best["known_ratio"] is not None:
            where = f"{name} {runtime} {best['precision']}"
            found.append(common.bar(f"{where}: p50 over fp32's", best["p50_ratio"], MARGIN * best["known_ratio"]))
            found.append(common.bar(f"{where}: share of fp32's size", best["size_share"], MAX_SIZE))
    return found


def markdown(rows: list[common.Row]) -> str:
    lines = ["| network | runtime | file | p50, ms | over fp32 (95 %) | best known | size over fp32 |"]
    lines.append("|---|---|---|---:|---|---:|---:|")
    for row in rows:
        cells = [f"{row['network']}, {row['size']}", row["runtime"], row["precision"], f"{row['p50_ms']:.2f}"]
        between = f" ({row['p50_ratio_low']:.2f} to {row['p50_ratio_high']:.2f})" if row["precision"] != "fp32" else ""
        cells += [f"{row['p50_ratio']:.2f}{between}", "-" if row["known_ratio"] is None else str(row["known_ratio"])]
        cells.append(f"{row['size_share']:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
