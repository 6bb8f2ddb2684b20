"""search.json, search.html and search.md: what fitted, what each round found, the best trade-offs, the winner."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from distilledge.pipeline.report import svg
from distilledge.pipeline.report.html import policy
from distilledge.pipeline.report.markdown import grid as lines_of
from distilledge.pipeline.report.markdown import plain
from distilledge.pipeline.report.markup import Markup, el
from distilledge.pipeline.report.sections import grid, section
from distilledge.pipeline.report.style import STYLE
from distilledge.pipeline.report.svg import Frame
from distilledge.pipeline.report.table import NONE, Cell, metric_name, number
from distilledge.pipeline.search.result import Looked, Point, SearchResult
from distilledge.pipeline.store import atomic_write

FITS = ("Student", "Runtime", "Precision", "p50, ms", "Size, MB", "Peak RSS, MB", "Outcome", "Why")
HOW_FIT = (
    "Random weights with real batch statistics, exported, quantised and timed on the device before anything was "
    "trained. What is over a budget was never trained; what is inconclusive was."
)
HOW_POINTS = (
    "Metric on the validation split; the test split was not looked at. Files of students that were trained to the end "
    "were timed together, in turn, quickly. A stopped student (a ring) stands here as it was then, with the fp32 "
    "file of its fit: more training would have raised it. Best trade-offs: no other file of the same runtime is at "
    "least as good in metric, p50 and size and better in one."
)
LEFT = ("Student", "Runtime", "Precision", "Outcome", "Why", "Trade-off", "Trained")


def write(result: SearchResult, out: Path) -> None:
    atomic_write(out / "search.json", result.model_dump_json(indent=1, by_alias=True))
    atomic_write(out / "search.html", page(result))
    atomic_write(out / "search.md", markdown(result))


def headline(result: SearchResult) -> str:
    if result.winner is None:
        return f"none: {result.winner_why}"
    model, size = result.winner
    return f"{model} at {size} px: {result.winner_why}"


def facts(result: SearchResult) -> list[str]:
    """What must be known to read the tables."""
    looked = len(result.looked)
    trained = sum(bool(one.rounds) for one in result.looked)
    ends = ", ".join(map(str, result.schedule))
    lines = [
        f"{looked} students looked at, {trained} trained, {sum(o.kept for o in result.looked)} to the end; judged on "
        f"{result.pictures:,} validation pictures after {ends} epochs of one schedule of {result.schedule[-1]}.",
        "A student stopped early had seen only the high learning rates of that schedule: a noisier comparison than "
        "one of finished trainings.",
    ]
    if result.recipe.data.format == "synthetic" or result.recipe.data.path == "synthetic":
        lines.append("SYNTHETIC data: no claim about real parts.")
    flags = sorted({flag for point in result.points for flag in point.flags})
    return [*lines, *([f"Timings are flagged: {' '.join(flags)}."] if flags else [])]


def fit_lines(result: SearchResult) -> list[list[str]]:
    return [
        [
            f"{row.model} {row.size}",
            row.runtime,
            row.precision,
            str(number(row.p50, 3)),
            NONE if row.size_mb is None else f"{row.size_mb:.2f}",
            NONE if row.peak_rss_mb is None else f"{row.peak_rss_mb:.0f}",
            row.word,
            row.why,
        ]
        for row in result.fits
    ]


def round_lines(result: SearchResult) -> list[list[str]]:
    """A line for each student, a column for each round."""
    return [_round_line(one, len(result.schedule)) for one in result.looked]


def _round_line(one: Looked, many: int) -> list[str]:
    found = [f"{100 * judged.metric:.1f}" for judged in one.rounds]
    came = "trained to the end" if one.kept else "stopped" if one.rounds else "never trained: over a budget"
    return [f"{one.model} {one.size}", *found, *([NONE] * (many - len(found))), came]


def round_titles(result: SearchResult) -> list[str]:
    name = metric_name(result.recipe)
    return ["Student", *(f"{name} after {n} epochs, %" for n in result.schedule), "Trained"]


def points(result: SearchResult) -> list[Point]:
    """Best trade-offs first, then by metric."""
    return sorted(result.points, key=lambda p: (not p.front, -p.metric.value, p.p50.value))


def point_titles(result: SearchResult) -> tuple[str, ...]:
    name = metric_name(result.recipe)
    files = ("Student", "Runtime", "Precision", f"{name}, %", "p50, ms", "p50 of fit, ms", "Size, MB", "Peak RSS, MB")
    return (*files, "Trained", "Outcome", "Trade-off")


def point_cells(result: SearchResult, point: Point) -> list[str | Cell]:
    best = (point.model, point.size) == result.winner and point.ships
    return [
        point.student,
        point.runtime,
        point.precision,
        number(point.metric, 1),
        number(point.p50, 3),
        NONE if point.fitted_p50 is None else f"{point.fitted_p50:.3f}",
        f"{point.size_mb:.2f}",
        NONE if point.peak_rss_mb is None else f"{point.peak_rss_mb:.0f}",
        f"{point.epochs} of {point.of}",
        point.outcome,
        ", ".join(word for word, holds in (("winner", best), ("best", point.front)) if holds),
    ]


def figure(result: SearchResult) -> Markup:
    """Metric against p50; a ring is a stopped student, the area a file's size."""
    frame = Frame(760, 430, 58, 46, 24, 54)
    xs = [end for p in result.points for end in (p.p50.value, p.p50.low, p.p50.high) if end is not None]
    x = svg.scale_around(xs, frame.left, frame.width - frame.right, log=True, room=0.09)
    ys = [p.metric.value for p in result.points]
    y = svg.scale_around(ys, frame.height - frame.bottom, frame.top, room=0.08)
    shapes = svg.axes(frame, x, y, "p50 latency, ms (log scale; left is faster)", f"{metric_name(result.recipe)}, %")
    largest = max(p.size_mb for p in result.points)
    for point in sorted(result.points, key=lambda p: -p.size_mb):
        tip = f"{point.student} {point.runtime} {point.precision}: {point.metric.value:.1f} %, {point.p50.value:.3g} ms"
        radius = max(4.0, 18 * (point.size_mb / largest) ** 0.5)
        kind = "student" if point.epochs == point.of else "teacher"  # the style's ring
        shapes.append(
            svg.circle(x.at(point.p50.value), y.at(point.metric.value), radius, f"dot s-{point.runtime} {kind}", tip)
        )
    left = frame.left + 190
    for runtime in dict.fromkeys(p.runtime for p in result.points):
        shapes += [svg.circle(left, 9, 5, f"dot s-{runtime} student"), svg.text(left + 10, 13, runtime, "label")]
        left += 34 + svg.LETTER * len(runtime)
    return el("figure", {}, svg.svg(frame.width, frame.height, "Metric against latency", *shapes))


def page(result: SearchResult) -> str:
    """One file that fetches nothing and runs nothing."""
    head = el(
        "head",
        {},
        el("meta", {"charset": "utf-8"}),
        el("meta", {"http-equiv": "Content-Security-Policy", "content": policy()}),
        el("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        el("title", {}, f"distilledge search: {result.recipe.name}"),
        el("style", {}, Markup(STYLE)),
    )
    shown = [point_cells(result, point) for point in points(result)]
    body = [
        el("header", {}, el("h1", {}, result.recipe.name), *(el("p", {"class": "soft"}, f) for f in facts(result))),
        section("Winner", headline(result), el("pre", {}, result.command)),
        section("What was measured", HOW_POINTS, figure(result), grid(point_titles(result), shown, left=LEFT)),
        section("Rounds", "The better went on.", grid(round_titles(result), round_lines(result), left=LEFT)),
        section("What fits", HOW_FIT, grid(FITS, fit_lines(result), left=LEFT)),
    ]
    whole = el("html", {"lang": "en"}, head, el("body", {}, el("main", {}, *body)))
    return f"<!doctype html>\n{whole}\n"


def markdown(result: SearchResult) -> str:
    shown = [[str(cell) for cell in point_cells(result, point)] for point in points(result)]
    parts = [
        f"# {plain(result.recipe.name)}: search",
        *(plain(line) + "  " for line in (f"Winner: {headline(result)}", *facts(result))),
        "",
        *("## What was measured", "", plain(HOW_POINTS), "", lines_of(point_titles(result), shown)),
        *("## Rounds", "", lines_of(round_titles(result), round_lines(result))),
        *("## What fits", "", plain(HOW_FIT), "", lines_of(FITS, fit_lines(result))),
        "## Reproduce",
        "",
        f"    {result.command}",
    ]
    return "\n".join(parts) + "\n"


def terminal(result: SearchResult) -> str:
    """Rounds, the best trade-offs and the winner."""
    from rich.console import Console

    buffer = io.StringIO()
    console = Console(file=buffer, width=160, highlight=False)
    console.print(_table(round_titles(result), round_lines(result)))
    best = [[str(c) for c in point_cells(result, p)] for p in points(result) if p.front or p.ships]
    console.print(_table(point_titles(result), best))
    for line in (*facts(result), f"winner: {headline(result)}"):
        console.print(line, markup=False)
    return buffer.getvalue().rstrip("\n")


def _table(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> object:
    from rich.markup import escape
    from rich.table import Table

    made = Table(*titles, box=None, pad_edge=False)
    for line in lines:
        made.add_row(*map(escape, line))
    return made
