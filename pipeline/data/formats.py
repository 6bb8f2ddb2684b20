"""Dataset formats: a function each that lists the pictures; nothing is decoded here.

Class order is that of the sorted names, and splits are joined by name: no index of any source is trusted.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from distilledge.models.errors import RejectedError, UsageError
from distilledge.pipeline.data.huggingface import MARKERS, huggingface
from distilledge.pipeline.data.labels import with_other_sets
from distilledge.pipeline.data.listing import (
    SPLIT_NAMES,
    Finding,
    Listing,
    Row,
    counted,
    expand,
    finding,
    shown,
)
from distilledge.pipeline.data.manifest import MANIFESTS, manifest
from distilledge.pipeline.data.synthetic import synthetic
from distilledge.pipeline.recipe import Data
from distilledge.pipeline.record import Split

IGNORED = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
"""Left behind by file managers; names that start with a dot are ignored too."""

LAYOUT = """expected one of
    ROOT/<class>/*.png
    ROOT/{train,validation,test}/<class>/*.png
    ROOT/manifest.csv or .jsonl with the columns path,label[,split][,group]
    a directory written by datasets.save_to_disk"""


def folder(data: Data, out: Path) -> Listing:  # noqa: ARG001 (one signature for every format)
    """A folder for each class, or for each split and in it for each class. Folders may be nested and linked."""
    root = Path(expand(data.path))
    names = _directories(root)
    parts = {name: SPLIT_NAMES[name.lower()] for name in names if name.lower() in SPLIT_NAMES}
    loops: list[str] = []
    if "train" in parts.values():
        rows, counts = _split_rows(root, parts, loops)
        ignored = [shown(name) for name in names if name not in parts]
    else:
        rows, ignored = [], []
        counts = Counter(dict.fromkeys(names, 0))
        for name in names:
            for path in _files(root, name, loops):
                rows.append(Row(path, name, None, None))
                counts[name] += 1
    _check_counts(root, names, counts, found=bool(rows))
    return Listing("folder", root.resolve(), sorted(rows), shown(root), notes=_notes(loops, ignored))


def list_unlabelled(path: str, place: str = "distill.unlabelled") -> Listing:
    """All pictures under a folder, for training without labels. ``$NAME`` is expanded; raises RejectedError.

    ``place``: the recipe's field, for messages.
    """
    root = Path(expand(path))
    if not root.is_dir():
        raise RejectedError("E3102", f"{place}: no such folder: {shown(root)}", "give a folder with pictures in it")
    loops: list[str] = []
    rows = [Row(name, None, None, "unlabelled") for name in _files(root, "", loops)]
    if not rows:
        raise RejectedError("E3102", f"{place}: no pictures in {shown(root)}", "give a folder with pictures in it")
    return Listing("folder", root.resolve(), sorted(rows), shown(root), notes=_notes(loops, []))


LABEL_COLUMNS = ("manifest", "synthetic")
"""Formats that give several labels of one picture."""

FORMATS: dict[str, Callable[[Data, Path], Listing]] = {
    "folder": folder,
    "manifest": manifest,
    "huggingface": huggingface,
    "synthetic": synthetic,
}


def listing(data: Data, out: Path) -> Listing:
    """The pictures of ``data``; generated and unpacked ones go to ``out/images``. Raises RejectedError (exit 3)."""
    kind = detect(data)
    if data.columns.labels and kind not in LABEL_COLUMNS:
        what = f"data.columns.labels names columns, which a {kind} has not: {shown(data.path)}"
        raise UsageError("E2501", what, "write a manifest.csv with them")
    found = FORMATS[kind](data, out)
    return with_other_sets(found, data, listing, out) if data.other_sets else found


def detect(data: Data) -> str:
    """The key of ``FORMATS`` for ``data``. The hub is only asked where ``format: huggingface`` says so."""
    if data.format == "synthetic" or (data.format == "auto" and data.path == "synthetic"):
        return "synthetic"
    path = Path(expand(data.path))
    if data.format == "huggingface":
        return "huggingface"
    if not path.exists():
        raise RejectedError("E3103", f"data.path does not exist: {shown(path)}; {LAYOUT}", _missing_hint(path))
    kind = data.format if data.format != "auto" else _detect_existing(path)
    if kind == "folder" and not path.is_dir():
        raise RejectedError("E3103", f"data.path is not a folder: {shown(path)}; {LAYOUT}", "name its folder")
    return kind


def _detect_existing(path: Path) -> str:
    if path.is_file():
        return "manifest" if path.suffix.lower() in (".csv", ".jsonl") else "folder"
    if any((path / marker).is_file() for marker in MARKERS):
        return "huggingface"
    return "manifest" if any((path / name).is_file() for name in MANIFESTS) else "folder"


def folder_paths(path: Path) -> list[str]:
    """Relative paths of all files below a folder, as ``folder`` sees them."""
    return list(_files(path, "", []))


def _missing_hint(path: Path) -> str:
    hub = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(path))
    return "for a data set of the Hugging Face hub: --set data.format=huggingface" if hub else "edit data.path"


def _split_rows(root: Path, parts: dict[str, Split], loops: list[str]) -> tuple[list[Row], Counter[str]]:
    rows: list[Row] = []
    counts: Counter[str] = Counter()
    for part, split in parts.items():
        if split == "unlabelled":
            rows += [Row(path, None, None, split) for path in _files(root, part, loops)]
            continue
        for name in _directories(root / part):
            counts.setdefault(name, 0)
            for path in _files(root, f"{part}/{name}", loops):
                rows.append(Row(path, name, None, split))
                counts[name] += 1
    return rows, counts


def _directories(path: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and not _ignored(entry.name))


def _ignored(name: str) -> bool:
    return name.startswith(".") or name.lower() in IGNORED


def _files(root: Path, start: str, loops: list[str]) -> Iterator[str]:
    """Relative paths of all files below ``root/start``. A link to a folder above it is cut and named in ``loops``."""
    waiting = [(start, frozenset[tuple[int, int]]())]
    while waiting:
        folder, above = waiting.pop()
        here = os.stat(root / folder)
        if (here.st_dev, here.st_ino) in above:
            loops.append(shown(folder))
            continue
        try:
            entries = sorted(os.scandir(root / folder), key=lambda e: e.name)
        except OSError:
            yield folder  # the audit quarantines it with the reason
            continue
        for entry in entries:
            if _ignored(entry.name):
                continue
            path = f"{folder}/{entry.name}" if folder else entry.name
            if _is_directory(entry):
                waiting.append((path, above | {(here.st_dev, here.st_ino)}))
            else:
                yield path


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _check_counts(root: Path, names: list[str], counts: Counter[str], *, found: bool) -> None:
    if not counts or not found:
        raise RejectedError("E3103", f"no pictures in class folders in {shown(root)}; {LAYOUT}", "edit data.path")
    empty = [shown(name) for name, n in counts.items() if n == 0]
    if not empty and len(counts) > 1:
        return
    what = f"class folders without pictures: {', '.join(empty)}" if empty else "only one class"
    inner = len(names) == 1 and _directories(root / names[0])
    hint = f"did you mean data.path: {shown(root / names[0])}" if inner else "remove the empty folders or add pictures"
    raise RejectedError("E3104", f"{what}: {shown(root)} (pictures: {counted(counts)})", hint)


def _notes(loops: list[str], ignored: list[str]) -> tuple[Finding, ...]:
    notes = []
    if loops:
        notes.append(finding("directory_loop", "warning", "folders that contain themselves were cut", loops))
    if ignored:
        notes.append(finding("ignored_folders", "info", "folders beside the splits were ignored", ignored))
    return tuple(notes)
