"""Placement and profile of a file, taken on a device in a worker of its own: never in one that is timed."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from distilledge.models.errors import RejectedError, ResourceError
from distilledge.targets.base import Measurement
from distilledge.targets.devices.base import Device
from distilledge.targets.measure import LOAD_SECONDS, Candidate
from distilledge.targets.ondevice.units import DEFAULTS
from distilledge.targets.units import LayerTime, Placement, Profile, UnitShare, unit_flags

log = logging.getLogger("distilledge.placement")


class File(NamedTuple):
    """A model file of any make; ``paths``: the one a runtime is given, then those that must lie beside it."""

    name: str
    paths: tuple[Path, ...]
    runtime: str
    precision: str = "fp32"
    units: Mapping[str, Any] | None = None
    """See ``ondevice.units.chosen``; None: the runtime's default."""


def file_of(candidate: Candidate) -> File:
    exported, directory = candidate.exported, Path(candidate.directory)
    paths = tuple(directory / name for name in exported.files)
    return File(candidate.name, paths, exported.runtime, exported.precision, candidate.units)


def profile(file: File, device: Device, *, threads: int = 1) -> Profile:
    """Where the file's operations run and how long each takes. Raises what ``WorkerHandle.request`` raises."""
    hashes = [_sha256(path) for path in file.paths]
    request = {
        "op": "profile",
        "files": list(device.push(list(file.paths))),
        "sha256": hashes,
        "runtime": file.runtime,
        "precision": file.precision,
        "threads": threads,
        "units": dict(file.units) if file.units else None,
    }
    with device.start() as worker:
        answer = worker.request(request, LOAD_SECONDS)
    layers = tuple(LayerTime(**layer) for layer in answer["layers"])
    return Profile(name=file.name, threads=threads, placement=_placement(file, answer), layers=layers)


def with_placement(
    measurements: Sequence[Measurement],
    candidates: Sequence[Candidate],
    device: Device,
    threads: int,
    taken: dict[tuple[str, int], Profile],
) -> list[Measurement]:
    """The measurements, those of ``candidates`` with where their files ran and the flags of that.

    ``taken`` holds what was read back before.
    """
    for candidate in candidates:
        if (candidate.name, threads) not in taken:
            taken[candidate.name, threads] = read_back(file_of(candidate), device, threads)
    found = [taken.get((m.name, threads)) for m in measurements]
    return [flagged(m, f.placement) if f else m for m, f in zip(measurements, found, strict=True)]


def flagged(measurement: Measurement, placement: Placement) -> Measurement:
    flags = unit_flags(placement, slower_than_float=measurement.int8_slower_than_float)
    return measurement.model_copy(update={"placement": placement, "unit_flags": flags})


def read_back(file: File, device: Device, threads: int) -> Profile:
    """As ``profile``; a runtime that dies of its own profiler costs the placement, not the figures: it says why."""
    try:
        return profile(file, device, threads=threads)
    except (RejectedError, ResourceError) as error:
        log.warning("the placement of %s could not be read back: %s", file.name, error.what)
        nothing = Placement(
            chosen=_chosen(file), units=(), partitions=0, executed=0, boundaries=0, boundary_share=None,
            microseconds=None, runs=0, untimed=error.what,
        )  # fmt: skip
        return Profile(name=file.name, threads=threads, placement=nothing, layers=())


def _placement(file: File, answer: Mapping[str, Any]) -> Placement:
    fields = ("partitions", "executed", "boundaries", "boundary_share", "microseconds", "runs", "untimed")
    chosen = _chosen(file)
    first = sorted(answer["units"], key=lambda unit: unit["unit"] not in chosen)  # a stable sort
    shares = tuple(UnitShare(**unit) for unit in first)
    return Placement(chosen=chosen, units=shares, **{name: answer[name] for name in fields})


def _chosen(file: File) -> tuple[str, ...]:
    return tuple(file.units["names"]) if file.units else DEFAULTS[file.runtime]


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
