"""Files of the worker: what is loaded is what was asked for, what is written is whole."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


class IntegrityMismatch(Exception):  # noqa: N818
    """A model file is not the one that was asked for."""


def check_integrity(files: list[str], sha256: list[str]) -> None:
    """Raise ``IntegrityMismatch`` unless every file has its hash: runtimes load a flipped bit without a word."""
    for path, expected in zip(files, sha256, strict=True):
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
        found = digest.hexdigest()
        if found != expected:
            raise IntegrityMismatch(f"{path}: expected sha256 {expected}, got {found}")


def write_array(path: str, array: Array) -> None:
    """A .npy that is complete or absent."""
    partial = f"{path}.tmp-{os.getpid()}"
    with open(partial, "wb") as file:
        np.save(file, array, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
