"""The fingerprint of a data set, for the cache: bytes and names, never times."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from distilledge.pipeline.data.formats import detect, folder_paths, list_unlabelled
from distilledge.pipeline.data.listing import expand
from distilledge.pipeline.data.manifest import check_columns, find, needed_columns, read
from distilledge.pipeline.data.text_formats import detect_text, text_files
from distilledge.pipeline.recipe import Data, TaskName
from distilledge.pipeline.recipe_multitask import tasks

THREADS = 4
"""Reading and hashing release the interpreter's lock."""


def content_hash(data: Data, task: TaskName = "image-classification") -> str:
    """sha256 over the relative names and contents of the pictures and the manifest, or of the files of texts.

    Generated sets: over their parameters. Hub names: over the name. Where the data lies does not matter.
    """
    if task != "image-classification":
        return _text_hash(data)
    kind = detect(data)
    if kind == "synthetic":
        return _digest(["synthetic", data.synthetic.model_dump_json()])
    path = Path(expand(data.path))
    if kind == "huggingface" and not path.is_dir():
        return _digest(["hub", data.path])
    if kind == "manifest":
        file = find(path)
        return _hash_files(file.parent, [file.name, *_manifest_paths(file, data)])
    return _hash_files(path, folder_paths(path))


def _text_hash(data: Data) -> str:
    kind = detect_text(data)
    if kind == "synthetic":
        return _digest(["tickets", data.tickets.model_dump_json()])
    path = Path(expand(data.path))
    if kind != "huggingface":
        files = [file for _, file in text_files(path)]
        return _hash_files(files[0].parent, [file.name for file in files])
    return _hash_files(path, folder_paths(path)) if path.is_dir() else _digest(["hub", data.path])


def label_inputs(data: Data) -> dict[str, Any]:
    """Of several tasks: their order, and where other sets lie (their pictures are recorded by absolute path)."""
    columns = data.columns.model_copy(update={"labels": {}})
    others = {
        task: {"path": str(Path(expand(path)).resolve()), "content": content_hash(one)}
        for task, path in data.other_sets.items()
        for one in (data.model_copy(update={"path": path, "columns": columns, "format": "auto"}),)
    }
    return {"tasks": list(tasks(data)), "other_sets": others} if tasks(data) else {}


def location(data: Data, task: TaskName = "image-classification") -> str:
    """The ``Splits.root`` that the data stage will record: not part of the content, but a result that names it is stale
    where the data has moved. Texts are kept by the data stage.
    """
    kind = "texts" if task != "image-classification" else detect(data)
    if kind in ("texts", "synthetic", "huggingface"):
        return "."
    path = Path(expand(data.path))
    return str((find(path).parent if kind == "manifest" else path).resolve())


def unlabelled_hash(path: str) -> str:
    """The same of a folder of pictures or a file of texts without labels."""
    file = Path(expand(path))
    if file.is_file():
        return _hash_files(file.parent, [file.name])
    source = list_unlabelled(path)
    return _hash_files(source.root, [row.path for row in source.rows])


def target_data(data: Data, place: str) -> Data:
    """``data`` as if a part of its target were all there is."""
    return data.model_copy(update={"path": place, "format": "auto", "target": None})


def target_inputs(data: Data, task: TaskName) -> dict[str, dict[str, str]]:
    """What a target is to a step's fingerprint: contents; and places, because its pictures have absolute paths."""
    assert data.target is not None
    places = {name: place for name in ("path", "test") if (place := getattr(data.target, name))}
    made = {name: {"content": content_hash(target_data(data, place), task)} for name, place in places.items()}
    if task == "image-classification":
        for name, place in places.items():
            made[name]["place"] = str(Path(expand(place)).resolve())
    return made


def _manifest_paths(file: Path, data: Data) -> list[str]:
    header, records = read(file)
    column = check_columns(str(file), header, data.columns, needed_columns(data))["path"]
    return [fields[column] for _, fields in records if fields.get(column)]


def _hash_files(root: Path, names: Iterable[str]) -> str:
    ordered = sorted(set(names))
    with ThreadPoolExecutor(THREADS) as pool:
        hashes = pool.map(_file_hash, (os.path.join(root, name) for name in ordered))
        return _digest(f"{name!r} {content}" for name, content in zip(ordered, hashes, strict=True))


def _file_hash(path: str) -> str:
    """What is no readable file has a hash of its own kind; the audit says why."""
    if not os.path.isfile(path):
        return "no file"
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return "unreadable"


def _digest(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()
