"""The figures, as inline SVG.

Explored and not taken: plotly with its script inlined. That is 4 to 5 MB of JavaScript in every report, and a content
security policy that allows it; these figures take tens of KB, need no script, print, and follow a reader's dark mode.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from distilledge.pipeline.report import svg
from distilledge.pipeline.report.markup import Markup, el
from distilledge.pipeline.report.svg import Box, Frame, Scale
from distilledge.pipeline.report.table import metric_name
from distilledge.pipeline.report.vocabulary import (
    ClassChange,
    Confusion,
    Curve,
    FileResult,
    Reliability,
    ReportContent,
)
from distilledge.pipeline.stats import Estimate

NUMBERS_SHOWN = 24
"""Above this many classes the cells of a confusion matrix are too small for numbers."""


def pareto(content: ReportContent) -> Markup | None:
    """Metric against p50; the area of a point is its file's size."""
    files = [f for f in content.files if f.p50 is not None and f.metric is not None]
    if not files:
        return None
    frame = Frame(655, 430, 58, 46, 24, 54)
    x = svg.scale_around(
        [v for f in files for v in _ends(f.p50)], frame.left, frame.width - frame.right, log=True, room=0.09
    )
    y = svg.scale_around([v for f in files for v in _ends(f.metric)], frame.height - frame.bottom, frame.top, room=0.08)
    shapes = svg.axes(frame, x, y, "p50 latency, ms (log scale; left is faster)", f"{metric_name(content.recipe)}, %")
    shapes += _legend(files, frame)
    shapes.append(svg.path([(x.at(a), y.at(b)) for a, b in _front(files)], "front"))
    largest = max(f.size_mb for f in files)
    drawn = sorted(files, key=lambda f: -f.size_mb)
    for file in drawn:
        shapes += _point(file, x, y, largest)
    return svg.svg(frame.width, frame.height, "Metric against latency", *shapes, *_labels(drawn, x, y, largest, frame))


def _ends(estimate: Estimate | None) -> list[float]:
    if estimate is None:
        return []
    return [v for v in (estimate.value, estimate.low, estimate.high) if v is not None]


def _front(files: Sequence[FileResult]) -> list[tuple[float, float]]:
    """Files that no other file beats in both latency and metric, as the corners of a stair."""
    points = sorted((f.p50.value, -f.metric.value) for f in files if f.p50 and f.metric)
    corners: list[tuple[float, float]] = []
    best = -math.inf
    for p50, negative in points:
        if -negative > best:
            if corners:
                corners.append((p50, best))
            best = -negative
            corners.append((p50, best))
    return corners


def _radius(file: FileResult, largest: float) -> float:
    return max(4.0, 20 * math.sqrt(file.size_mb / largest))


def _point(file: FileResult, x: Scale, y: Scale, largest: float) -> list[Markup]:
    assert file.p50 is not None
    assert file.metric is not None
    across, up = x.at(file.p50.value), y.at(file.metric.value)
    colour = f"s-{file.runtime}"
    tip = f"{file.name}: {file.metric.value:.1f} %, p50 {file.p50.value:.3g} ms, {file.size_mb:.2f} MB"
    shapes = [svg.circle(across, up, _radius(file, largest), f"dot {colour} {file.role}", tip)]
    if file.metric.low is not None and file.metric.high is not None:
        shapes.insert(0, svg.line(across, y.at(file.metric.low), across, y.at(file.metric.high), f"whisker {colour}"))
    if file.p50.low is not None and file.p50.high is not None:
        shapes.insert(0, svg.line(x.at(file.p50.low), up, x.at(file.p50.high), up, f"whisker {colour}"))
    return shapes


def _labels(files: Sequence[FileResult], x: Scale, y: Scale, largest: float, frame: Frame) -> list[Markup]:
    places = [(x.at(f.p50.value), y.at(f.metric.value), _radius(f, largest)) for f in files if f.p50 and f.metric]
    taken = [Box(a - r, b - r, a + r, b + r) for a, b, r in places]
    shapes: list[Markup] = []
    for file, (across, up, radius) in zip(files, places, strict=True):
        words = f"teacher {file.precision}" if file.role == "teacher" else file.precision
        found = svg.place_label(across, up, radius, words, taken, frame)
        if found is None:
            continue
        left, base = found
        middle = left + svg.LETTER * len(words) / 2
        if math.hypot(middle - across, base - 4 - up) > radius + 40:
            shapes.append(svg.line(across, up, max(left, min(across, 2 * middle - left)), base - 4, "leader"))
        shapes.append(svg.text(left, base, words, f"label t-{file.runtime}"))
    return shapes


def _legend(files: Sequence[FileResult], frame: Frame) -> list[Markup]:
    shapes: list[Markup] = []
    left = frame.left + 190
    for runtime in dict.fromkeys(f.runtime for f in files):
        shapes += [svg.circle(left, 9, 5, f"dot s-{runtime} student"), svg.text(left + 10, 13, runtime, "label")]
        left += 34 + svg.LETTER * len(runtime)
    return shapes


def latencies(content: ReportContent) -> Markup | None:
    """A line per file, relative to its own median, so that the spread of fast and slow files compares."""
    files = [f for f in content.files if f.spread_ms]
    if not files:
        return None
    width, left, row = 535.0, 176.0, 26.0
    frame = Frame(width, 26 + row * len(files) + 50, left, 26, 82, 50)
    values = [f.spread_ms[i] / f.spread_ms[50] for f in files for i in (1, 99)]
    x = svg.scale_around(values, left, width - frame.right, log=max(values) > 3, room=0.04)
    bottom = frame.height - frame.bottom
    shapes = [svg.text(width - 4, 13, "p50", "tick", "end")]
    for tick in x.ticks(4):
        shapes.append(svg.line(x.at(tick), frame.top, x.at(tick), bottom, "grid"))
        shapes.append(svg.text(x.at(tick), bottom + 17, svg.tick_text(tick), "tick", "middle"))
    for index, file in enumerate(files):
        shapes += _latency_row(file, x, frame.top + row * (index + 0.5), width - 4)
    shapes.append(
        svg.text((left + x.end) / 2, frame.height - 8, "latency over the file's own median", "axis", "middle")
    )
    return svg.svg(width, frame.height, "Spread of the latency of every file", *shapes)


def _latency_row(file: FileResult, x: Scale, y: float, right: float) -> list[Markup]:
    q, middle = file.spread_ms, file.spread_ms[50]
    colour = f"s-{file.runtime}"
    at = {i: x.at(q[i] / middle) for i in (1, 25, 50, 75, 99)}
    tip = f"{file.name}: p1 {q[1]:.3g}, p25 {q[25]:.3g}, p50 {q[50]:.3g}, p75 {q[75]:.3g}, p99 {q[99]:.3g} ms"
    dots = [max(q[1], min(q[99], m)) / middle for m in file.launch_medians_ms]
    return [
        svg.text(x.start - 10, y + 4, file.name, "tick", "end"),
        svg.line(at[1], y, at[99], y, f"whisker {colour}"),
        svg.rect(at[25], y - 6, max(2.0, at[75] - at[25]), 12, f"bar {colour}", tip=tip),
        svg.line(at[50], y - 8, at[50], y + 8, "median"),
        *(svg.circle(x.at(m), y + 9.5, 2, f"dot {colour} student") for m in dots),
        svg.text(right, y + 4, f"{middle:.3g} ms", "tick", "end"),
    ]


def confusion(found: Confusion, classes: Sequence[str]) -> Markup:
    """Rows are the true class and sum to 100 %; the shade is the share of the row."""
    count = len(classes)
    cell = max(6.0, min(44.0, 440 / count))
    letters = 16
    longest = max(len(svg.shorten(c, letters)) for c in classes) * svg.LETTER
    left, top = longest + 14, longest * 0.71 + 24
    size = cell * count
    shapes: list[Markup] = []
    for i, name in enumerate(classes):
        shapes += _class_labels(name, i, left, top, cell) if cell >= 12 else []
        shapes += _confusion_row(found.matrix[i], i, classes, left, top, cell)
    shapes.append(svg.text(left, top + size + 18, "rows: true class · columns: answer", "tick"))
    return svg.svg(left + size + longest * 0.71 + 8, top + size + 26, f"Confusion of {found.name}", *shapes)


def _class_labels(name: str, index: int, left: float, top: float, cell: float) -> list[Markup]:
    middle = (index + 0.5) * cell
    words = svg.shorten(name, 16)
    turned: dict[str, str | int | float] = {
        "class": "tick",
        "transform": f"translate({left + middle + 3:.1f} {top - 7:.1f}) rotate(-45)",
    }
    return [svg.text(left - 8, top + middle + 4, words, "tick", "end"), el("text", turned, words)]


def _confusion_row(
    counts: Sequence[int], row: int, classes: Sequence[str], left: float, top: float, cell: float
) -> list[Markup]:
    total = max(1, sum(counts))
    shapes: list[Markup] = []
    for column, count in enumerate(counts):
        x, y, share = left + column * cell, top + row * cell, count / total
        kind = "right" if row == column else "wrong"
        tip = f"{classes[row]} answered {classes[column]}: {count} of {total}"
        shapes.append(svg.rect(x, y, cell - 1, cell - 1, "cell empty"))
        if count:
            shapes.append(svg.rect(x, y, cell - 1, cell - 1, f"cell {kind}", opacity=0.12 + 0.88 * share, tip=tip))
        if count and len(classes) <= NUMBERS_SHOWN:
            ink = "on" if share > 0.45 else "off"
            shapes.append(svg.text(x + cell / 2 - 0.5, y + cell / 2 + 4, str(count), f"count {ink}", "middle"))
    return shapes


def class_changes(changes: Sequence[ClassChange], measure: str, counted: str) -> Markup:
    """From the teacher's ``measure`` (ring) to the student's (dot), a line per class; ``counted``: in the brackets."""
    width, row = 780.0, 24.0
    words = [f"{svg.shorten(c.name, 22)} ({c.pictures})" for c in changes]
    left = max(len(w) for w in words) * svg.LETTER + 14
    frame = Frame(width, 30 + row * len(changes) + 48, left, 26, 80, 48)
    low = min(min(c.teacher, c.student) for c in changes)
    x = Scale(max(0.0, math.floor(low / 10 - 0.5) * 10), 100, left, width - frame.right)
    bottom = frame.height - frame.bottom
    shapes = [svg.text(left, 13, f"ring: teacher · dot: shipped student · in brackets: {counted}", "tick")]
    for tick in x.ticks():
        shapes.append(svg.line(x.at(tick), frame.top, x.at(tick), bottom, "grid"))
        shapes.append(svg.text(x.at(tick), bottom + 17, svg.tick_text(tick), "tick", "middle"))
    for index, (change, label) in enumerate(zip(changes, words, strict=True)):
        shapes += _change_row(change, label, x, frame.top + row * (index + 0.5))
    shapes.append(svg.text((left + width - 80) / 2, frame.height - 8, f"{measure}, %", "axis", "middle"))
    return svg.svg(width, frame.height, f"{measure} of every class", *shapes)


def _change_row(change: ClassChange, label: str, x: Scale, y: float) -> list[Markup]:
    difference = change.student - change.teacher
    kind = "better" if difference > 0 else "worse" if difference < 0 else "same"
    tip = f"{change.name}: teacher {change.teacher:.1f} %, student {change.student:.1f} %"
    return [
        svg.text(x.start - 10, y + 4, label, "tick", "end"),
        svg.line(x.at(change.teacher), y, x.at(change.student), y, f"change {kind}"),
        svg.circle(x.at(change.teacher), y, 6, "dot neutral teacher", tip),
        svg.circle(x.at(change.student), y, 4, f"dot {kind} student", tip),
        svg.text(x.end + 14, y + 4, f"{difference:+.1f}" if difference else "same", f"tick {kind}"),
    ]


def reliability(found: Reliability) -> Markup:
    """Accuracy of the answers given with a probability, over that probability; on the diagonal is calibrated."""
    frame = Frame(360, 340, 48, 26, 14, 50)
    x = Scale(0, 1, frame.left, frame.width - frame.right)
    y = Scale(0, 1, frame.height - frame.bottom, frame.top)
    shapes = svg.axes(frame, x, y, "top-1 probability", "share that is right")
    shapes.append(svg.line(x.at(0), y.at(0), x.at(1), y.at(1), "diagonal"))
    largest = max((b.count for b in found.bins), default=1)
    for b in found.bins:
        tip = f"{b.count} at {b.confidence:.2f}: {100 * b.accuracy:.1f} % right"
        shapes.append(svg.line(x.at(b.confidence), y.at(b.confidence), x.at(b.confidence), y.at(b.accuracy), "gap"))
        shapes.append(
            svg.circle(
                x.at(b.confidence), y.at(b.accuracy), 3 + 9 * math.sqrt(b.count / largest), "dot accent student", tip
            )
        )
    return svg.svg(frame.width, frame.height, f"Reliability of {found.name}", *shapes)


def curves(title: str, found: Sequence[Curve]) -> Markup | None:
    """Curves of one unit over the epochs, one colour per role and a dash per further quantity of that role."""
    drawn = [c for c in found if c.points]
    if not drawn:
        return None
    frame = Frame(520, 300 + 16 * len(drawn), 52, 26, 16, 50 + 16 * len(drawn))
    x = svg.scale_around([p[0] for c in drawn for p in c.points], frame.left, frame.width - frame.right, room=0.02)
    y = svg.scale_around([p[1] for c in drawn for p in c.points], frame.height - frame.bottom, frame.top)
    plot = frame._replace(height=frame.height)
    shapes = svg.axes(plot, x, y, "", title)
    shapes.append(svg.text((frame.left + frame.width) / 2, frame.height - frame.bottom + 34, "epoch", "axis", "middle"))
    seen: dict[str, int] = {}
    for index, curve in enumerate(drawn):
        dash = seen.setdefault(curve.role, 0)
        seen[curve.role] += 1
        classes = f"curve r-{curve.role} d{min(dash, 3)}"
        points = [(x.at(a), y.at(b)) for a, b in curve.points]
        shapes.append(
            svg.path(points, classes) if len(points) > 1 else svg.circle(*points[0], 3, f"dot r-{curve.role}")
        )
        at = frame.height - frame.bottom + 50 + 16 * index
        shapes += [
            svg.line(frame.left, at - 4, frame.left + 26, at - 4, classes),
            svg.text(frame.left + 34, at, f"{curve.role}: {curve.name}", "tick"),
        ]
    return svg.svg(frame.width, frame.height, title, *shapes)
