"""The embedded default: generated surfaces, as an inspection camera sees them. Never a claim about real parts.

Three textures (brushed metal, cast, fabric) and six classes (``DEFECTS``). Every picture is a function of
(seed, class, index) alone, through numpy's Philox counters, so sets of different sizes share their pictures.
Two consecutive pictures show one part (``group``): the same surface and defect, moved, lit and exposed anew.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from distilledge.pipeline.data.labels import of_synthetic
from distilledge.pipeline.data.listing import Listing, Row
from distilledge.pipeline.recipe import Data, Synthetic

Plane = npt.NDArray[np.float32]
"""(size, size); 0: black, 1: white."""

SHOTS = 2
"""Pictures of each part."""

QUALITY = 95
"""Of the JPEG files."""

SURFACES = ("brushed", "cast", "fabric")
"""Names of ``TEXTURES``, in their order."""

TINTS = ((1.0, 1.0, 1.02), (1.03, 1.0, 0.95), (0.95, 1.0, 1.05))
"""Red, green and blue gain of brushed metal, cast and fabric."""


def synthetic(data: Data, out: Path) -> Listing:
    """Writes ``per_class`` pictures of each class to ``out/images/<class>/<index>.jpg``."""
    options = data.synthetic
    rows = []
    for kind in sorted(DEFECTS):
        folder = out / "images" / kind
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(options.per_class):
            path = f"images/{kind}/{index:05d}.jpg"
            picture(kind, index, options).save(out / path, quality=QUALITY, subsampling=0)
            row = Row(path, kind, f"{kind}-{index // SHOTS:05d}", None)
            rows.append(of_synthetic(row, data, {"label": kind, "texture": texture_of(kind, index, options)}))
    return Listing("synthetic", out.resolve(), rows, "synthetic", unpacked=True, synthetic=True)


def picture(kind: str, index: int, options: Synthetic) -> Image.Image:
    """RGB, ``options.size`` on each side, of class ``kind``; the same for the same arguments on every call."""
    size, hard = options.size, options.difficulty
    part = _generator(options.seed, kind, index // SHOTS, stream=1)
    shot = _generator(options.seed, kind, index, stream=0)
    texture = int(part.integers(3))
    surface = (0.34 + 0.16 * float(part.random())) + TEXTURES[texture](part, size)
    surface = surface + _offset(DEFECTS[kind](part, size), shot, size, 0.04 + 0.06 * hard) * _contrast(part, hard)
    surface = surface * _light(shot, size, hard) + shot.standard_normal((size, size), np.float32) * (0.01 + 0.02 * hard)
    tint = np.asarray(TINTS[texture], np.float32) * (1 + 0.02 * shot.standard_normal(3, np.float32))
    return Image.fromarray((np.clip(surface[..., None] * tint, 0, 1) * 255 + 0.5).astype(np.uint8))  # (size, size, 3)


def texture_of(kind: str, index: int, options: Synthetic) -> str:
    """The surface that ``picture`` draws: its part's first draw."""
    return SURFACES[int(_generator(options.seed, kind, index // SHOTS, stream=1).integers(3))]


def _generator(seed: int, kind: str, index: int, *, stream: int) -> np.random.Generator:
    number = sorted(DEFECTS).index(kind)
    return np.random.Generator(np.random.Philox(key=[seed % 2**64, (number << 48) | (stream << 40) | index]))


def _contrast(part: np.random.Generator, hard: float) -> float:
    return float(part.uniform(0.8, 1.2)) * (0.42 - 0.32 * hard)


@lru_cache(maxsize=4)
def _grid(size: int) -> tuple[Plane, Plane]:
    """y and x of each pixel's centre, 0..1."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    y, x = np.broadcast_arrays(axis[:, None], axis[None, :])
    return np.array(y, np.float32), np.array(x, np.float32)


def _noise(rng: np.random.Generator, size: int, rows: int, columns: int) -> Plane:
    """Smooth noise of standard deviation below 1 with so many cells down and across."""
    cells = rng.standard_normal((max(2, rows), max(2, columns)), np.float32)
    return np.asarray(Image.fromarray(cells).resize((size, size), Image.Resampling.BICUBIC))


def _brushed(part: np.random.Generator, size: int) -> Plane:
    streaks = 0.05 * _noise(part, size, size, size // 24) + 0.03 * _noise(part, size, size // 2, 3)
    return streaks if part.random() < 0.5 else np.ascontiguousarray(streaks.T)


def _cast(part: np.random.Generator, size: int) -> Plane:
    fine, coarse = _noise(part, size, size // 2, size // 2), _noise(part, size, size // 8, size // 8)
    return 0.035 * fine + 0.025 * coarse


def _fabric(part: np.random.Generator, size: int) -> Plane:
    y, x = _grid(size)
    threads = np.float32(part.uniform(14, 22) * 2 * np.pi)
    warp = np.sin(threads * x + np.float32(0.5) * _noise(part, size, 6, 6))
    weft = np.sin(threads * y + np.float32(0.5) * _noise(part, size, 6, 6))
    weave: Plane = np.float32(0.03) * (warp + weft) + np.float32(0.02) * warp * weft
    return weave + 0.02 * _noise(part, size, size // 3, size // 3)


TEXTURES: tuple[Callable[[np.random.Generator, int], Plane], ...] = (_brushed, _cast, _fabric)


def _light(shot: np.random.Generator, size: int, hard: float) -> Plane:
    """Gain of each pixel: exposure, a slope across the picture and the lamp's spot."""
    y, x = _grid(size)
    angle, strength = float(shot.uniform(0, 2 * np.pi)), 0.1 + 0.4 * hard
    slope = (np.cos(angle) * (x - 0.5) + np.sin(angle) * (y - 0.5)) * strength * float(shot.random())
    cy, cx = shot.uniform(0, 1, 2).astype(np.float32)
    spot = strength * 0.5 * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 0.18)
    gain: Plane = (1 + slope + spot + strength * float(shot.uniform(-0.3, 0.3))).astype(np.float32)
    return gain


def _offset(defect: Plane, shot: np.random.Generator, size: int, most: float) -> Plane:
    """The defect moved by at most a share of the side, and turned over, as a part laid down anew."""
    down, across = (round(float(v) * size) for v in shot.uniform(-most, most, 2))
    moved = np.zeros_like(defect)
    moved[max(down, 0) : size + min(down, 0), max(across, 0) : size + min(across, 0)] = defect[
        max(-down, 0) : size + min(-down, 0), max(-across, 0) : size + min(-across, 0)
    ]
    return moved[:, ::-1] if shot.random() < 0.5 else moved


def _strokes(size: int, lines: list[tuple[Plane, float]]) -> Plane:
    """Polylines with points (n, 2) as (x, y) in 0..1 and a width as share of the side, antialiased; 1 on the line."""
    fine = Image.new("L", (2 * size, 2 * size))
    draw = ImageDraw.Draw(fine)
    for points, width in lines:
        draw.line([(float(x) * 2 * size, float(y) * 2 * size) for x, y in points], 255, max(1, round(width * 2 * size)))
    return np.asarray(fine.reduce(2), np.float32) * np.float32(1 / 255)


def _good(part: np.random.Generator, size: int) -> Plane:  # noqa: ARG001 (one signature for every class)
    return np.zeros((size, size), np.float32)


def _scratch(part: np.random.Generator, size: int) -> Plane:
    """One or two long, nearly straight bright lines with a shadow beside them."""
    lines = []
    for _ in range(int(part.integers(1, 3))):
        angle, length = float(part.uniform(0, np.pi)), float(part.uniform(0.45, 0.8))
        along = np.linspace(-length / 2, length / 2, 12)
        bow = float(part.uniform(-0.3, 0.3)) * along**2
        x = part.uniform(0.35, 0.65) + along * np.cos(angle) - bow * np.sin(angle)
        y = part.uniform(0.35, 0.65) + along * np.sin(angle) + bow * np.cos(angle)
        lines.append((np.stack([x, y], 1).astype(np.float32), float(part.uniform(0.013, 0.021))))
    bright = np.float32(1.2) * _strokes(size, lines)
    shadow: Plane = np.roll(bright, max(1, size // 64), 0)
    return bright - np.float32(0.4) * shadow


def _crack(part: np.random.Generator, size: int) -> Plane:
    """A dark jagged walk that branches."""
    angle, start = float(part.uniform(0, 2 * np.pi)), part.uniform(0.35, 0.65, 2)
    trunk = _walk(part, start - 0.3 * np.array([np.cos(angle), np.sin(angle)]), angle, 22)
    lines = [(trunk, 0.016)]
    for _ in range(int(part.integers(2, 5))):
        joint = int(part.integers(4, 18))
        lines.append((_walk(part, trunk[joint], angle + float(part.choice([-1, 1])) * 0.9, 9), 0.011))
    return -_strokes(size, lines)


def _walk(part: np.random.Generator, start: npt.NDArray[np.floating], angle: float, steps: int) -> Plane:
    """Points (steps + 1, 2) of a walk with random turns."""
    turns = angle + part.normal(0, 0.75, steps)
    step = part.uniform(0.02, 0.045, steps)
    points = np.cumsum(np.stack([step * np.cos(turns), step * np.sin(turns)], 1), axis=0)
    return np.concatenate([np.zeros((1, 2)), points]).astype(np.float32) + start.astype(np.float32)


def _pit(part: np.random.Generator, size: int) -> Plane:
    """Three to eight small dark holes with a bright rim."""
    y, x = _grid(size)
    plane = np.zeros((size, size), np.float32)
    middle = part.uniform(0.3, 0.7, 2)
    for _ in range(int(part.integers(3, 9))):
        cy, cx = (middle + part.normal(0, 0.12, 2)).clip(0.08, 0.92).astype(np.float32)
        radius = float(part.uniform(0.018, 0.038))
        distance = ((y - cy) ** 2 + (x - cx) ** 2) / np.float32(radius**2)
        plane += 0.6 * np.exp(-((distance - 1.6) ** 2)) - 1.3 * np.exp(-(distance**2))
    return plane


def _stain(part: np.random.Generator, size: int) -> Plane:
    """A large dark blot with an uneven edge."""
    y, x = _grid(size)
    cy, cx = part.uniform(0.3, 0.7, 2).astype(np.float32)
    wide, high = part.uniform(0.16, 0.28, 2).astype(np.float32)
    level = 1 - np.sqrt(((x - cx) / wide) ** 2 + ((y - cy) / high) ** 2) + 0.22 * _noise(part, size, 8, 8)
    blot: Plane = -0.55 / (1 + np.exp(-level * 14)).astype(np.float32)
    return blot


def _dent(part: np.random.Generator, size: int) -> Plane:
    """A smooth hollow: one side turned to the light, the other from it."""
    y, x = _grid(size)
    cy, cx = part.uniform(0.3, 0.7, 2).astype(np.float32)
    radius, angle = float(part.uniform(0.1, 0.17)), float(part.uniform(0, 2 * np.pi))
    v, u = (y - cy) / np.float32(radius), (x - cx) / np.float32(radius)
    slope: Plane = ((np.cos(angle) * u + np.sin(angle) * v) * np.exp(-(u**2 + v**2)) * 2.2).astype(np.float32)
    return slope


DEFECTS: dict[str, Callable[[np.random.Generator, int], Plane]] = {
    "good": _good,
    "scratch": _scratch,
    "pit": _pit,
    "stain": _stain,
    "crack": _crack,
    "dent": _dent,
}
