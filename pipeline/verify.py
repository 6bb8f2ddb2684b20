"""The parity ladder: torch -> exported graph -> optimised graph -> fp16 -> int8; a broken rung is named and classed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from distilledge.models import metrics
from distilledge.pipeline import checkpoint as checkpoints
from distilledge.pipeline import divergence
from distilledge.pipeline.export import stack
from distilledge.pipeline.recipe import Verify
from distilledge.pipeline.record import Checkpoint, ExportResult, Parity, Rung
from distilledge.targets import get
from distilledge.targets.base import Exported, FloatArray, Uint8Array
from distilledge.targets.ondevice.preprocess import InputSpec
from distilledge.targets.ondevice.session import open_session
from distilledge.targets.validate import check_model_file

PROBES = 6
"""Constant images before the pictures."""

GRAPH_PICTURES = 4
"""Pictures run with every tensor kept (memory)."""

GRAPH = slice(PROBES - 2, PROBES + GRAPH_PICTURES - 2)
"""Two coloured probes and the first pictures."""

TIE, TIE_FP16 = 1e-3, 1e-2
"""Of the largest logit: a float32 or float16 file may turn a lead below it around."""


class Side(NamedTuple):
    """One side of a rung: its name and its logits (N, classes)."""

    name: str
    logits: FloatArray


def verify(
    checkpoint: Checkpoint,
    directory: Path,
    result: ExportResult,
    exports: Path,
    pictures: Sequence[Path],
    limits: Verify,
) -> Parity:
    """Climb the ladder of one model in one runtime; the rungs after a broken one are still measured and recorded.

    The reference normalises in numpy from the input spec, independent of the graph, so constant-image probes and the
    pictures themselves show a normalisation that is missing, doubled or permuted.
    """
    spec = InputSpec.from_dict(checkpoint.input_spec)
    images = np.concatenate([probes(spec), stack(pictures, spec)])
    model = checkpoints.load(checkpoint, directory)
    return Parity(role=result.role, rungs=ladder(model, spec, result, exports, images, limits), samples=len(images))


def ladder(
    model: torch.nn.Module, spec: InputSpec, result: ExportResult, exports: Path, images: Uint8Array, limits: Verify
) -> tuple[Rung, ...]:
    """The rungs of one model's files; ``images`` begin with the constant probes."""
    torch_side = Side("torch fp32", torch_logits(model, images, spec))
    rungs = _float_rungs(model, result, exports, images, torch_side, limits)
    rungs += _compressed_rungs(model, result, exports, images, spec, limits)
    return tuple(rungs)


def probes(spec: InputSpec) -> Uint8Array:
    """Constant images: black, grey, white, red, green, blue; a doubled normalisation or swapped channels show."""
    colours = [(0, 0, 0), (128, 128, 128), (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255)]
    return np.stack([np.full((spec.height, spec.width, 3), colour, np.uint8) for colour in colours])


def normalise(images: Uint8Array, spec: InputSpec) -> torch.Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) float32, the contract's own arithmetic."""
    scaled = (images.astype(np.float32) / 255.0 - np.array(spec.mean, np.float32)) / np.array(spec.std, np.float32)
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)))


@torch.inference_mode()
def torch_logits(model: torch.nn.Module, images: Uint8Array, spec: InputSpec) -> FloatArray:
    """Logits of the eval-mode model, (N, classes), in batches of 16."""
    parts = [model(normalise(images[i : i + 16], spec)).float().numpy() for i in range(0, len(images), 16)]
    return np.concatenate(parts)


def run_file(path: Path, runtime: str, images: Uint8Array, precision: str = "fp32") -> FloatArray:
    """Logits of a file as its runtime runs it on the device, one picture at a time."""
    check_model_file(path)
    session = open_session(str(path), runtime, threads=1, precision=precision)
    return session.run(images)


def compare(runtime: str, reference: Side, candidate: Side, *, tie: float = 0.0) -> dict[str, Any]:
    """The figures of a rung; ``tie``: a lead of so many logits counts as none."""
    a, b = reference.logits, candidate.logits
    return {
        "runtime": runtime,
        "reference": reference.name,
        "candidate": candidate.name,
        "agreement": metrics.agreement(a, b, tie=tie),
        "kl": metrics.kl(a, b),
        "cosine": metrics.cosine(a, b),
        "psnr_db": metrics.psnr(a, b),
        "max_abs": metrics.max_abs(a, b),
    }


def _float_rungs(
    model: torch.nn.Module, result: ExportResult, exports: Path, images: Uint8Array, reference: Side, limits: Verify
) -> list[Rung]:
    exported = result.files[0]
    path = exports / exported.files[0]
    target = get(exported.runtime)
    few = images[GRAPH]
    graph = target.tensors(path, few, optimise=False)
    as_exported = Side(f"{exported.runtime} fp32 as exported", divergence.logits_of(graph))
    first = _float_rung(exported.runtime, Side(reference.name, reference.logits[GRAPH]), as_exported, limits)
    optimised = Side(f"{exported.runtime} fp32 optimised", run_file(path, exported.runtime, images))
    second = _float_rung(exported.runtime, reference, optimised, limits)
    spec = InputSpec.from_dict(exported.input_spec)
    if not first.holds:
        first = _explain_export(first, model, graph, few, spec, as_exported)
        second = second.model_copy(update={"fault_class": None if second.holds else first.fault_class})
    elif not second.holds:
        second = _explain_optimised(second, target, path, graph, few)
    return [first, second]


def _float_rung(runtime: str, reference: Side, candidate: Side, limits: Verify) -> Rung:
    scale = float(np.abs(reference.logits).max())
    figures = compare(runtime, reference, candidate, tie=TIE * scale)
    holds = figures["max_abs"] <= limits.max_abs_fp32 * scale and figures["agreement"] >= limits.min_agreement_fp32
    limit = (
        f"max abs <= {limits.max_abs_fp32:g} x largest logit ({scale:.3g}), agreement >= {limits.min_agreement_fp32:g}"
    )
    return _rung(figures, limit, holds=bool(holds))


def _rung(figures: dict[str, Any], limit: str, *, holds: bool) -> Rung:
    finite = all(np.isfinite(v) for v in figures.values() if isinstance(v, float))
    clean = {k: (0.0 if isinstance(v, float) and not np.isfinite(v) else v) for k, v in figures.items()}
    if clean["psnr_db"] == 0.0 and figures["psnr_db"] != 0.0:
        clean["psnr_db"] = None
    return Rung(**clean, limit=limit if finite else f"finite outputs; {limit}", holds=holds and finite)


def _explain_export(
    rung: Rung, model: torch.nn.Module, graph: dict[str, FloatArray], images: Uint8Array, spec: InputSpec, got: Side
) -> Rung:
    mistake = divergence.preprocess_mistake(model, images, spec, got.logits)
    if mistake:
        return rung.model_copy(update={"fault_class": "preprocess", "first_divergent": f"the input ({mistake})"})
    first = divergence.first_module(model, normalise(images, spec), graph)
    return rung.model_copy(update={"fault_class": "export op", "first_divergent": first})


def _explain_optimised(rung: Rung, target: Any, path: Path, graph: dict[str, FloatArray], images: Uint8Array) -> Rung:
    optimised = target.tensors(path, images, optimise=True)
    first = divergence.first_tensor(graph, optimised, min_sqnr_db=40.0)
    fault = "graph optimisation" if first else "runtime"
    return rung.model_copy(update={"fault_class": fault, "first_divergent": first})


def _compressed_rungs(
    model: torch.nn.Module, result: ExportResult, exports: Path, images: Uint8Array, spec: InputSpec, limits: Verify
) -> list[Rung]:
    fp32 = result.files[0]
    fp32_path = exports / fp32.files[0]
    reference = Side(f"{fp32.runtime} fp32", run_file(fp32_path, fp32.runtime, images))
    rungs = []
    for exported in result.files[1:]:
        path = exports / exported.files[0]
        candidate = Side(
            f"{exported.runtime} {exported.precision}", run_file(path, exported.runtime, images, exported.precision)
        )
        rung = _compressed_rung(exported, _pictures(reference), _pictures(candidate), limits)
        rungs.append(
            rung if rung.holds else _explain_compressed(rung, model, exported, (fp32_path, path), images, spec)
        )
    return rungs


def _pictures(side: Side) -> Side:
    """Without the constant probes: they lie outside the calibrated range and say nothing of int8."""
    return Side(side.name, side.logits[PROBES:])


def _compressed_rung(exported: Exported, reference: Side, candidate: Side, limits: Verify) -> Rung:
    if exported.precision == "fp16":
        tie = TIE_FP16 * float(np.abs(reference.logits).max())
        figures = compare(exported.runtime, reference, candidate, tie=tie)
        return _rung(
            figures,
            f"agreement >= {limits.min_agreement_fp16:g}",
            holds=figures["agreement"] >= limits.min_agreement_fp16,
        )
    figures = compare(exported.runtime, reference, candidate)
    holds = figures["agreement"] >= limits.min_agreement_int8 and figures["cosine"] >= limits.min_cosine_int8
    return _rung(
        figures, f"agreement >= {limits.min_agreement_int8:g}, cosine >= {limits.min_cosine_int8:g}", holds=holds
    )


def _explain_compressed(
    rung: Rung,
    model: torch.nn.Module,
    exported: Exported,
    paths: tuple[Path, Path],
    images: Uint8Array,
    spec: InputSpec,
) -> Rung:
    """Weight range where rounding the weights alone already breaks the model, else activation range."""
    pictures = images[PROBES:]
    weights_alone = divergence.weight_rounding_agreement(model, normalise(pictures, spec))
    target = get(exported.runtime)
    few = pictures[:GRAPH_PICTURES]
    first = divergence.first_tensor(
        target.tensors(paths[0], few, optimise=False), target.tensors(paths[1], few, optimise=False), min_sqnr_db=5.0
    )
    fault = (
        "weight range" if exported.precision != "fp16" and weights_alone < rung.agreement + 0.02 else "activation range"
    )
    return rung.model_copy(update={"fault_class": fault, "first_divergent": first})
