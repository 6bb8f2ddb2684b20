"""Where the files' operations ran: a table of all files, and the longest layers of the student's, drawn."""

from __future__ import annotations

from collections.abc import Sequence

from distilledge.pipeline.profile import SHOWN, percent
from distilledge.pipeline.report import svg
from distilledge.pipeline.report.markup import Markup, el
from distilledge.pipeline.report.sections import NOTHING, folded, grid, section
from distilledge.pipeline.report.svg import Scale
from distilledge.pipeline.report.table import NONE, Cell
from distilledge.pipeline.report.vocabulary import ReportContent
from distilledge.targets.units import Profile, top, unit_flags

TITLES = ("File", "Threads", "Chosen", "Operations", "Time", "Partitions", "Only converting", "Flags")
EXPLAINED = (
    "Read back from each runtime on the device, in a process of its own with its profiler on. Operations: of the file, "
    "by unit; time: share of one inference. Partitions: stretches on the chosen unit, one is the aim. Only converting: "
    "operations that quantize, dequantize, convert or copy. PARTIAL_DELEGATION: more than 5 % of the time elsewhere; "
    "QUANTIZE_STORM: more than 15 % of the operations or 10 % of the time only convert; SLOWER_THAN_FLOAT: than the "
    "fp32 file of the same model."
)
ROW, WIDTH, LEFT, RIGHT = 22.0, 900.0, 390.0, 120.0


def section_of_placement(content: ReportContent) -> Markup:
    lines = table(content)
    if not lines:
        return NOTHING
    drawn = [p for p in content.profiles if p.name.startswith("student") and p.placement.runs]
    figures = [folded(f"Longest layers of {p.name}, {p.threads} thread(s)", layers(p)) for p in drawn]
    return section("Where it runs", EXPLAINED, grid(TITLES, lines, left=("Chosen", "Flags")), *figures)


def table(content: ReportContent) -> list[tuple[str | Cell, ...]]:
    """A line for each file and number of threads."""
    slower = {(t.name, t.threads) for t in content.timings if "SLOWER_THAN_FLOAT" in t.unit_flags}
    return [_line(p, (p.name, p.threads) in slower) for p in content.profiles]


def _line(found: Profile, slower: bool) -> tuple[str | Cell, ...]:
    place = found.placement
    flags = unit_flags(place, slower_than_float=slower)
    return (
        found.name,
        str(found.threads),
        " ".join(place.chosen),
        ", ".join(f"{u.unit} {u.operations}" for u in place.units) or NONE,
        ", ".join(f"{u.unit} {percent(u.share)}" for u in place.units if u.share is not None)
        or Cell(NONE, place.untimed),
        str(place.partitions),
        Cell(f"{place.boundaries} of {place.executed}", percent(place.boundary_share)),
        ", ".join(flags) or NONE,
    )


def layers(found: Profile) -> Markup:
    """Bars of the longest layers; paler: not on the unit that was chosen first, or only converting."""
    shown = top(found.layers, SHOWN)
    place = found.placement
    together = (place.boundary_share or 0.0) * (place.microseconds or 0.0)
    x = Scale(0.0, max(together, *(layer.microseconds or 0.0 for layer in shown)) or 1.0, LEFT, WIDTH - RIGHT)
    shapes: list[Markup] = []
    if place.boundaries:
        words = f"all {place.boundaries} that only convert, together"
        shapes += _bar(found, x, len(shown), words, together, away=True)
    for index, layer in enumerate(shown):
        time = layer.microseconds or 0.0
        away = layer.unit not in (*found.placement.chosen[:1], "") or layer.boundary
        tip = f"{layer.name}: {layer.type} on {layer.unit} {layer.precision}, {time:.1f} us{percent(layer.share, ', ')}"
        words = svg.shorten(f"{layer.name} · {layer.type}", 52)
        shapes += _bar(found, x, index, words, time, away=away, unit=layer.unit, tip=tip)
    height = ROW * (len(shown) + bool(place.boundaries)) + 10
    return el("figure", {}, svg.svg(WIDTH, height, f"Longest layers of {found.name}", *shapes))


def _bar(
    found: Profile, x: Scale, index: int, words: str, time: float, *, away: bool, unit: str = "", tip: str = ""
) -> list[Markup]:
    """Words, a bar and its microseconds."""
    middle = ROW * (index + 0.5) + 4
    colour, opacity = f"bar s-{_runtime(found)}", 0.35 if away else 1.0
    return [
        svg.text(LEFT - 8, middle + 4, words, "tick", "end"),
        svg.rect(LEFT, middle - 7, x.at(time) - LEFT, 14, colour, opacity=opacity, tip=tip),
        svg.text(x.at(time) + 6, middle + 4, f"{time:.0f} us {unit}".rstrip(), "tick"),
    ]


def _runtime(found: Profile) -> str:
    """The second word of the file's name, by which colours go."""
    return found.name.split()[1]


def cells(content: ReportContent) -> tuple[Sequence[str], list[list[str]]]:
    """For Markdown: titles and lines; no lines where nothing was read back."""
    return TITLES, [[str(cell) for cell in line] for line in table(content)]
