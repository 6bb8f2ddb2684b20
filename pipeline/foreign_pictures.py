"""How often a file that others made is right on labelled pictures, answered on the device.

The pictures are decoded and resized here by the code that runs on devices (``ondevice/preprocess.py``: stretched,
bilinear with antialias), and brought to what the file takes: bytes for uint8, bytes - 128 for int8, and for floats the
range that the user names. The class is the largest value of the first output.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from distilledge.models.errors import RejectedError, UsageError
from distilledge.pipeline.recipe_paths import near
from distilledge.pipeline.result_file import Accuracy
from distilledge.targets.devices import Device
from distilledge.targets.foreign import answers
from distilledge.targets.measure import Candidate
from distilledge.targets.ondevice.ports import Array, Port, write_feeds
from distilledge.targets.ondevice.preprocess import FORMATS, BadPicture, InputSpec, preprocess

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm")
PIECE = 64
"""Pictures sent in one file."""
Range = tuple[float, float]


class Labelled(NamedTuple):
    """Pictures with the index of the output that is right."""

    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    sha256: str
    range_: Range


def labelled(folder: Path, names: Path | None, range_: Range) -> Labelled:
    """``folder``: one folder for each class, in alphabetical order the outputs, or named in the lines of ``names``.

    Raises ``UsageError`` for a folder without pictures, or a class that ``names`` does not have.
    """
    classes = sorted(p for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
    known = [c.name for c in classes] if names is None else _lines(names)
    paths: list[Path] = []
    labels: list[int] = []
    for one in classes:
        if one.name not in known:
            best = near(one.name, known)
            hint = f"rename it to {best}" if best else f"name it as a line of {names}"
            raise UsageError("E2077", f"no class {one.name!r} in {names}", hint)
        found = sorted(p for p in one.rglob("*") if p.suffix.lower() in SUFFIXES)
        paths += found
        labels += [known.index(one.name)] * len(found)
    if not paths:
        raise UsageError("E2078", f"no folders of pictures in {folder}", "give a folder with one folder for each class")
    digest = hashlib.sha256()
    for path, label in zip(paths, labels, strict=True):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{label}\0".encode() + path.read_bytes())
    return Labelled(tuple(paths), tuple(labels), digest.hexdigest(), range_)


def _lines(names: Path) -> list[str]:
    try:
        return [line.strip() for line in names.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError("E2079", f"no class names can be read from {names}: {error}", "one name a line") from None


def range_of(text: str) -> Range:
    """``0..255``, ``0..1``, ``-1..1``. Raises ``UsageError``."""
    low, dots, high = text.partition("..")
    try:
        found = float(low), float(high)
    except ValueError:
        found = 0.0, 0.0
    if not dots or found[0] >= found[1]:
        raise UsageError("E2063", f"not a range: {text}", "write --range 0..1, 0..255 or -1..1")
    return found


def score(
    one: Candidate, ports: Sequence[Port], pictures: Labelled, device: Device, say: Callable[[str], None]
) -> Accuracy:
    """Raises ``RejectedError`` for a file that does not take one RGB picture, or a picture that cannot be read."""
    if len(ports) != 1:
        raise RejectedError("E3051", f"{one.name} has {len(ports)} inputs, not one picture", "leave --pictures out")
    spec, put = reader(ports[0], pictures.range_, one.name)

    def feeds(paths: Sequence[Path]) -> list[list[Array]]:
        return [[put(_read(path, spec))] for path in paths]

    values: list[Any] = []
    with TemporaryDirectory(prefix="distilledge-pictures-") as folder:

        def pieces() -> Any:
            for number, start in enumerate(range(0, len(pictures.paths), PIECE)):
                say(f"scoring {100 * start / len(pictures.paths):.0f} %")
                path = Path(folder) / f"pictures-{number}.npz"
                write_feeds(str(path), feeds(pictures.paths[start : start + PIECE]))
                yield path

        values = list(answers(one, device, pieces(), Path(folder)))
    outputs = np.concatenate(values)
    if max(pictures.labels) >= outputs.shape[1]:
        what = f"{one.name} has {outputs.shape[1]} outputs, the pictures {max(pictures.labels) + 1} classes"
        raise RejectedError("E3052", what, "name the outputs in order with --labels FILE")
    right = outputs.argmax(1) == np.array(pictures.labels)
    return Accuracy(
        metric="accuracy",
        value=float(right.mean()),
        data_sha256=pictures.sha256,
        labels=pictures.labels,
        counts=tuple((float(r),) for r in right),
    )


def _read(path: Path, spec: InputSpec) -> Array:
    try:
        return preprocess(str(path), spec)
    except BadPicture as error:
        raise RejectedError("E3059", f"{path}: {error.reason}", f"take it out; known: {', '.join(FORMATS)}") from None


def reader(one: Port, range_: Range, name: str) -> tuple[InputSpec, Callable[[Array], Array]]:
    """Size of the pictures that an input takes, and the way from bytes (H, W, 3) to its array."""
    last, first = one.shape[-1:] == (3,), one.shape[1:2] == (3,)
    if len(one.shape) != 4 or not (last or first) or one.dtype not in ("uint8", "int8", "float32", "float16"):
        what = f"{name} takes {'x'.join(map(str, one.shape))} {one.dtype}, not RGB pictures"
        raise RejectedError("E3051", what, "leave --pictures out")
    height, width = one.shape[1:3] if last else one.shape[2:4]

    def put(picture: Array) -> Array:
        whole = (picture if last else picture.transpose(2, 0, 1))[None]
        if one.dtype == "uint8":
            return np.ascontiguousarray(whole)
        if one.dtype == "int8":
            return (whole.astype(np.int16) - 128).astype(np.int8)
        low, high = range_
        return (whole.astype(np.float32) * ((high - low) / 255) + low).astype(one.dtype)

    return InputSpec(height, width), put
