"""A result as rows of a table for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from distilledge.pipeline import stats
from distilledge.pipeline.result_file import Item, Result
from distilledge.pipeline.stats import Estimate

HEAD = (
    "device",
    "file",
    "input",
    "p50 ms",
    "95 %",
    "p90",
    "p99",
    "of the first",
    "size MB",
    "accuracy",
    "run by",
    "flags",
)
MS, MB = 1e6, 1e6


def rows(result: Result) -> list[tuple[str, ...]]:
    return list(_rows(result))


def _rows(result: Result) -> Iterator[tuple[str, ...]]:
    for device in result.devices:
        items = [item for item in result.items if item.device == device]
        first = next((i for i in items if i.role in ("baseline", "teacher")), items[0] if items else None)
        for item in items:
            yield (
                device,
                f"{item.name}{' (baseline)' * (item.role == 'baseline')}",
                *_row(item, first, result.scenario),
            )


def _row(item: Item, first: Item | None, scenario: str) -> tuple[str, ...]:
    timing = item.timing
    shape = " ".join("x".join(map(str, s)) for s in item.input.shape.values()) if item.input else ""
    accuracy = f"{100 * item.accuracy.value:.1f} %" if item.accuracy else ""
    size = f"{item.file.size_bytes / MB:.3f}"
    if timing is None:
        return shape, "", "", "", "", "", size, accuracy, item.file.runtime, ""
    samples = [launch.latency_ns for launch in timing.launches]
    p50, p90, p99 = stats.percentiles(samples, (50, 90, 99))
    ratio = None
    if first and first.timing and first is not item:
        ratio = stats.median_ratio(samples, [launch.latency_ns for launch in first.timing.launches])
    words = [*(["quick"] if timing.quick else []), *timing.flags, *([scenario] if scenario != "single-stream" else [])]
    return (
        shape,
        _ms(p50),
        f"{_edge(p50, 'low')} to {_edge(p50, 'high')}",
        _ms(p90),
        _ms(p99),
        f"{ratio.value:.3f}x" if ratio else "",
        size,
        accuracy,
        f"{timing.runtime_version} {timing.execution_precision}, {timing.threads} t",
        " ".join(words),
    )


def _ms(one: Estimate | None) -> str:
    return f"{one.value / MS:.3f}" if one else ""


def _edge(one: Estimate | None, name: str) -> str:
    value = getattr(one, name, None)
    return "" if value is None else f"{value / MS:.3f}"
