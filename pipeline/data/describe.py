"""A quick look at a data set for ``distilledge init``: nothing is decoded but the first headers."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image, UnidentifiedImageError

from distilledge.pipeline.data.audit import extent
from distilledge.pipeline.data.formats import detect, listing
from distilledge.pipeline.data.huggingface import peek
from distilledge.pipeline.data.listing import Row, expand
from distilledge.pipeline.data.manifest import find, guess_columns, read
from distilledge.pipeline.recipe import Columns, Data
from distilledge.targets.ondevice.preprocess import FORMATS

HEADERS = 200
"""Pictures, evenly spread, whose headers are read."""


def describe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """``format``, ``columns`` (as guessed), ``classes``, ``counts`` per split and class, ``splits`` given, ``groups``,
    ``pictures``, ``sizes`` and ``modes`` of a sample. Raises RejectedError where no run could read the data.
    """
    data = Data(path=os.fspath(path))
    kind = detect(data)
    if kind == "manifest":
        data = data.model_copy(update={"columns": guess_columns(read(find(Path(expand(data.path))))[0])})
    if kind == "synthetic":
        data = data.model_copy(update={"synthetic": data.synthetic.model_copy(update={"per_class": 8})})
    rows, sizes, modes = _look(data, kind)
    counts: dict[str, Counter[str]] = {}
    for row in rows:
        counts.setdefault(row.split or "all", Counter())[row.label or ""] += 1
    groups = {row.group for row in rows if row.group}
    return {
        "format": kind,
        "columns": {k: v for k, v in data.columns.model_dump().items() if v != getattr(Columns(), k)},
        "classes": sorted({row.label for row in rows if row.label}),
        "counts": {split: dict(sorted(of.items())) for split, of in sorted(counts.items())},
        "splits": sorted({row.split for row in rows if row.split}),
        "groups": len(groups),
        "pictures": len(rows),
        "sizes": extent(sizes),
        "modes": dict(modes),
    }


def _look(data: Data, kind: str) -> tuple[list[Row], list[tuple[int, int]], Counter[str]]:
    """Rows, and sizes and modes of some pictures."""
    if kind == "huggingface":
        rows, contents = peek(data, HEADERS // 4)
        return rows, *_headers([BytesIO(content) for content in contents])
    with TemporaryDirectory() as scratch:
        source = listing(data, Path(scratch))
        some = source.rows[:: len(source.rows) // HEADERS + 1]
        return source.rows, *_headers([source.root / row.path for row in some])


def _headers(files: Sequence[Path | BytesIO]) -> tuple[list[tuple[int, int]], Counter[str]]:
    sizes, modes = [], Counter[str]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # large pictures are the audit's matter
        for file in files:
            try:
                with Image.open(file, formats=FORMATS) as image:
                    sizes.append(image.size)
                    modes[image.mode] += 1
            except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError):
                modes["unreadable"] += 1
    return sizes, modes
