"""gates.yaml: what a new release may cost on each device, checked like a recipe, with lines and suggestions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, ValidationError

from distilledge.models.base import Value
from distilledge.models.errors import UsageError
from distilledge.pipeline.drift import LIMIT, SLACK
from distilledge.pipeline.recipe_data import Fraction, NotNegative, Positive
from distilledge.pipeline.recipe_paths import near
from distilledge.pipeline.recipe_yaml import Document, parse


class Limits(Value):
    """None: no limit. Those of the baseline are relative, the others absolute."""

    max_regression_percent: NotNegative | None = None
    """Of the p50 above the baseline's."""
    max_p99_regression_percent: NotNegative | None = None
    """Of the p99 above the baseline's; needs 1,000 samples of each."""
    max_drop_points: NotNegative | None = None
    """Points (0..100) of the metric below the baseline."""
    max_p50_ms: Positive | None = None
    max_size_mb: Positive | None = None
    max_peak_rss_mb: Positive | None = None
    min_accuracy: Fraction | None = None
    """Of the metric, 0 to 1."""


class DeviceGate(Limits):
    baseline: str | None = None
    """A result file to compare this device with, relative to gates.yaml, in place of the first one given."""


class Drift(Value):
    """CUSUM over releases (Page 1954); see ``pipeline/drift.py``."""

    releases: Annotated[int, Field(ge=2)] = 20
    """The last so many are looked at."""
    k: Positive = SLACK
    """Slack in standard deviations."""
    h: Positive = LIMIT
    """Alarm above so many standard deviations."""
    sigma_percent: Positive = 1.0
    """Standard deviation of a p50 from release to release that nothing changed."""
    sigma_points: Positive = 0.5
    """The same of the metric, in points."""


class Gates(Value):
    schema_version: Literal[1] = Field(default=1, alias="schema")
    default: Limits = Limits()
    devices: dict[str, DeviceGate] = {}
    """By device name; what is not set here is as in ``default``."""
    files: dict[str, Limits] = {}
    """By file name; what is not set here is as for the device."""
    drift: Drift | None = Drift()

    def limits(self, name: str, device: str) -> Limits:
        """Of one file on one device."""
        found: dict[str, Any] = {}
        for one in (self.default, self.devices.get(device), self.files.get(name)):
            found |= one.model_dump(exclude_none=True, exclude={"baseline"}) if one else {}
        return Limits.model_validate(found)


def load_gates(path: Path) -> Gates:
    """Raises ``UsageError`` (exit 2) with file, line and column of every mistake."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise UsageError(
            "E2064", f"no gates can be read ({reason}): {path}", "docs/benchmarking.md shows one"
        ) from None
    document = parse(text, str(path))
    try:
        return Gates.model_validate_json(json.dumps(document.data or {}, default=str), strict=True)
    except ValidationError as error:
        found = sorted({_mistake(document, item) for item in error.errors(include_url=False)})
    lines = [f"{path}:{line}:{column}: {what}" for line, column, what, _ in found]
    what = lines[0] if len(lines) == 1 else "\n  ".join([f"{len(lines)} mistakes: {path}", *lines])
    raise UsageError("E2070", what, found[0][3] or "docs/benchmarking.md shows every field")


def _mistake(document: Document, item: Any) -> tuple[int, int, str, str]:
    location = item["loc"]
    unknown = item["type"] == "extra_forbidden"
    line, column = document.place(location, key=unknown)
    dotted = ".".join(map(str, location))
    if not unknown:
        return line, column, f"`{dotted}` is {item['input']!r}: {item['msg']}", ""
    names = _fields(location[:-1])
    best = near(str(location[-1]), names)
    return line, column, f"unknown key `{dotted}`", f"did you mean `{best}`?" if best else f"known: {', '.join(names)}"


def _fields(location: Sequence[str | int]) -> list[str]:
    """Names that a section takes, as they stand in the file."""
    here: type[Value] = Gates
    for part in location:
        info = here.model_fields.get(str(part))
        if info is not None:  # else a name of a device or a file
            inner = (info.annotation, *get_args(info.annotation))
            here = next((a for a in inner if isinstance(a, type) and issubclass(a, Value)), here)
    return [info.alias or name for name, info in here.model_fields.items()]
