"""The per-layer profile of a run's files: kept beside the measurement, and in words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from distilledge.pipeline.record import ExportResult, RunRecord
from distilledge.targets.units import LayerTime, Placement, Profile, Profiles, top

FILE = "profile.json"
SHOWN = 12
"""Layers of a file that are listed and drawn."""
TITLES = ("layer", "type", "unit", "precision", "us", "%")


def write_profiles(profiles: Profiles, directory: Path) -> None:
    (directory / FILE).write_text(profiles.model_dump_json(indent=1), encoding="utf-8")


def read_profiles(directory: Path) -> Profiles:
    """Empty where the measurement was made before profiles were kept."""
    path = directory / FILE
    return Profiles.model_validate_json(path.read_bytes()) if path.exists() else Profiles(items=())


def profiles_of(run: RunRecord) -> Profiles:
    """What was kept with the measurement; if there is nothing, it is taken now, on the recipe's device."""
    kept = read_profiles(run.directory("measure"))
    return kept if kept.items else _taken(run)


def _taken(run: RunRecord) -> Profiles:
    from distilledge.pipeline.benchmark import candidate
    from distilledge.pipeline.inventory import opened
    from distilledge.targets.placement import file_of, profile

    settings, items = run.recipe.measure, []
    with opened(settings.device) as device:
        for stage in run.stages:
            if not stage.name.startswith("export-") or "-control-" in stage.name:
                continue
            directory = run.directory(stage.name)
            result = ExportResult.model_validate_json((directory / "value.json").read_bytes())
            files = [file_of(candidate(result, f, directory, settings.units)) for f in result.files]
            items += [profile(file, device, threads=threads) for threads in settings.threads for file in files]
    return Profiles(items=tuple(items))


def summary(found: Placement) -> str:
    """Such as ``xnnpack 97 operations 41 %, builtin 20 operations 59 %; 20 partitions; 1 boundary``."""
    if not found.units:
        return found.untimed
    units = ", ".join(f"{u.unit} {_counted(u.operations, 'operation')}{percent(u.share, ' ')}" for u in found.units)
    boundaries = f"{found.boundaries} of {found.executed} executed only convert{percent(found.boundary_share, ': ')}"
    parts = [units, _counted(found.partitions, "partition"), boundaries]
    return "; ".join(parts + ([f"no times: {found.untimed}"] if found.untimed else []))


def percent(share: float | None, before: str = "") -> str:
    return "" if share is None else f"{before}{100 * share:.1f} %"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def rows(layers: Sequence[LayerTime], count: int = SHOWN) -> list[tuple[str, ...]]:
    """Cells of ``TITLES``, the longest layers first."""
    return [
        (
            layer.name,
            layer.type,
            layer.unit,
            layer.precision,
            "" if layer.microseconds is None else f"{layer.microseconds:.1f}",
            "" if layer.share is None else f"{100 * layer.share:.1f}",
        )
        for layer in top(layers, count)
    ]


def in_words(found: Profile, count: int = SHOWN) -> str:
    """A file's placement and its longest layers, for a terminal."""
    head = f"{found.name} ({_counted(found.threads, 'thread')}): {summary(found.placement)}"
    if not found.layers:
        return head
    lines = [TITLES, *([cell[:44] for cell in row] for row in rows(found.layers, count))]
    widths = [max(len(line[i]) for line in lines) for i in range(len(TITLES))]
    left = [
        f"{cell:<{w}}" if i < 4 else f"{cell:>{w}}"
        for line in lines
        for i, (cell, w) in enumerate(zip(line, widths, strict=True))
    ]
    made = ["  " + "  ".join(left[i : i + len(TITLES)]).rstrip() for i in range(0, len(left), len(TITLES))]
    more = len(found.layers) - min(count, len(found.layers))
    return "\n".join([head, *made, *([f"  and {more} more"] if more else [])])
