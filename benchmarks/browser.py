"""Models in a browser beside the same files in this machine's own runtimes, in one run: latency, and what they answer.

    python benchmarks/browser.py                                      a made student (MobileNetV1 0.25 at 96 px)
    python benchmarks/browser.py --run distilledge-work/runs/x-sdd-tiny   the student of a finished run
    python benchmarks/browser.py --markdown       the recorded results into docs/browser.md, nothing is run

ONNX Runtime Web and LiteRT.js in the first Chromium on PATH; blocks of both sides take turns, with one and two threads.
Bar: outputs of fp32 files differ by at most 1e-4. Needs ``distilledge devices fetch-web`` once.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import common
import images
import numpy as np
from PIL import Image

from distilledge.pipeline.benchmark import candidate
from distilledge.pipeline.record import ExportResult, RunRecord
from distilledge.targets.base import Exported, RuntimeName
from distilledge.targets.devices.base import Device, WorkerHandle
from distilledge.targets.devices.browser import BrowserDevice
from distilledge.targets.devices.browser_worker import RUNTIMES
from distilledge.targets.devices.local import LocalDevice
from distilledge.targets.lane import BLOCK_SECONDS
from distilledge.targets.measure import Candidate, score
from distilledge.targets.ondevice.preprocess import InputSpec, preprocess
from distilledge.targets.samples import pictures

PAGE = Path(__file__).parents[1] / "docs" / "browser.md"
MAX_DIFFERENCE = 1e-4
PICTURES, LAUNCHES, WARMUP = 32, 3, 30
STATISTICS, LOGITS = 50, 30
"""Batches that the made student's norms see, and how much larger its last weights are made: logits of some units."""
SAMPLES = {False: 1024, True: 96}
"""By ``--quick``; over all launches."""
THREADS = (1, 2)
PACKAGES = ("onnxruntime", "ai-edge-litert")


def main() -> None:
    parser = common.arguments(__doc__ or "")
    parser.add_argument("--run", type=Path, help="directory of a run, with its run.json")
    parser.add_argument("--markdown", action="store_true", help="write the recorded table into the page and stop")
    options = parser.parse_args()
    if options.markdown:
        results = json.loads((options.out / "browser.json").read_text(encoding="utf-8"))
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(images.between(page, "browser", markdown(results)), encoding="utf-8")
        return
    browser, here = BrowserDevice("browser"), LocalDevice()
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = students(options.run) if options.run else [made(runtime, folder) for runtime in RUNTIMES]
        try:
            card = browser.facts()
            rows = [r for one in files for r in compared(one, browser, here, folder, quick=options.quick)]
        finally:
            browser.close()
            here.close()
    if not rows:
        sys.exit("the run has no file for onnx or tflite")
    bars = [
        common.bar(f"{r['file']}, {r['threads']} threads: difference", r["max_abs"], MAX_DIFFERENCE)
        for r in rows
        if r["file"].endswith(" fp32")
    ]
    extra = {"browser": {key: card[key] for key in ("board", "cpu_flags", "packages", "page")}, "launches": LAUNCHES}
    facts = common.conditions(quick=options.quick, packages=PACKAGES, extra=extra)
    common.finish("browser", facts, rows, bars, out=options.out)


def students(directory: Path) -> list[Candidate]:
    """The student's files of a run that browsers have a runtime for."""
    run = RunRecord.model_validate_json((directory / "run.json").read_text(encoding="utf-8"))
    folders = [run.directory(s.name) for s in run.stages if s.name.startswith("export-student")]
    exports = [(ExportResult.model_validate_json((f / "value.json").read_bytes()), f) for f in folders]
    return [candidate(result, file, f) for result, f in exports if result.runtime in RUNTIMES for file in result.files]


def made(runtime: str, folder: Path) -> Candidate:
    """A student as the product exports it: random weights with the statistics of their own activations, so that logits
    are of a usual size. Its speed says something, its accuracy nothing.
    """
    import torch

    from distilledge.models.vision_names import build
    from distilledge.targets import get
    from distilledge.targets.base import Deployable

    torch.manual_seed(0)
    model, target, spec = build("mobilenetv1_025", classes=10, size=96), get(runtime), InputSpec(96, 96)
    classes = tuple(map(str, range(10)))
    with torch.no_grad():
        for _ in range(STATISTICS):
            model.train()(torch.randn(16, 3, 96, 96))
        model.get_classifier().weight.mul_(LOGITS)
    halves: tuple[float, float, float] = (0.5, 0.5, 0.5)
    deployable = Deployable(input_spec=spec.to_dict(), height=96, width=96, mean=halves, std=halves, classes=classes)
    out = folder / runtime
    out.mkdir()
    path = target.export(model.eval(), deployable, out)
    name: RuntimeName = target.NAME
    exported = Exported(
        runtime=name,
        precision="fp32",
        files=(path.name,),
        sha256=(hashlib.sha256(path.read_bytes()).hexdigest(),),
        size_bytes=path.stat().st_size,
        input_shape=(1, 96, 96, 3),
        classes=classes,
        input_spec=spec.to_dict(),
        versions={},
        recipe="as exported",
        seconds=0.0,
    )
    return Candidate(name=f"made {name} fp32", role="student", directory=str(out), exported=exported)


def compared(
    one: Candidate, browser: BrowserDevice, here: LocalDevice, folder: Path, *, quick: bool
) -> list[common.Row]:
    """A row for each number of threads."""
    spec = InputSpec.from_dict(one.exported.input_spec)
    shown = pictures(drawn(folder, spec))
    rows = folder / f"{one.name.replace(' ', '-')}-rows.npy"
    np.save(rows, np.stack([preprocess(path, spec) for path in shown.rows]))
    answers = []
    for name, device in (("browser", browser), ("here", here)):
        (folder / name).mkdir(exist_ok=True)
        found = score(one, device, inputs=shown, out=folder / name)
        answers.append(np.load(folder / name / found.logits))
    difference = float(np.abs(answers[0] - answers[1]).max())
    agreement = float((answers[0].argmax(1) == answers[1].argmax(1)).mean())
    same = {"max_abs": difference, "largest_logit": float(np.abs(answers[1]).max()), "agreement": agreement}
    return [row(one, threads, timed(one, (browser, here), rows, threads, SAMPLES[quick]), same) for threads in THREADS]


def drawn(folder: Path, spec: InputSpec) -> list[Path]:
    """Coarse random pictures, the same each time."""
    rng, out = np.random.default_rng(0), folder / f"pictures-{spec.height}"
    out.mkdir(exist_ok=True)
    paths = [out / f"{number}.png" for number in range(PICTURES)]
    for path in paths:
        coarse = rng.integers(0, 256, (7, 9, 3)).astype(np.uint8)
        Image.fromarray(coarse).resize((spec.width + 20, spec.height + 10), Image.Resampling.BICUBIC).save(path)
    return paths


def timed(
    one: Candidate, devices: Sequence[Device], rows: Path, threads: int, samples: int
) -> list[tuple[dict[str, Any], list[int]]]:
    """For each device what it loaded and its latencies, nanoseconds; in turns, in fresh workers each launch."""
    files, collected = [Path(one.directory) / f for f in one.exported.files], [[] for _ in devices]
    for _ in range(LAUNCHES):
        with ExitStack() as stack:
            workers = [stack.enter_context(device.start()) for device in devices]
            loaded = [
                load(worker, device, one, files, threads) for worker, device in zip(workers, devices, strict=True)
            ]
            for worker, device in zip(workers, devices, strict=True):
                worker.request({"op": "inputs", "path": device.push([rows])[0]}, 60)
            typical = [statistics.median(block(worker, WARMUP)) for worker in workers]
            done = [0 for _ in workers]
            while min(done) < math.ceil(samples / LAUNCHES):
                for number, worker in enumerate(workers):
                    latency_ns = block(worker, max(1, round(BLOCK_SECONDS * 1e9 / typical[number])))
                    collected[number] += latency_ns
                    done[number] += len(latency_ns)
    return list(zip(loaded, collected, strict=True))


def load(worker: WorkerHandle, device: Device, one: Candidate, files: Sequence[Path], threads: int) -> dict[str, Any]:
    request = {"op": "load", "files": list(device.push(files)), "sha256": list(one.exported.sha256)}
    more = {"runtime": one.exported.runtime, "precision": one.exported.precision, "threads": threads}
    return worker.request({**request, **more}, 300)


def block(worker: WorkerHandle, n: int) -> list[int]:
    found: list[int] = worker.request({"op": "block", "n": n, "lead": 1}, 300)["latency_ns"]
    return found


def row(
    one: Candidate, threads: int, sides: list[tuple[dict[str, Any], list[int]]], same: dict[str, float]
) -> common.Row:
    (page, there), (native, here) = sides
    return {
        "file": one.name,
        "threads": threads,
        "threads_in_page": page["threads"],
        "browser_p50_ms": statistics.median(there) / 1e6,
        "here_p50_ms": statistics.median(here) / 1e6,
        "times_as_slow": statistics.median(there) / statistics.median(here),
        "browser_load_ms": page["load_ns"] / 1e6,
        "here_load_ms": native["load_ns"] / 1e6,
        "samples": min(len(there), len(here)),
        **same,
        "runtime": page["runtime_version"],
        "beside": native["runtime_version"],
    }


def markdown(results: dict[str, Any]) -> str:
    facts = results["conditions"]
    load = facts["load"].split()[0]
    words = f"{facts['browser']['board']}, {facts['cpu_model']}, {facts['cpu_count']} cores, load {load}"
    lines = [f"{words}{', quick: no reportable figures' if facts['quick'] else ''}.", ""]
    lines += ["| file | threads | browser p50, ms | here p50, ms | times as slow | largest difference | runtime |"]
    lines += ["|---|---:|---:|---:|---:|---:|---|"]
    for r in results["rows"]:
        cells = [r["file"], str(r["threads_in_page"]), f"{r['browser_p50_ms']:.2f}", f"{r['here_p50_ms']:.2f}"]
        cells += [f"{r['times_as_slow']:.1f}", f"{r['max_abs']:.2g}", r["runtime"]]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
