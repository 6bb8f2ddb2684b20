"""What a frozen backbone makes of each sample, computed once and kept by content beside the decoded pictures."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout
from torch import Tensor

from distilledge.pipeline.disk import disk_errors, fsync_directory

log = logging.getLogger("distilledge.training")
FEATURES, MANIFEST = "features.npy", "manifest.json"
MOST_BYTES = 1 << 30
"""Of all features in a cache."""
FloatArray = npt.NDArray[np.float32]


def state_hash(state: Mapping[str, Tensor]) -> str:
    """sha256 over names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(state):
        array = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {array.dtype} {tuple(array.shape)}\n".encode())
        digest.update(array.flatten().view(-1).numpy().tobytes())
    return digest.hexdigest()


def cache_key(samples: Iterable[str], backbone: str, facts: Mapping[str, Any]) -> str:
    """``samples``: content hashes in order; ``backbone``: ``state_hash``; ``facts``: input, precision, versions."""
    digest = hashlib.sha256(f"1 {backbone} {json.dumps(facts, sort_keys=True)}\n".encode())
    for sample in samples:
        digest.update(sample.encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()[:24]


def cached(root: Path, key: str, compute: Callable[[], FloatArray]) -> FloatArray:
    """The array (N, D) under ``root/key``, computed where it is not there whole. Raises ``ResourceError`` (disk).

    Its sha256 is checked before use; a damaged one is computed again, with a warning. What was used longest ago goes
    where the cache outgrows ``MOST_BYTES``.
    """
    final = root / key
    with disk_errors("the cache of features", root):
        root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f"{key}.lock"):  # waits: whoever comes second finds it made
        found = _read(final)
        if found is not None:
            os.utime(final)  # used now
            return found
        for dead in root.glob(f".tmp-{key}-*"):
            shutil.rmtree(dead, ignore_errors=True)
        made = np.ascontiguousarray(compute(), np.float32)
        with disk_errors(f"the features of {len(made)} samples", root):
            shutil.rmtree(final, ignore_errors=True)
            temporary = Path(tempfile.mkdtemp(prefix=f".tmp-{key}-", dir=root))
            with (temporary / FEATURES).open("wb") as file:
                np.save(file, made)
            digest = hashlib.sha256((temporary / FEATURES).read_bytes()).hexdigest()
            (temporary / MANIFEST).write_text(json.dumps({"sha256": digest}), encoding="utf-8")
            fsync_directory(temporary)
            temporary.rename(final)
    sweep(root, spared=key)
    return made


def sweep(root: Path, *, spared: str, most: int | None = None) -> list[str]:
    """Remove entries, the one used longest ago first, until the others hold ``most`` bytes; their names.

    What another process holds stays. Only what a removal costs depends on times: it is computed again.
    """
    limit, removed = MOST_BYTES if most is None else most, []
    entries = sorted((p for p in root.iterdir() if p.is_dir() and p.name[0] != "."), key=lambda p: p.stat().st_mtime)
    sizes = {path: sum(file.stat().st_size for file in path.iterdir()) for path in entries}
    total = sum(sizes.values())
    for path in entries:
        if total <= limit:
            break
        lock = FileLock(root / f"{path.name}.lock", timeout=0)
        if path.name == spared:
            continue
        try:
            with lock:
                shutil.rmtree(path)
        except Timeout:
            continue
        total -= sizes[path]
        removed.append(path.name)
    return removed


def _read(directory: Path) -> FloatArray | None:
    if not directory.is_dir():
        return None
    try:
        said = json.loads((directory / MANIFEST).read_bytes())["sha256"]
        content = (directory / FEATURES).read_bytes()
    except (OSError, ValueError, KeyError):
        said, content = "", b"?"
    if hashlib.sha256(content).hexdigest() != said:
        log.warning("%s is damaged: the features are computed again", directory)
        return None
    loaded: FloatArray = np.load(directory / FEATURES)
    return loaded
