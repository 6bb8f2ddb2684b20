"""Hugging Face image data sets: a directory of ``save_to_disk``, or a hub name. Pictures are unpacked to files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from distilledge.models.errors import RejectedError
from distilledge.pipeline.data.listing import SPLIT_NAMES, Listing, Row, closest, expand, shown
from distilledge.pipeline.recipe import Columns, Data
from distilledge.pipeline.record import Split

MARKERS = ("dataset_dict.json", "state.json")
"""Files of a directory written by ``save_to_disk``."""

SUFFIXES = {
    b"\xff\xd8": ".jpg",
    b"\x89P": ".png",
    b"GI": ".gif",
    b"BM": ".bmp",
    b"RI": ".webp",
    b"II": ".tif",
    b"MM": ".tif",
}
"""First two bytes of a file -> its suffix."""

Part = tuple[Split | None, Any]
"""A split, None where the data set has none, and its ``datasets.Dataset``."""


class Meaning(NamedTuple):
    """What a row says of its picture."""

    label: str | None
    group: str | None
    split: Split | None


def huggingface(data: Data, out: Path) -> Listing:
    """Writes every picture, byte for byte, to ``out/images/<split>/<number>``. Labels are taken by their names."""
    rows: list[Row] = []
    for split, part in open_parts(data):
        image, label = _columns(part, data.columns)
        folder = Path("images") / (split or "all")
        (out / folder).mkdir(parents=True, exist_ok=True)
        for number, (content, meaning) in enumerate(_rows(part, image, label, data.columns)):
            path = folder / f"{number:07d}{SUFFIXES.get(content[:2], '.bin')}"
            (out / path).write_bytes(content)
            rows.append(Row(path.as_posix(), meaning.label, meaning.group, split or meaning.split))
    return Listing("huggingface", out.resolve(), sorted(rows), shown(data.path), unpacked=True)


def peek(data: Data, most: int) -> tuple[list[Row], list[bytes]]:
    """Every row, without a picture file of its own, and the content of the first ``most`` pictures of each split."""
    rows, contents = [], []
    for split, part in open_parts(data):
        image, label = _columns(part, data.columns)
        meanings = _meanings(part.remove_columns([image]), label, data.columns)
        rows += [Row("", meaning.label, meaning.group, split or meaning.split) for meaning in meanings]
        first = part.select(range(min(most, len(part))))
        contents += [content for content, _ in _rows(first, image, label, data.columns)]
    return rows, contents


def open_parts(data: Data) -> list[Part]:
    """The splits of the data set, opened lazily. The hub is asked only where the path is no directory."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import datasets

    path = expand(data.path)
    if not os.path.isdir(path):
        loaded = _load_hub(path)
    else:
        try:
            loaded = datasets.load_from_disk(path)
        except (OSError, ValueError) as error:
            raise RejectedError(
                "E3107", f"not a datasets directory ({error}): {shown(path)}", "write it with save_to_disk"
            ) from error
    if not isinstance(loaded, datasets.DatasetDict):
        return [(None, loaded)]
    return [(_split(name, path), part) for name, part in loaded.items()]


def _load_hub(name: str) -> Any:
    import datasets

    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise RejectedError("E3107", f"no such directory: {shown(name)}", "edit data.path")
    try:
        return datasets.load_dataset(name)
    except (OSError, ValueError, RuntimeError) as error:  # datasets' own errors and those of a missing network
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RejectedError(
            "E3107",
            f"data set {name!r} is neither in the local cache nor can it be fetched from the hub ({reason})",
            f"on a machine with network: python -c \"import datasets; datasets.load_dataset('{name}')"
            ".save_to_disk('DIRECTORY')\", then data.path: DIRECTORY",
        ) from error


def _split(name: str, path: str) -> Split:
    if name.lower() not in SPLIT_NAMES:
        near = closest(name, SPLIT_NAMES) or "train, validation or test"
        raise RejectedError("E3107", f"unknown split {name!r}: {shown(path)}", f"rename it; did you mean {near}")
    return SPLIT_NAMES[name.lower()]


def _columns(part: Any, columns: Columns) -> tuple[str, str]:
    """Names of the image and the label column: those of the recipe, or the only ones of their kind."""
    import datasets

    images = [name for name, kind in part.features.items() if isinstance(kind, datasets.Image)]
    labels = [name for name, kind in part.features.items() if isinstance(kind, datasets.ClassLabel)]
    image = columns.path if columns.path in images else images[0] if len(images) == 1 else None
    label = columns.label if columns.label in part.features else labels[0] if len(labels) == 1 else None
    if image is None or label is None:
        ours, found = ("path", images) if image is None else ("label", labels)
        near = found[0] if found else closest(columns.path, part.features) or "NAME"
        what = f"no {'image' if image is None else 'label'} column (columns: {', '.join(part.features)})"
        raise RejectedError("E3106", what, f"--set data.columns.{ours}={near}")
    return image, label


def _rows(part: Any, image: str, label: str, columns: Columns) -> Iterator[tuple[bytes, Meaning]]:
    """File content and meaning of each row, one in memory at a time."""
    import datasets

    meanings = _meanings(part.remove_columns([image]), label, columns)
    stored = part.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    for row, meaning in zip(stored, meanings, strict=True):
        content = row[image]["bytes"] if row[image] else b""
        yield (_file(row[image]["path"]) if content is None else content), meaning


def _meanings(part: Any, label: str, columns: Columns) -> Iterator[Meaning]:
    for row in plain_rows(part):
        value, group, own = row.get(label), row.get(columns.group), row.get(columns.split)
        yield Meaning(
            None if value is None else str(value),
            None if group is None else str(group),
            _split(str(own), columns.split) if own else None,
        )


def plain_rows(part: Any) -> Iterator[dict[str, Any]]:
    """Rows of a ``datasets.Dataset`` without their empty fields; class labels, alone or in lists, by their names."""
    names = {column: of for column, feature in part.features.items() if (of := _label_names(feature)) is not None}
    for row in part:
        for column, of in names.items():
            row[column] = _named(row[column], of)
        yield {column: value for column, value in row.items() if value is not None}


def _label_names(feature: Any) -> list[str] | None:
    import datasets

    inner = getattr(feature, "feature", feature)  # of a list: that of its items
    return list(inner.names) if isinstance(inner, datasets.ClassLabel) else None


def _named(value: Any, names: list[str]) -> Any:
    """None for a label that is not there: None or -1."""
    if isinstance(value, list):
        return [_named(item, names) for item in value]
    return None if value is None or value < 0 else names[value]


def _file(path: str) -> bytes:
    """Content of a picture that the data set names instead of holding; empty where it is gone: the audit reports it."""
    return Path(path).read_bytes() if os.path.isfile(path) else b""
