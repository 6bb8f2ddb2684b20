"""p50 by length of text networks in the three runtimes: a 6 x 384 teacher, its 3-layer student and one of 2 x 192.

    python benchmarks/text.py             16, 32, 64 and 128 tokens; one thread
    python benchmarks/text.py --quick     16 and 64 tokens, the small student only
    python benchmarks/text.py --markdown  the recorded results into docs/results-text.md, nothing is run

Random weights: latency does not depend on them. All files of a runtime are timed in one interleaved run, the fp32
teacher among them. Bar: the int8 file of the student made of the teacher's layers is not slower than its fp32 file at
64 tokens.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import common
import images
import torch

from distilledge.models import text
from distilledge.pipeline import checkpoint as checkpoints
from distilledge.pipeline.benchmark import measure_exports
from distilledge.pipeline.export import export
from distilledge.pipeline.recipe import Measure, Tickets
from distilledge.pipeline.record import Checkpoint, ExportResult, Role
from distilledge.pipeline.training import text_tokenizer
from distilledge.targets.base import Measurement, Precision
from distilledge.targets.devices.local import LocalDevice
from distilledge.targets.ondevice.text import TextSpec
from distilledge.targets.samples import Samples
from distilledge.targets.saturation import saturates

PAGE = Path(__file__).parents[1] / "docs" / "results-text.md"
LENGTHS, QUICK_LENGTHS = (16, 32, 64, 128), (16, 64)
MAX_RATIO = 1.0
PACKAGES = ("torch", "transformers", "onnxruntime", "openvino", "nncf", "ai-edge-litert", "litert-torch")
INT8: dict[str, Precision] = {"onnx": "w8dyn", "openvino": "w8dyn", "tflite": "w8dyn"}
"""The int8 recipe that the shipped recipes use in each runtime."""
NETWORKS = {
    "teacher 6x384": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    "student 3x384": {"hidden_size": 384, "num_hidden_layers": 3, "num_attention_heads": 12, "intermediate_size": 1536},
    "student 2x192": {"hidden_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 768},
}


def main() -> None:
    parser = common.arguments(__doc__ or "")
    parser.add_argument("--markdown", action="store_true", help="write the recorded table into the page and stop")
    options = parser.parse_args()
    if options.markdown:
        rows = json.loads((options.out / "text.json").read_text(encoding="utf-8"))["rows"]
        PAGE.write_text(images.between(PAGE.read_text(encoding="utf-8"), "lengths", markdown(rows)), encoding="utf-8")
        return
    lengths = QUICK_LENGTHS if options.quick else LENGTHS
    names = [n for n in NETWORKS if not options.quick or n != "student 3x384"]
    rows = []
    with TemporaryDirectory() as folder:
        made = {n: network(n, NETWORKS[n], max(lengths), Path(folder) / n.replace(" ", "-")) for n in names}
        for runtime in INT8:
            rows += timed(runtime, made, lengths, Path(folder), quick=options.quick)
    judge = names[-1] if options.quick else "student 3x384"
    bars = [
        common.bar(f"int8 / fp32, {judge}, 64 tokens, {runtime}", over_fp32(rows, runtime, judge), MAX_RATIO)
        for runtime in INT8
    ]
    facts = common.conditions(quick=options.quick, packages=PACKAGES, extra={"networks": NETWORKS, "threads": 1})
    common.finish("text", facts, rows, bars, out=options.out)


def markdown(rows: list[common.Row]) -> str:
    """A row for each network in each runtime, fp32 and int8 p50 in ms at each length."""
    lengths = sorted({row["tokens"] for row in rows if isinstance(row["tokens"], int)})
    found = {(r["runtime"], r["network"], r["precision"] == "fp32", r["tokens"]): r["p50_ms"] for r in rows}
    lines = [
        "| runtime | network | " + " | ".join(f"{n} tokens" for n in lengths) + " |",
        "|---|---|" + "---:|" * len(lengths),
    ]
    for runtime in INT8:
        for name in dict.fromkeys(row["network"] for row in rows):
            pairs = [(found[runtime, name, True, n], found[runtime, name, False, n]) for n in lengths]
            cells = (f"{fp32:.2f} / {int8:.2f} ({int8 / fp32:.2f})" for fp32, int8 in pairs)
            lines.append(f"| {runtime} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def network(name: str, config: dict[str, int], length: int, folder: Path) -> tuple[Checkpoint, Path]:
    """A checkpoint with random weights; its tokenizer is learned from generated tickets."""
    folder.mkdir()
    tokenizer = text_tokenizer.learned(tickets(), 4000)
    (folder / text_tokenizer.FILE).write_text(tokenizer, encoding="utf-8")
    special = text_tokenizer.special(tokenizer)
    spec = TextSpec(
        max_length=length,
        pad_id=special.pad,
        task="text-classification",
        tokenizer_sha256=hashlib.sha256(tokenizer.encode()).hexdigest(),
        buckets=tuple(n for n in (16, 32, 64, 128) if n <= length),
    )
    torch.manual_seed(0)
    net = text.from_config(
        "bert",
        config,
        task="text-classification",
        classes=77,
        vocabulary_size=8000,
        max_length=length,
        pad_id=special.pad,
    )
    size = text.profile(net, length)
    return (
        Checkpoint(
            role="student",
            model=name,
            classes=tuple(f"class {i}" for i in range(77)),
            input_spec=spec.to_dict(),
            architecture=net.architecture,
            task="text-classification",
            weights_sha256=checkpoints.save_weights(net.state_dict(), folder),
            parameters=size.parameters,
            macs=size.macs,
            validation={},
            best_epoch=1,
            epochs=1,
            seconds=0.0,
            samples_per_second=0.0,
            precision="fp32",
        ),
        folder,
    )


def tickets() -> list[str]:
    from distilledge.pipeline.data.tickets import ticket

    return [" ".join(ticket(number, Tickets(count=400)).words) for number in range(400)]


def timed(
    runtime: str, made: dict[str, tuple[Checkpoint, Path]], lengths: Sequence[int], folder: Path, *, quick: bool
) -> list[common.Row]:
    """All files of one runtime in one run."""
    exports = []
    for name, one in made.items():
        out = folder / f"{runtime}-{name.replace(' ', '-')}"
        exports.append((exported(runtime, one, ["fp32", INT8[runtime]], out), out))
    settings = Measure(
        samples=256 if quick else 1024, min_seconds=0, launches=1 if quick else 3, lengths=tuple(lengths)
    )
    found = measure_exports(exports, lines(), settings, LocalDevice()).items
    files = [(name, e, file) for name, (e, _) in zip(made, exports, strict=True) for file in e.files]
    rounds = [found[i : i + len(files)] for i in range(0, len(found), len(files))]
    return [
        row(name, file.size_bytes, m) for round_ in rounds for (name, _, file), m in zip(files, round_, strict=True)
    ]


def exported(runtime: str, made: tuple[Checkpoint, Path], precisions: Sequence[Precision], out: Path) -> ExportResult:
    checkpoint, directory = made
    out.mkdir()
    role: Role = "teacher" if checkpoint.model.startswith("teacher") else "student"
    return export(
        checkpoint,
        directory,
        role=role,
        runtime=runtime,
        precisions=precisions,
        calibration=lines(),
        out=out,
        saturates=saturates(LocalDevice().facts()),
    )


def lines() -> Samples:
    """Texts to calibrate on and to time."""
    return Samples(tuple({"text": line, "context": None} for line in tickets()[:64]), text=True)


def row(name: str, size_bytes: int, m: Measurement) -> common.Row:
    samples = [ns for launch in m.launches for ns in launch.latency_ns]
    return {
        "runtime": m.runtime,
        "network": name,
        "precision": m.precision,
        "tokens": m.length or "as they come",
        "p50_ms": statistics.median(samples) / 1e6,
        "samples": len(samples),
        "mb": size_bytes / 1e6,
        "flags": " ".join(m.flags),
    }


def over_fp32(rows: list[common.Row], runtime: str, network_name: str) -> float:
    own = {
        r["precision"]: r["p50_ms"]
        for r in rows
        if (r["runtime"], r["network"], r["tokens"]) == (runtime, network_name, 64)
    }
    return float(own[INT8[runtime]] / own["fp32"])


if __name__ == "__main__":
    main()
