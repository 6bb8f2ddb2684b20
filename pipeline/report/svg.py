"""The few SVG shapes that the figures are made of. Colours are classes of the page's style sheet, light and dark."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from distilledge.pipeline.report.markup import Attribute, Markup, el

LETTER = 7.2
"""Width of a letter at the figures' 12 px, on the careful side (DejaVu, bold)."""


class Scale(NamedTuple):
    """Maps ``low``..``high`` to pixels ``start``..``end``, by logarithm where ``log``."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, count: int = 6) -> list[float]:
        return log_ticks(self.low, self.high) if self.log else linear_ticks(self.low, self.high, count)


class Frame(NamedTuple):
    """A plotting area inside its picture."""

    width: float
    height: float
    left: float
    top: float
    right: float
    bottom: float


def scale_around(values: Iterable[float], start: float, end: float, *, log: bool = False, room: float = 0.06) -> Scale:
    """A scale with some room around the values; a single value gets room too."""
    found = list(values)
    low, high = min(found), max(found)
    if log:
        factor = (high / low) ** room if high > low else 1.5
        return Scale(low / factor, high * factor, start, end, log=True)
    pad = (high - low) * room or abs(high) * 0.05 or 1.0
    return Scale(low - pad, high + pad, start, end)


def linear_ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten within the range."""
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten; linear ticks where the range holds fewer than two of them."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]
    return found if len(found) > 1 else linear_ticks(low, high, 4)


def tick_text(value: float) -> str:
    return f"{value:.6g}" if abs(value) >= 1e-4 or value == 0 else f"{value:.1e}"


def svg(width: float, height: float, title: str, *shapes: str) -> Markup:
    """A picture that scales down with the page; ``title`` is what a screen reader says."""
    attributes: dict[str, Attribute] = {
        "viewBox": f"0 0 {width:.0f} {height:.0f}",
        "width": width,
        "height": height,
        "role": "img",
        "aria-label": title,
    }
    return el("svg", attributes, *shapes)


def text(x: float, y: float, words: str, classes: str = "", anchor: str = "start") -> Markup:
    return el("text", {"x": x, "y": y, "class": classes, "text-anchor": anchor}, words)


def line(x1: float, y1: float, x2: float, y2: float, classes: str) -> Markup:
    return el("line", {"x1": x1, "y1": y1, "x2": x2, "y2": y2, "class": classes})


def rect(
    x: float, y: float, width: float, height: float, classes: str, *, opacity: float = 1.0, tip: str = ""
) -> Markup:
    shape: dict[str, Attribute] = {
        "x": x,
        "y": y,
        "width": max(0.0, width),
        "height": max(0.0, height),
        "class": classes,
    }
    return el("rect", shape | {"fill-opacity": opacity}, *([el("title", {}, tip)] if tip else []))


def circle(x: float, y: float, radius: float, classes: str, tip: str = "") -> Markup:
    return el("circle", {"cx": x, "cy": y, "r": radius, "class": classes}, *([el("title", {}, tip)] if tip else []))


def path(points: Sequence[tuple[float, float]], classes: str) -> Markup:
    return el("path", {"d": "M" + " L".join(f"{x:.1f} {y:.1f}" for x, y in points), "class": classes})


def axes(
    frame: Frame, x: Scale, y: Scale, x_title: str, y_title: str, *, x_ticks: Sequence[float] = ()
) -> list[Markup]:
    """Grid, ticks and titles of both axes."""
    bottom, right = frame.height - frame.bottom, frame.width - frame.right
    shapes: list[Markup] = []
    for value in x_ticks or x.ticks():
        shapes.append(line(x.at(value), frame.top, x.at(value), bottom, "grid"))
        shapes.append(text(x.at(value), bottom + 17, tick_text(value), "tick", "middle"))
    for value in y.ticks():
        shapes.append(line(frame.left, y.at(value), right, y.at(value), "grid"))
        shapes.append(text(frame.left - 8, y.at(value) + 4, tick_text(value), "tick", "end"))
    shapes.append(text((frame.left + right) / 2, frame.height - 8, x_title, "axis", "middle"))
    shapes.append(text(2, 13, y_title, "axis"))
    return shapes


def shorten(words: str, letters: int) -> str:
    """At most so many letters; the end is replaced by an ellipsis."""
    return words if len(words) <= letters else words[: letters - 1] + "…"


class Box(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: Box) -> bool:
        apart = self.right < other.left or other.right < self.left or self.bottom < other.top or other.bottom < self.top
        return not apart


def place_label(
    x: float, y: float, radius: float, words: str, taken: list[Box], frame: Frame
) -> tuple[float, float] | None:
    """Where a label's baseline may start without touching what is there, nearest first; None if nowhere near.

    The place found is added to ``taken``.
    """
    width = 1.15 * LETTER * len(words)  # bold
    for distance in (4.0, 16.0, 30.0, 46.0, 64.0, 84.0):
        for left, base in _around(x, y, radius + distance, width):
            box = Box(left - 2, base - 11, left + width + 2, base + 4)
            if box.left < frame.left or box.right > frame.width - 2:
                continue
            if box.top < frame.top or box.bottom > frame.height - frame.bottom:
                continue
            if not any(box.overlaps(other) for other in taken):
                taken.append(box)
                return left, base
    return None


def _around(x: float, y: float, distance: float, width: float) -> list[tuple[float, float]]:
    """Right, left, above, below and the four corners."""
    side, corner = distance, distance * 0.75
    return [
        (x + side, y + 4),
        (x - side - width, y + 4),
        (x - width / 2, y - side - 2),
        (x - width / 2, y + side + 10),
        (x + corner, y - corner),
        (x + corner, y + corner + 8),
        (x - corner - width, y - corner),
        (x - corner - width, y + corner + 8),
    ]
