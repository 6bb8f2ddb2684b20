"""One int8 file of one checkpoint by each tool that a user would pick instead, typed as its own pages say."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from distilledge.pipeline import stats_counts
from distilledge.pipeline.outcomes import Outcomes, classified, outcomes
from distilledge.pipeline.recipe import Recipe
from distilledge.pipeline.record import Sample, TextRow
from distilledge.targets.base import AnyDeployable, Exported, Inputs, Precision, RuntimeName, Target
from distilledge.targets.ondevice.text import TextEncoder
from distilledge.targets.samples import Samples

APART = Path(__file__).with_name("tools_apart.py")
ENVIRONMENTS = {"olive": ("olive-ai",), "optimum": ("optimum-intel>=2.2",)}
"""Packages of the environments that ``--environments`` makes; all else is taken from this interpreter's."""
APART_SECONDS = 600
PICTURES, TEXTS = (False,), (True,)
BOTH = (False, True)


class SkippedError(Exception):
    """A tool that was not run, and why."""


class Part(NamedTuple):
    """A split."""

    samples: Sequence[Sample]
    inputs: Samples
    rows: Sequence[TextRow]


class Case(NamedTuple):
    """One student in one runtime."""

    recipe: Recipe
    target: Target
    deployable: AnyDeployable
    fp32: Exported
    directory: Path
    """Where its files lie."""
    calibration: Sequence[Inputs]
    """Arrays (1, ...), of texts not padded."""
    validation: Part
    validated: Sequence[Inputs]
    """The arrays of ``validation``, as the file takes them."""
    test: Part
    encoder: TextEncoder | None
    environments: Path | None
    folder: Path
    """Of what the tools make, named by the fp32 file."""

    @property
    def source(self) -> Path:
        return self.directory / self.fp32.files[0]

    def judged(self, part: Part, logits: Any) -> Outcomes:
        labels = np.asarray([s.label for s in part.samples], np.int64)
        if not self.recipe.is_text:
            return classified(self.recipe.metric, logits, labels, self.fp32.classes)
        given = (self.recipe.task, self.recipe.metric, logits, part.rows, self.encoder, self.fp32.classes)
        return outcomes(*given, labels=labels.tolist())


class Tool(NamedTuple):
    """``make`` writes a file from a case's fp32 one and returns how, in words."""

    make: Callable[[Case, Path], str]
    precision: Precision
    texts: tuple[bool, ...] = BOTH


# --- ONNX Runtime -----------------------------------------------------------------------------------------------------


def feed(case: Case) -> Any:
    from distilledge.targets.onnx import session
    from distilledge.targets.onnx_quantize import Pictures

    return Pictures(session(case.source).get_inputs()[0].name, case.calibration)


def ort_defaults(case: Case, path: Path) -> str:
    from onnxruntime.quantization import quantize_static

    quantize_static(str(case.source), str(path), feed(case))
    return "quantize_static(model, out, reader)"


def ort_recommended(case: Case, path: Path) -> str:
    """U8S8 per channel after pre-processing, as its page on quantization advises for x86-64."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = path.with_name("prepared.onnx")
    quant_pre_process(str(case.source), str(prepared), skip_symbolic_shape=case.recipe.is_text)
    kinds = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    quantize_static(str(prepared), str(path), feed(case), quant_format=QuantFormat.QDQ, per_channel=True, **kinds)
    prepared.unlink()
    return "quant_pre_process, then quantize_static in QDQ U8S8, per_channel"


def ort_dynamic(case: Case, path: Path) -> str:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(str(case.source), str(path))
    return "quantize_dynamic(model, out)"


# --- OpenVINO ---------------------------------------------------------------------------------------------------------


def kind_of(case: Case) -> Any:
    import nncf

    return nncf.ModelType.TRANSFORMER if case.recipe.is_text else None


def nncf_quantize(case: Case, path: Path) -> str:
    import nncf
    import openvino as ov

    kind = kind_of(case)
    made = nncf.quantize(ov.Core().read_model(case.source), nncf.Dataset(list(case.calibration)), model_type=kind)
    ov.save_model(made, path)
    return "nncf.quantize(model, dataset" + (", model_type=TRANSFORMER)" if kind else ")")


def nncf_controlled(case: Case, path: Path) -> str:
    """Ranks layers on the validation split, as ours does, and returns them to float until the drop is within bounds."""
    import nncf
    import openvino as ov

    part, limit = case.validation, (case.recipe.budget_of("openvino").max_drop_points_fp32 or 0.5) / 100
    labels = np.asarray([s.label for s in part.samples], np.int64)

    def validate(model: ov.CompiledModel, items: Iterable[tuple[int, Inputs]]) -> tuple[float, None]:
        """NNCF ranks layers on some of the items only."""
        pairs = list(items)
        places = [place for place, _ in pairs]
        some = Part([part.samples[i] for i in places], part.inputs, [part.rows[i] for i in places] if part.rows else ())
        found = case.judged(some, np.concatenate([model(array)[0].copy() for _, array in pairs]))
        return stats_counts.value(found.counts, labels[places], metric=case.recipe.metric), None

    made = nncf.quantize_with_accuracy_control(
        ov.Core().read_model(case.source),
        calibration_dataset=nncf.Dataset(list(case.calibration)),
        validation_dataset=nncf.Dataset(list(enumerate(case.validated)), lambda item: item[1]),
        validation_fn=validate,
        max_drop=limit,
        model_type=kind_of(case),
    )
    ov.save_model(made, path)
    return f"nncf.quantize_with_accuracy_control(..., max_drop={limit:g})"


# --- LiteRT -----------------------------------------------------------------------------------------------------------


def edge_static(case: Case, path: Path) -> str:
    from ai_edge_quantizer import quantizer, recipe

    from distilledge.targets.tflite_quantize import fed

    work = quantizer.Quantizer(str(case.source), recipe.static_wi8_ai8())
    pad_id = getattr(case.deployable, "pad_id", 0)
    work.quantize(work.calibrate(fed(case.source, case.calibration, pad_id))).export_model(str(path))
    return "recipe.static_wi8_ai8()"


def edge_dynamic(case: Case, path: Path) -> str:
    from ai_edge_quantizer import quantizer, recipe

    quantizer.Quantizer(str(case.source), recipe.dynamic_wi8_afp32()).quantize().export_model(str(path))
    return "recipe.dynamic_wi8_afp32()"


# --- in an environment of its own -------------------------------------------------------------------------------------


def apart(name: str, environment: str, words: str) -> Callable[[Case, Path], str]:
    def make(case: Case, path: Path) -> str:
        if case.environments is None:
            raise SkippedError("needs --environments DIR")
        python = case.environments / environment / "bin" / "python"
        if not python.exists():
            raise SkippedError(f"{environment} did not install")
        with tempfile.TemporaryDirectory() as folder:
            rows = Path(folder) / "rows.npz"
            np.savez(rows, **{f"row{i:05}": row for i, row in enumerate(case.calibration)})  # type: ignore[arg-type]
            named = "ids" if case.recipe.is_text else "image"
            job = {"source": case.source, "rows": rows, "input": named, "out": path, "text": case.recipe.is_text}
            told = Path(folder) / "job.json"
            told.write_text(json.dumps(job, default=str), encoding="utf-8")
            command = [str(python), str(APART), name, str(told)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=APART_SECONDS, cwd=folder)
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1][:300])
        return words

    return make


def environments(folder: Path) -> None:
    """Make those of ``ENVIRONMENTS`` that are not there: the packages here, then their own on top, found first."""
    for name, packages in ENVIRONMENTS.items():
        own = folder / name
        if (own / "bin" / "python").exists():
            continue
        subprocess.run([sys.executable, "-m", "venv", str(own)], check=True)
        inside = own / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
        (inside / "base.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
        installed = subprocess.run([str(own / "bin" / "pip"), "install", "--no-input", *packages])
        if installed.returncode:
            (own / "bin" / "python").unlink()


OLIVE_STATIC = apart("olive-static", "olive", "OnnxStaticQuantization, its defaults")
OLIVE_DYNAMIC = apart("olive-dynamic", "olive", "OnnxDynamicQuantization, its defaults")
OPTIMUM = apart("optimum", "optimum", "OVQuantizer, OVQuantizationConfig(bits=8)")

TOOLS: dict[RuntimeName, dict[str, Tool]] = {
    "onnx": {
        "onnxruntime, defaults": Tool(ort_defaults, "w8a8"),
        "onnxruntime, as advised": Tool(ort_recommended, "w8a8"),
        "onnxruntime, dynamic": Tool(ort_dynamic, "w8dyn", TEXTS),
        "Olive, static": Tool(OLIVE_STATIC, "w8a8"),
        "Olive, dynamic": Tool(OLIVE_DYNAMIC, "w8dyn", TEXTS),
    },
    "openvino": {
        "nncf.quantize": Tool(nncf_quantize, "w8a8"),
        "nncf, accuracy control": Tool(nncf_controlled, "w8a8"),
        "optimum-intel": Tool(OPTIMUM, "w8a8"),
    },
    "tflite": {
        "ai-edge-quantizer, static": Tool(edge_static, "w8a8"),
        "ai-edge-quantizer, dynamic": Tool(edge_dynamic, "w8dyn"),
    },
}
