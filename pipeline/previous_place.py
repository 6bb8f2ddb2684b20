"""Where the previous release lies."""

from __future__ import annotations

from pathlib import Path

from distilledge.models.errors import UsageError
from distilledge.pipeline.data.listing import expand


def previous_place(place: str) -> Path:
    """The run.json or the model file that ``measure.previous`` means. Raises ``UsageError``."""
    path = Path(expand(place))
    path = path / "run.json" if path.is_dir() else path
    if not path.is_file():
        raise UsageError("E2450", f"no previous release: {path}", "name the folder of a run, or a model file of one")
    return path
