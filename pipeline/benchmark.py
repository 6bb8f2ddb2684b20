"""Measure and score stages: exported files on the device, the teacher beside the student in the same run."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import numpy as np
import numpy.typing as npt

from distilledge.models.heads import spans
from distilledge.pipeline.decode import as_row
from distilledge.pipeline.outcomes import write_outcomes
from distilledge.pipeline.previous import check_previous, previous_files
from distilledge.pipeline.profile import write_profiles
from distilledge.pipeline.protocol import Beside, measure_beside, shown, with_audits
from distilledge.pipeline.recipe import Measure, TaskName, Units
from distilledge.pipeline.record import ExportResult, Measurements, Sample, Scores, TextRow
from distilledge.pipeline.task_scores import check_width
from distilledge.targets.base import Exported, FloatArray, Measurement, Predictions
from distilledge.targets.devices import Device
from distilledge.targets.devices.local import LocalDevice
from distilledge.targets.measure import Candidate, measure, score
from distilledge.targets.ondevice.text import TextEncoder, TextSpec
from distilledge.targets.placement import with_placement
from distilledge.targets.protocol import Tries
from distilledge.targets.samples import Samples, is_text, pictures
from distilledge.targets.steady import Steady
from distilledge.targets.tries import compare_tries, joined
from distilledge.targets.units import Profile, Profiles

DEFAULT_UNITS = Units()
QUICK_SAMPLES = 256
"""Timed inferences under ``measure.quick``: below what is reportable, and labelled as such."""


def candidate(result: ExportResult, exported: Exported, directory: Path, units: Units) -> Candidate:
    """A file with the name it has in every table, and what it is run on."""
    return Candidate(
        name=row_name(result.role, exported),
        role=result.role,
        directory=str(directory),
        exported=exported,
        units=units.request(exported.runtime),
    )


def row_name(role: str, exported: Exported) -> str:
    """Unique in a run, such as ``student onnx w8a8``."""
    return f"{role} {exported.runtime} {exported.precision}"


def samples_of(samples: Sequence[Sample], root: Path, texts: Sequence[TextRow]) -> Samples:
    """What files are timed and scored on: pictures, or the texts of the samples, in their order."""
    if texts:
        return Samples(tuple({"text": as_row(row.text), "context": row.context} for row in texts), text=True)
    return pictures([root / s.path for s in samples])


def measure_exports(
    exports: Sequence[tuple[ExportResult, Path]],
    inputs: Samples,
    settings: Measure,
    device: Device,
    out: Path | None = None,
) -> Measurements:
    """Time every file of each runtime, interleaved with that runtime's teacher, for each thread count.

    Then what the recipe asks for beside.

    Texts are timed as they are, then at each of ``settings.lengths`` that all files take; there from ids only.
    Where each file's operations run is read back afterwards (``quick``: of the teacher and what ships); ``out``: its
    layers are written there, as profile.json.
    """
    steady = Steady(settings.cool_down, clock=not settings.quick)
    items: list[Measurement] = []
    profiles: dict[tuple[str, int], Profile] = {}
    tries: list[Tries] = []
    beside: list[Beside] = []
    groups = groups_of(exports, settings)
    for group in groups:
        for threads, length in product(settings.threads, (None, *lengths_of(group, settings))):
            made = [
                measure_once(group, inputs, settings, device, threads=threads, length=length, steady=steady)
                for _ in range(settings.tries)
            ]
            profiled = shown(group, teacher=True) if settings.quick else group
            items += with_placement(joined(made), profiled, device, threads, profiles)
            tries += compare_tries(made) if settings.tries > 1 else ()
        beside.append(measure_beside(group, inputs, settings, device))
    if out is not None:
        write_profiles(Profiles(items=tuple(profiles.values())), out)
    audits = tuple(a for b in beside for a in b.audits)
    return Measurements(
        items=tuple(with_audits(items, audits)),
        scenarios=tuple(r for b in beside for r in b.scenarios),
        audits=audits,
        tries=tuple(tries),
        energies=tuple(e for b in beside for e in b.energies),
    )


def groups_of(exports: Sequence[tuple[ExportResult, Path]], settings: Measure) -> list[list[Candidate]]:
    """The files that take turns: those of one runtime, and those of the previous release for it."""
    groups = []
    for runtime in dict.fromkeys(result.runtime for result, _ in exports):
        earlier = previous_files(settings.previous, runtime) if settings.previous else []
        own = [candidate(r, f, d, settings.units) for r, d in exports if r.runtime == runtime for f in r.files]
        groups.append([*own, *earlier])
    check_previous(settings.previous, sum(c.role == "previous" for group in groups for c in group))
    return groups


def measure_once(
    group: Sequence[Candidate],
    inputs: Samples,
    settings: Measure,
    device: Device,
    *,
    threads: int,
    length: int | None,
    steady: Steady,
) -> tuple[Measurement, ...]:
    return measure(
        group,
        device,
        threads=threads,
        samples=QUICK_SAMPLES if settings.quick else settings.samples,
        min_seconds=0.0 if settings.quick else settings.min_seconds,
        launches=1 if settings.quick else settings.launches,
        warmup=settings.warmup,
        end_to_end=settings.end_to_end if length is None else 0,
        quick=settings.quick,
        inputs=inputs,
        length=length,
        steady=steady,
    )


def lengths_of(group: Sequence[Candidate], settings: Measure) -> list[int]:
    """``settings.lengths`` that every file takes."""
    if not all(is_text(c.exported) for c in group):
        return []
    return [n for n in settings.lengths if n <= min(c.exported.input_spec["max_length"] for c in group)]


def predict_export(
    result: ExportResult,
    directory: Path,
    given: tuple[list[Sample], Path, list[TextRow]],
    out: Path,
    device: Device,
    *,
    units: Units = DEFAULT_UNITS,
) -> Scores:
    """Predictions of every file of one export, made on the device by that file.

    ``given``: samples, where their pictures lie, and their texts, beside whose logits then lies what they come to. On
    another device than this machine each file is run here too, on the CPU, and compared. ``units``: of the device.
    """
    samples, _, texts = given
    inputs = samples_of(*given)
    candidates = [candidate(result, f, directory, units) for f in result.files]
    items = tuple(score(c, device, inputs=inputs, out=out) for c in candidates)
    for one, item in zip(candidates, items, strict=True):
        check_width(item, out, one.exported.heads)
    if not isinstance(device, LocalDevice):
        pairs = zip(candidates, items, strict=True)
        items = tuple(item.model_copy(update=beside_host(c, item, inputs, out)) for c, item in pairs)
    if texts and items:
        spec = TextSpec.from_dict(result.files[0].input_spec)
        encoder = TextEncoder(directory / spec.tokenizer, spec)
        items = with_outcomes(items, out, list(zip(samples, texts, strict=True)), encoder, result.files[0].classes)
    return Scores(items=items, labels=tuple(s.label for s in samples), paths=tuple(s.path for s in samples))


def beside_host(candidate: Candidate, item: Predictions, inputs: Samples, out: Path) -> dict[str, float]:
    """What the same file answers on this machine, against the device's answers."""
    with TemporaryDirectory(prefix="distilledge-host-") as folder:
        here_on_cpu = candidate.model_copy(update={"units": None})
        found = score(here_on_cpu, LocalDevice(), inputs=inputs, out=Path(folder))
        here = np.load(Path(folder) / found.logits)
    there = np.load(out / item.logits)
    several = candidate.exported.input_spec.get("task") == "multi-label-classification"
    equal = (here > 0) == (there > 0) if several else answers(here, candidate) == answers(there, candidate)
    same = equal.reshape(len(equal), -1).all(1)
    return {"host_agreement": float(same.mean()), "host_max_abs": float(np.abs(here - there).max())}


def answers(logits: FloatArray, candidate: Candidate) -> npt.NDArray[np.intp]:
    """The class of each row; of several tasks one for each, (N, tasks)."""
    parts = [logits[:, columns].argmax(-1) for columns in spans(candidate.exported.heads)]
    return np.stack(parts, 1) if parts else logits.argmax(-1)


def gather(parts: Sequence[tuple[Scores, Path]], out: Path) -> Scores:
    """All predictions in one directory."""
    for scores, directory in parts:
        for item in scores.items:
            for name in filter(None, (item.logits, item.outcomes)):
                shutil.copyfile(directory / name, out / name)
    first = parts[0][0]
    return Scores(items=tuple(i for s, _ in parts for i in s.items), labels=first.labels, paths=first.paths)


def with_outcomes(
    items: Sequence[Predictions],
    out: Path,
    texts: Sequence[tuple[Sample, TextRow]],
    encoder: TextEncoder,
    classes: Sequence[str],
) -> tuple[Predictions, ...]:
    """Write what each file's logits in ``out`` come to, beside them. ``encoder``: the files' own; it names the task."""
    rows, labels = [row for _, row in texts], [sample.label for sample, _ in texts]
    task = cast(TaskName, encoder.spec.task)
    made = []
    for item in items:
        name = item.logits.removesuffix(".npy") + ".outcomes.npz"
        logits = np.load(out / item.logits)
        write_outcomes(out / name, task, logits, rows, encoder, classes, labels=labels)
        made.append(item.model_copy(update={"outcomes": name}))
    return tuple(made)
