"""The demo's files on a board of devices.yaml: answers, agreement with this machine, p50 beside the teacher's.

    python benchmarks/boards.py --device NAME           the demo in full (its trainings are found in --work)
    python benchmarks/boards.py --device NAME --quick   under its smoke block, 16 timed inferences: for emulated boards
    python benchmarks/boards.py --markdown              the recorded results into docs/devices.md, nothing is run

Bar: a file answers on the board as on this machine for at least 99.9 % of the test pictures.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import common
import images

PAGE = Path(__file__).parents[1] / "docs" / "devices.md"
MIN_AGREEMENT = 0.999
PACKAGES = ("torch", "onnxruntime", "openvino", "ai-edge-litert")
FEW = "quick: false, samples: 16, min_seconds: 0, launches: 1, warmup: 2, end_to_end: 4"


def main() -> None:
    parser = common.arguments(__doc__ or "")
    parser.add_argument("--device", default="local")
    parser.add_argument("--work", type=Path, default=Path("distilledge-work"))
    parser.add_argument("--markdown", action="store_true", help="write the recorded table into the page and stop")
    options = parser.parse_args()
    if options.markdown:
        results = json.loads((options.out / "boards.json").read_text(encoding="utf-8"))
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(images.between(page, "boards", markdown(results["rows"])), encoding="utf-8")
        return
    measure = f"measure={{device: {options.device}{', ' + FEW if options.quick else ''}}}"
    command = [sys.executable, "-m", "distilledge.pipeline.cli", "run", "demo", "--work", str(options.work), "--json"]
    command += ["--set", f"name=demo-{options.device}", "--set", measure, *(["--smoke"] if options.quick else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    content: common.Row = json.loads(done.stdout or "{}").get("report")
    if not content:
        sys.exit(f"the run ended with {done.returncode} and no report")
    beside = {b["name"]: b for b in content["beside_host"]}
    rows = [row(content, file, beside.get(file["name"], {})) for file in content["files"]]
    bars = [
        common.bar(f"{r['file']}: answers as here", r["agreement"], MIN_AGREEMENT, at_most=False)
        for r in rows
        if r["agreement"] is not None
    ]
    card = {key: content["device"].get(key) for key in ("board", "cpu_model", "machine", "emulated", "packages")}
    facts = common.conditions(quick=options.quick, packages=PACKAGES, extra={"board": card})
    common.finish("boards", facts, rows, bars, out=options.out)


def row(content: common.Row, file: common.Row, beside: common.Row) -> common.Row:
    timing = next(t for t in content["timings"] if t["name"] == file["name"])
    return {
        "file": file["name"],
        "accuracy": file["metric"]["value"],
        "pictures": content["pictures"],
        "agreement": beside.get("agreement"),
        "max_abs": beside.get("max_abs"),
        "p50_ms": images.value(file["p50"]),
        "runtime": timing["runtime_version"],
        "computes_in": timing["execution_precision"],
        "flags": " ".join(timing["flags"]),
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
