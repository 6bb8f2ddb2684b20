"""Latency by the length of a text, and how long the texts are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from distilledge.pipeline.report import svg
from distilledge.pipeline.report.markup import Markup, el
from distilledge.pipeline.report.sections import NOTHING, grid, section
from distilledge.pipeline.report.svg import Frame, Scale
from distilledge.pipeline.report.table import NONE, Cell, latency
from distilledge.pipeline.report.vocabulary import FileResult, ReportContent, Timing

DASHES = {"fp32": "d0", "fp16": "d1", "w8dyn": "d3", "w8a16": "d2", "w8a8": "d2"}


def section_of_lengths(content: ReportContent) -> Markup:
    """A line and a row for each file that was timed at single lengths."""
    found = by_length(content)
    if len({length for timings in found.values() for length in timings}) < 2:
        return NOTHING
    return section(
        "Latency by length",
        "p50 of the model alone on texts of exactly so many tokens; small print: 95 % interval. Rings are teachers; "
        "lines are solid for fp32, dashed for fp16, dotted for w8a8, dash and dots for w8dyn.",
        el("figure", {}, _figure(content, found)),
        grid(*table(content), left=("File",)),
    )


def by_length(content: ReportContent) -> dict[str, dict[int, Timing]]:
    """File -> length -> its timing, with the first number of threads."""
    timed = [t for t in content.timings if t.length is not None and t.p50 is not None]
    threads = next((t.threads for t in timed), 0)
    found: dict[str, dict[int, Timing]] = {}
    for t in timed:
        if t.threads == threads and t.length is not None:
            found.setdefault(t.name, {})[t.length] = t
    return {file.name: found[file.name] for file in content.files if file.name in found}


def table(content: ReportContent) -> tuple[list[str], list[list[str | Cell]]]:
    """Titles and lines: a column for each length."""
    found = by_length(content)
    lengths = sorted({length for timings in found.values() for length in timings})
    if len(lengths) < 2:
        return [], []
    titles = ["File", *(f"{length} tokens, ms" for length in lengths)]
    lines: list[list[str | Cell]] = []
    for name, timings in found.items():
        cells = [latency(timings[n].p50) if n in timings else Cell(NONE) for n in lengths]
        lines.append([name, *cells])
    return titles, lines


def _figure(content: ReportContent, found: Mapping[str, Mapping[int, Timing]]) -> Markup:
    points = {name: [(n, t.p50.value) for n, t in sorted(of.items()) if t.p50] for name, of in found.items()}
    flat = [point for line in points.values() for point in line]
    frame = Frame(780, 400, 58, 26, 190, 54)
    x = svg.scale_around([p[0] for p in flat], frame.left, frame.width - frame.right, log=True, room=0.04)
    y = svg.scale_around([p[1] for p in flat], frame.height - frame.bottom, frame.top, log=True)
    shapes = svg.axes(frame, x, y, "", "p50 latency, ms (log scale)", x_ticks=sorted({float(n) for n, _ in flat}))
    middle = (frame.left + frame.width - frame.right) / 2
    shapes.append(svg.text(middle, frame.height - 8, "tokens of the text (log scale)", "axis", "middle"))
    files = [f for f in content.files if f.name in points]
    for file in files:
        shapes += _line(file, points[file.name], x, y)
    return svg.svg(frame.width, frame.height, "Latency by length", *shapes, *_names(files, points, y, frame))


def _line(file: FileResult, points: Sequence[tuple[int, float]], x: Scale, y: Scale) -> list[Markup]:
    colour = f"s-{file.runtime}"
    drawn = [(x.at(n), y.at(ms)) for n, ms in points]
    shapes = [svg.path(drawn, f"curve {colour} {DASHES[file.precision]}")]
    for (n, ms), (across, up) in zip(points, drawn, strict=True):
        tip = f"{file.name}: {n} tokens, p50 {ms:.3g} ms"
        shapes.append(svg.circle(across, up, 4, f"dot {colour} {file.role}", tip))
    return shapes


def _names(
    files: Sequence[FileResult], points: Mapping[str, Sequence[tuple[int, float]]], y: Scale, frame: Frame
) -> list[Markup]:
    """Beside the ends of the lines, moved apart."""
    ends = sorted((y.at(points[f.name][-1][1]), i) for i, f in enumerate(files))
    left = frame.width - frame.right + 10
    shapes, last = [], -math.inf
    for up, index in ends:
        last = max(up + 4, last + 14)
        shapes.append(svg.text(left, last, files[index].name, f"label t-{files[index].runtime}"))
    return shapes


# --- the audit's histogram -------------------------------------------------------------------------------------------


def histogram(found: Mapping[str, Any], what: str) -> Markup | None:
    """Bars of ``counts`` between ``edges``, as the audit of texts has them."""
    edges, counts = found.get("edges", ()), found.get("counts", ())
    held = [i for i, count in enumerate(counts) if count]
    if not held:
        return None
    first, last = held[0], held[-1] + 1
    frame = Frame(520, 240, 58, 26, 16, 54)
    y = Scale(0, 1.08 * max(counts), frame.height - frame.bottom, frame.top)
    width = (frame.width - frame.left - frame.right) / (last - first)
    shapes = [svg.text(2, 13, "texts", "axis")]
    for tick in y.ticks(6):
        shapes.append(svg.line(frame.left, y.at(tick), frame.width - frame.right, y.at(tick), "grid"))
        shapes.append(svg.text(frame.left - 8, y.at(tick) + 4, svg.tick_text(tick), "tick", "end"))
    for i in range(first, last):
        left, up = frame.left + (i - first) * width, y.at(counts[i])
        tip = f"{edges[i]} to {edges[i + 1] - 1} {what}: {counts[i]} texts"
        shapes.append(svg.rect(left + 1, up, width - 2, y.start - up, "bar accent", tip=tip))
    for i in range(first, last + 1):
        shapes.append(svg.text(frame.left + (i - first) * width, y.start + 17, str(edges[i]), "tick", "middle"))
    facts = (
        f"{what}: median {found.get('median', 0):g}, 99 % below {found.get('p99', 0):.0f}, most {found.get('max', 0)}"
    )
    shapes.append(svg.text((frame.left + frame.width) / 2, frame.height - 8, facts, "axis", "middle"))
    return svg.svg(frame.width, frame.height, f"Texts by {what}", *shapes)
