"""A quick look at a data set for ``distilledge init``: nothing is decoded but the first headers."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image, UnidentifiedImageError

from distilledge.pipeline.data.audit import extent
from distilledge.pipeline.data.formats import detect, listing
from distilledge.pipeline.data.listing import expand
from distilledge.pipeline.data.manifest import find, guess_columns, read
from distilledge.pipeline.recipe import Columns, Data
from distilledge.targets.ondevice.preprocess import FORMATS

HEADERS = 200
"""Pictures, evenly spread, whose headers are read."""


def describe(path: str) -> dict[str, Any]:
    """``format``, ``columns`` (as guessed), ``classes``, ``counts`` per split and class, ``splits`` given, ``groups``,
    ``pictures``, ``sizes`` and ``modes`` of a sample. Raises RejectedError where no run could read the data.
    """
    data = Data(path=path)
    kind = detect(data)
    if kind == "manifest":
        data = data.model_copy(update={"columns": guess_columns(read(find(Path(expand(path))))[0])})
    if kind == "synthetic":
        data = data.model_copy(update={"synthetic": data.synthetic.model_copy(update={"per_class": 8})})
    with TemporaryDirectory() as scratch:
        source = listing(data, Path(scratch))
        sizes, modes = _headers([source.root / row.path for row in source.rows[:: len(source.rows) // HEADERS + 1]])
    counts: dict[str, Counter[str]] = {}
    for row in source.rows:
        counts.setdefault(row.split or "all", Counter())[row.label or ""] += 1
    groups = {row.group for row in source.rows if row.group}
    return {
        "format": kind,
        "columns": {k: v for k, v in data.columns.model_dump().items() if v != getattr(Columns(), k)},
        "classes": sorted({row.label for row in source.rows if row.label}),
        "counts": {split: dict(sorted(of.items())) for split, of in sorted(counts.items())},
        "splits": sorted({row.split for row in source.rows if row.split}),
        "groups": len(groups),
        "pictures": len(source.rows),
        "sizes": extent(sizes),
        "modes": dict(modes),
    }


def _headers(paths: list[Path]) -> tuple[list[tuple[int, int]], Counter[str]]:
    sizes, modes = [], Counter[str]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # large pictures are the audit's matter
        for path in paths:
            try:
                with Image.open(path, formats=FORMATS) as image:
                    sizes.append(image.size)
                    modes[image.mode] += 1
            except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError):
                modes["unreadable"] += 1
    return sizes, modes
