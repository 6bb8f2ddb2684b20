"""The parity ladder: torch -> exported graph -> optimised graph -> fp16 -> int8; a broken rung is named and classed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from distilledge.models import metrics
from distilledge.models.errors import IntegrityError
from distilledge.models.heads import Heads, spans
from distilledge.pipeline import checkpoint as checkpoints
from distilledge.pipeline import divergence
from distilledge.pipeline.compress.ledger import Twin
from distilledge.pipeline.inputs import Judged, PictureRows, Rows, id_rows, picture_rows
from distilledge.pipeline.recipe import Verify
from distilledge.pipeline.record import Checkpoint, ExportResult, Parity, Rung
from distilledge.targets import get
from distilledge.targets.base import Exported, FloatArray
from distilledge.targets.ondevice.preprocess import InputSpec
from distilledge.targets.ondevice.session import open_session
from distilledge.targets.ondevice.text import TextEncoder, TextSpec, WrongTokenizer
from distilledge.targets.samples import Samples
from distilledge.targets.validate import check_model_file

TIE, TIE_FP16 = 1e-3, 1e-2
"""Of the largest logit: a float32 or float16 file may turn a lead below it around."""


class Part(NamedTuple):
    """A task's columns of the logits; of one task all of them, and no name."""

    head: str
    columns: slice


WHOLE = Part("", slice(None))


class Side(NamedTuple):
    """One side of a rung: its name and what it makes of the rows."""

    name: str
    judged: Judged

    def only(self, part: Part) -> Side:
        """Of one task, with its name."""
        if not part.head:
            return self
        logits = self.judged.logits[:, part.columns]
        return Side(f"{self.name}, {part.head}", Judged(logits, logits))


def verify(
    checkpoint: Checkpoint,
    directory: Path,
    result: ExportResult,
    exports: Path,
    samples: Samples,
    limits: Verify,
) -> Parity:
    """Climb the ladder of one model in one runtime; the rungs after a broken one are still measured and recorded.

    The reference normalises in numpy from the input spec, independent of the graph, so constant-image probes and the
    pictures themselves show a normalisation that is missing, doubled or permuted. Texts go to torch one by one without
    padding, so a mask that is wrong shows; the tokenizer is the exported one. Raises ``IntegrityError`` where that is
    not the trained one.
    """
    rows = rows_of(result, exports, samples)
    model = checkpoints.load(checkpoint, directory)
    return Parity(role=result.role, rungs=ladder(model, rows, result, exports, limits), samples=len(rows))


def rows_of(result: ExportResult, exports: Path, samples: Samples) -> Rows:
    """Probes and samples, as the files of an export take them."""
    fields = result.files[0].input_spec
    if not samples.text:
        return picture_rows(samples, InputSpec.from_dict(fields))
    spec = TextSpec.from_dict(fields)
    try:
        return id_rows(samples, TextEncoder(exports / spec.tokenizer, spec))
    except (WrongTokenizer, FileNotFoundError) as error:
        hint = "export the model again; the file changed after it was made"
        raise IntegrityError("E7604", f"not the tokenizer it was trained with: {error}", hint) from error


def ladder(model: nn.Module, rows: Rows, result: ExportResult, exports: Path, limits: Verify) -> tuple[Rung, ...]:
    """The rungs of one model's files; ``rows`` begin with the probes."""
    torch_side = Side("torch fp32", rows.by_torch(model))
    rungs = _float_rungs(model, result, exports, rows, torch_side, limits)
    rungs += _compressed_rungs(model, result, exports, rows, limits)
    return tuple(rungs)


def run_file(path: Path, runtime: str, rows: Rows, precision: str = "fp32") -> Judged:
    """Logits of a file as its runtime runs it on the device, one row at a time."""
    check_model_file(path)
    return rows.by_file(open_session(str(path), runtime, threads=1, precision=precision))


def compare(runtime: str, reference: Side, candidate: Side, *, tie: float = 0.0) -> dict[str, Any]:
    """The figures of a rung; ``tie``: a lead of so many logits counts as none."""
    a, b = reference.judged, candidate.judged
    return {
        "runtime": runtime,
        "reference": reference.name,
        "candidate": candidate.name,
        "agreement": metrics.agreement(a.decisions, b.decisions, tie=tie),
        "kl": metrics.kl(a.decisions, b.decisions),
        "cosine": metrics.cosine(a.logits, b.logits),
        "psnr_db": metrics.psnr(a.logits, b.logits),
        "max_abs": metrics.max_abs(a.logits, b.logits),
    }


def _float_rungs(
    model: nn.Module, result: ExportResult, exports: Path, rows: Rows, reference: Side, limits: Verify
) -> list[Rung]:
    exported = result.files[0]
    path = exports / exported.files[0]
    target = get(exported.runtime)
    few = rows.only(rows.few)
    graph = target.tensors(path, rows.few, optimise=False)
    logits = divergence.logits_of(graph, [head.name for head in exported.heads])
    outputs = [row.reshape(row.shape[1:]) for row in logits]  # without the batch of one
    as_exported = Side(f"{exported.runtime} fp32 as exported", few.judged(outputs))
    on_few = Side(reference.name, few.by_torch(model))
    optimised = Side(f"{exported.runtime} fp32 optimised", run_file(path, exported.runtime, rows))
    rungs = []
    for part in parts_of(exported.heads):
        first = _float_rung(exported.runtime, on_few, as_exported, limits, part)
        second = _float_rung(exported.runtime, reference, optimised, limits, part)
        if not first.holds:
            first = _explain_export(first, model, graph, rows, as_exported)
            second = second.model_copy(update={"fault_class": None if second.holds else first.fault_class})
        elif not second.holds:
            second = _explain_optimised(second, target, path, graph, rows)
        rungs += [first, second]
    return rungs


def parts_of(heads: Heads) -> list[Part]:
    """What is compared by itself: each task's output; of one task all there is."""
    if not heads:
        return [WHOLE]
    return [Part(head.name, columns) for head, columns in zip(heads, spans(heads), strict=True)]


def _float_rung(runtime: str, reference: Side, candidate: Side, limits: Verify, part: Part = WHOLE) -> Rung:
    reference, candidate = reference.only(part), candidate.only(part)
    scale = float(np.abs(reference.judged.logits).max())
    figures = compare(runtime, reference, candidate, tie=TIE * scale)
    holds = figures["max_abs"] <= limits.max_abs_fp32 * scale and figures["agreement"] >= limits.min_agreement_fp32
    limit = (
        f"max abs <= {limits.max_abs_fp32:g} x largest logit ({scale:.3g}), agreement >= {limits.min_agreement_fp32:g}"
    )
    return _rung(figures, limit, part, holds=bool(holds))


def _rung(figures: dict[str, Any], limit: str, part: Part = WHOLE, *, holds: bool) -> Rung:
    finite = all(np.isfinite(v) for v in figures.values() if isinstance(v, float))
    clean = {k: (0.0 if isinstance(v, float) and not np.isfinite(v) else v) for k, v in figures.items()}
    if clean["psnr_db"] == 0.0 and figures["psnr_db"] != 0.0:
        clean["psnr_db"] = None
    limit = limit if finite else f"finite outputs; {limit}"
    return Rung(**clean, head=part.head, limit=limit, holds=holds and finite)


def _explain_export(rung: Rung, model: nn.Module, graph: dict[str, FloatArray], rows: Rows, got: Side) -> Rung:
    if isinstance(rows, PictureRows):
        mistake = divergence.preprocess_mistake(model, rows.few, rows.spec, got.judged.logits)
        if mistake:
            return rung.model_copy(update={"fault_class": "preprocess", "first_divergent": f"the input ({mistake})"})
    first = divergence.first_module(model, rows.tensor(rows.few), graph)
    return rung.model_copy(update={"fault_class": "export op", "first_divergent": first})


def _explain_optimised(rung: Rung, target: Any, path: Path, graph: dict[str, FloatArray], rows: Rows) -> Rung:
    optimised = target.tensors(path, rows.few, optimise=True)
    first = divergence.first_tensor(graph, optimised, min_sqnr_db=40.0)
    fault = "graph optimisation" if first else "runtime"
    return rung.model_copy(update={"fault_class": fault, "first_divergent": first})


def _compressed_rungs(model: nn.Module, result: ExportResult, exports: Path, rows: Rows, limits: Verify) -> list[Rung]:
    fp32, real = result.files[0], rows.real()
    fp32_path = exports / fp32.files[0]
    reference = Side(f"{fp32.runtime} fp32", run_file(fp32_path, fp32.runtime, real))
    rungs = []
    for exported in result.files[1:]:
        if (twin := _twin(result, exported)) is not None:
            rungs.append(_twin_rung(exported, twin, limits))
            continue
        path = exports / exported.files[0]
        judged = run_file(path, exported.runtime, real, exported.precision)
        candidate = Side(f"{exported.runtime} {exported.precision}", judged)
        for part in parts_of(exported.heads):
            rung = _compressed_rung(exported, reference, candidate, limits, part)
            if not rung.holds:
                rung = _explain_compressed(rung, model, exported, (fp32_path, path), rows, part)
            rungs.append(rung)
    return rungs


def _twin(result: ExportResult, exported: Exported) -> Twin | None:
    """Of a file that was trained by a rung: it is another function than the fp32 file, and compared with its own."""
    taken = result.ledger and result.ledger.tried[result.ledger.taken]
    return taken.twin if taken and taken.precision == exported.precision else None


def _twin_rung(exported: Exported, twin: Twin, limits: Verify) -> Rung:
    """As the ladder compared them on the device, on all validation pictures."""
    holds = twin.agreement >= limits.min_agreement_int8 and twin.cosine >= limits.min_cosine_int8
    names = {"reference": twin.of, "candidate": f"{exported.runtime} {exported.precision}"}
    return _rung(
        {"runtime": exported.runtime, **names, **twin.model_dump(exclude={"of"})},
        f"agreement >= {limits.min_agreement_int8:g}, cosine >= {limits.min_cosine_int8:g}",
        holds=holds,
    )


def _compressed_rung(exported: Exported, reference: Side, candidate: Side, limits: Verify, part: Part = WHOLE) -> Rung:
    reference, candidate = reference.only(part), candidate.only(part)
    if exported.precision == "fp16":
        tie = TIE_FP16 * float(np.abs(reference.judged.logits).max())
        figures = compare(exported.runtime, reference, candidate, tie=tie)
        return _rung(
            figures,
            f"agreement >= {limits.min_agreement_fp16:g}",
            part,
            holds=figures["agreement"] >= limits.min_agreement_fp16,
        )
    figures = compare(exported.runtime, reference, candidate)
    holds = figures["agreement"] >= limits.min_agreement_int8 and figures["cosine"] >= limits.min_cosine_int8
    return _rung(
        figures, f"agreement >= {limits.min_agreement_int8:g}, cosine >= {limits.min_cosine_int8:g}", part, holds=holds
    )


def _explain_compressed(
    rung: Rung, model: nn.Module, exported: Exported, paths: tuple[Path, Path], rows: Rows, part: Part = WHOLE
) -> Rung:
    """Weight range where rounding the weights alone already breaks the model, else activation range."""
    real, target = rows.real(), get(exported.runtime)
    rounded = real.by_torch(divergence.rounded_weights(model)).decisions[:, part.columns]
    weights_alone = metrics.agreement(real.by_torch(model).decisions[:, part.columns], rounded)
    float_tensors, others = (target.tensors(path, rows.real_few, optimise=False) for path in paths)
    first = divergence.first_tensor(float_tensors, others, min_sqnr_db=5.0)
    fault = (
        "weight range" if exported.precision != "fp16" and weights_alone < rung.agreement + 0.02 else "activation range"
    )
    return rung.model_copy(update={"fault_class": fault, "first_divergent": first})
