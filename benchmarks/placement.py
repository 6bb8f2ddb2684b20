"""Where the operations of real files run, and for how long, with every unit of this machine's runtimes.

    python benchmarks/placement.py [--quick]
    python benchmarks/placement.py --markdown     the recorded results into docs/runtimes.md, nothing is run

Two networks with random weights and real batch-norm statistics (128 px), exported and quantized here, and third-party
.tflite files where shared/data/edge-models is. ``--quick``: one network and no third-party file. Bars: plain networks
stay on their unit; the files that the flags' thresholds come from are flagged (targets/units.py).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import common
import images
import numpy as np

from distilledge import targets
from distilledge.targets.base import Deployable
from distilledge.targets.devices.local import LocalDevice
from distilledge.targets.ondevice.runtimes import installed_version
from distilledge.targets.placement import File, profile
from distilledge.targets.units import Placement, unit_flags

PAGE = Path(__file__).resolve().parents[1] / "docs" / "runtimes.md"
SHARED = Path(os.environ.get("DISTILLEDGE_SHARED", Path(__file__).resolve().parents[2] / "shared"))
PACKAGES = ("onnxruntime", "openvino", "ai-edge-litert", "timm", "nncf", "ai-edge-quantizer")
SIZE, CLASSES, CALIBRATION = 128, 10, 24
MODELS = ("mobilenetv3_small_100", "tf_efficientnet_lite0")
PRECISIONS = {"onnx": ("fp32", "w8a8"), "openvino": ("fp32", "w8a8"), "tflite": ("fp32", "w8dyn", "w8a8")}
THIRD_PARTY = (
    "coral/mobilenet_v1_0.25_128_quant.tflite",
    "coral/tf2_mobilenet_v2_1.0_224_ptq.tflite",
    "flowers5/FlowerModel.tflite",
    "mlperf-tiny/vww_96_float.tflite",
    "mlperf-tiny/vww_96_int8.tflite",
)
OTHER_UNITS: dict[str, tuple[str, ...]] = {"tflite": ("builtin",)}
"""Beside each runtime's default, where this machine has no other unit."""
MOBILENETV3 = "mobilenetv3_small_100"
EXPECTED = {
    (MOBILENETV3, "onnx", "w8a8"): "QUANTIZE_STORM",
    (MOBILENETV3, "tflite", "w8a8"): "PARTIAL_DELEGATION",
    (MOBILENETV3, "tflite", "w8dyn"): "PARTIAL_DELEGATION",
}
"""Model, runtime, precision -> the flag that the default units must bring; all else must bring none."""


def network(name: str, pictures: Sequence[np.ndarray[Any, Any]]) -> Any:
    """Random weights; batch-norm statistics of the pictures, so that int8 ranges are sensible."""
    import timm
    import torch

    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=CLASSES).train()
    batch = torch.from_numpy(np.concatenate(list(pictures))).permute(0, 3, 1, 2).float() / 255 - 0.5
    with torch.no_grad():
        for _ in range(3):
            model(batch)
    return model.eval()


def made(name: str, folder: Path) -> Iterator[tuple[str, File]]:
    """Files of one network, named by (model, runtime, precision)."""
    rng = np.random.default_rng(0)
    coarse = [rng.uniform(0, 255, (1, 8, 8, 3)) for _ in range(CALIBRATION)]
    pictures = [c.repeat(SIZE // 8, 1).repeat(SIZE // 8, 2).astype(np.uint8) for c in coarse]
    model = network(name, pictures)
    wanted = Deployable(
        input_spec={}, height=SIZE, width=SIZE, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5),
        classes=tuple("abcdefghij"),
    )  # fmt: skip
    for runtime, precisions in PRECISIONS.items():
        target, out = targets.get(runtime), folder / name / runtime
        out.mkdir(parents=True)
        fp32 = target.export(model, wanted, out)
        for precision in precisions:
            path = fp32
            if precision != "fp32":
                static = pictures if precision == "w8a8" else ()
                path, _ = target.compress(fp32, wanted, out, precision=precision, calibration=static)
            paths = (path, path.with_suffix(".bin")) if runtime == "openvino" else (path,)
            yield name, File(f"{name} {runtime} {precision}", paths, runtime, precision)


def third_party() -> Iterator[tuple[str, File]]:
    for name in THIRD_PARTY:
        path = SHARED / "data" / "edge-models" / name
        if path.exists():
            yield path.stem, File(name, (path,), "tflite", "float" if "float" in name else "int8")


def row(model: str, file: File, found: Placement) -> common.Row:
    shares = {u.unit: u.share for u in found.units}
    counts = {u.unit: u.operations for u in found.units}
    chosen = found.chosen[0]
    return {
        "model": model,
        "runtime": file.runtime,
        "precision": file.precision,
        "unit": " ".join(found.chosen),
        "operations": counts.get(chosen, 0),
        "elsewhere": sum(n for unit, n in counts.items() if unit != chosen),
        "share": shares.get(chosen, 0.0),
        "partitions": found.partitions,
        "executed": found.executed,
        "boundaries": found.boundaries,
        "boundary_share": found.boundary_share,
        "microseconds": found.microseconds,
        "flags": " ".join(unit_flags(found, slower_than_float=False)),
        "untimed": found.untimed,
    }


def rows_of(files: Iterator[tuple[str, File]]) -> Iterator[common.Row]:
    for model, file in files:
        for unit in ((), *((name,) for name in OTHER_UNITS.get(file.runtime, ()))):
            chosen = file._replace(units={"names": list(unit)} if unit else None)
            yield row(model, chosen, profile(chosen, LocalDevice()).placement)


def bars(rows: Sequence[common.Row]) -> Iterator[common.Row]:
    for r in rows:
        name = f"{r['model']} {r['runtime']} {r['precision']} on {r['unit']}"
        yield common.bar(
            f"{name}: runs whose layers were timed", float(r["microseconds"] is not None), 1, at_most=False
        )
        default = r["unit"] != "builtin"
        expected = EXPECTED.get((r["model"], r["runtime"], r["precision"]), "") if default else r["flags"]
        if r["precision"] == "w8dyn" and not expected:
            continue  # a dynamic range is for transformers; what it does to convolutions is in the table
        yield common.bar(
            f"{name}: flagged as expected ({expected or 'no flag'})", float(r["flags"] == expected), 1, at_most=False
        )


def markdown(rows: Sequence[common.Row]) -> str:
    titles = "| file | unit | operations on it | elsewhere | time, % | partitions | only converting | time, % | flags |"
    lines = [titles, "|---|---|---:|---:|---:|---:|---:|---:|---|"]
    for r in rows:
        cells = [
            f"{r['model']} {r['runtime']} {r['precision']}",
            r["unit"],
            str(r["operations"]),
            str(r["elsewhere"]),
            _percent(r["share"]),
            str(r["partitions"]),
            f"{r['boundaries']} of {r['executed']}",
            _percent(r["boundary_share"]),
            r["flags"] or "-",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def main() -> None:
    parser = common.arguments(__doc__ or "")
    parser.add_argument("--markdown", action="store_true", help="write the recorded results into the page")
    options = parser.parse_args()
    if options.markdown:
        found = json.loads((options.out / "placement.json").read_text(encoding="utf-8"))
        PAGE.write_text(
            images.between(PAGE.read_text(encoding="utf-8"), "placement", markdown(found["rows"])), encoding="utf-8"
        )
        return
    rows: list[common.Row] = []
    with TemporaryDirectory() as folder:
        for name in MODELS[: 1 if options.quick else None]:
            rows += rows_of(made(name, Path(folder)))
    if not options.quick:
        rows += rows_of(third_party())
    runtimes = {name: installed_version(name) for name in PRECISIONS}
    facts = common.conditions(quick=options.quick, packages=PACKAGES, extra={"runtimes": runtimes, "pixels": SIZE})
    common.finish("placement", facts, rows, list(bars(rows)), out=options.out)


if __name__ == "__main__":
    main()
