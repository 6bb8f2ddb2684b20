"""Pictures as uint8 arrays by index: decoded from their files, or from a cache on disk that holds the same arrays.

The cache is one file read with ``pread``, not mapped: resident memory does not grow with the number of pictures.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from filelock import FileLock
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from distilledge.models.errors import RejectedError
from distilledge.pipeline.disk import disk_errors
from distilledge.pipeline.record import Sample
from distilledge.pipeline.training.workers import follow_parent, starter
from distilledge.targets.ondevice.preprocess import BadPicture, InputSpec, decode, fit

Uint8Array = npt.NDArray[np.uint8]

MARGIN = 1.15
"""Shorter side of a picture kept for training, over the size of the views cut from it."""


class Pictures(Protocol):
    """uint8 arrays (height, width, 3) by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Uint8Array: ...


class FromFiles(Dataset[Uint8Array]):
    """Decodes a file on each access: fitted to ``spec`` for evaluation, or whole and only shrunk for training."""

    def __init__(self, samples: Sequence[Sample], root: Path, spec: InputSpec, *, fitted: bool) -> None:
        self._names = np.array([os.fsencode(s.path) for s in samples], dtype=object)
        self._root, self._spec, self._fitted = root, spec, fitted

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Uint8Array:
        path = self.path(index)
        try:
            image = decode(path, self._spec)
        except BadPicture as error:
            raise BadPicture(f"{path}: {error.reason}") from error
        return fit(image, self._spec) if self._fitted else np.asarray(shrink(image, self._spec.height))

    def path(self, index: int) -> Path:
        return self._root / os.fsdecode(self._names[index])


@contextmanager
def readable() -> Iterator[None]:
    """Inside, a picture that could be read when it was audited and cannot now is ``RejectedError`` (exit 3).

    From a loader process the error arrives with its traceback as text; the last line says what it is.
    """
    try:
        yield
    except BadPicture as error:
        reason = error.reason.strip().splitlines()[-1].rpartition("BadPicture: ")[2]
        raise RejectedError(
            "E3601", f"a picture can no longer be used: {reason}", "restore it, or run again: the audit sets it aside"
        ) from error


def shrink(image: Image.Image, view_size: int) -> Image.Image:
    """Shorter side at most ``MARGIN`` x view size; never enlarged. The same with and without the cache."""
    limit = round(view_size * MARGIN)
    scale = limit / min(image.size)
    if scale >= 1:
        return image
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR)


class FromCache:
    """Arrays of a cache directory. A damaged one is decoded from its file again; the others stay."""

    def __init__(self, directory: Path, source: Pictures) -> None:
        self._path, self._source = directory / "pictures.bin", source
        self._index = np.load(directory / "index.npy")  # (N, 4) int64: offset, height, width, CRC-32
        self._file, self._process = -1, -1

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> Uint8Array:
        offset, height, width, checksum = (int(field) for field in self._index[index])
        data = os.pread(self._descriptor(), height * width * 3, offset)
        if zlib.crc32(data) != checksum:
            return self._source[index]
        return np.frombuffer(data, np.uint8).reshape(height, width, 3)

    def _descriptor(self) -> int:
        """Open file of this process; a loader process opens its own."""
        if self._process != os.getpid():
            self._file, self._process = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC), os.getpid()
        return self._file

    def close(self) -> None:
        if self._process == os.getpid():
            os.close(self._file)
            self._process = -1


def cache_key(samples: Sequence[Sample], spec: InputSpec, *, fitted: bool) -> str:
    """Names a cache by what is in it: the pictures' hashes and the rule that made the arrays."""
    rule = {k: v for k, v in spec.to_dict().items() if k not in ("mean", "std")}
    digest = hashlib.sha256(f"1 {fitted} {MARGIN} {sorted(rule.items())}".encode())
    for sample in samples:
        digest.update(sample.sha256.encode() or os.fsencode(sample.path))
        digest.update(b"\n")
    return digest.hexdigest()[:24]


def cached(source: FromFiles, key: str, root: Path, *, workers: int) -> FromCache:
    """The cache of ``source`` under ``root``, made if it is not there whole. Raises ``ResourceError`` (disk)."""
    final = root / key
    with disk_errors(f"the cache of {len(source)} decoded pictures", root), readable():
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f"{key}.lock"):  # waits: whoever comes second finds it made
            for dead in root.glob(f".tmp-{key}-*"):
                shutil.rmtree(dead, ignore_errors=True)
            if not _is_whole(final, len(source)):
                shutil.rmtree(final, ignore_errors=True)
                temporary = Path(tempfile.mkdtemp(prefix=f".tmp-{key}-", dir=root))
                _fill(temporary, source, workers)
                temporary.rename(final)
    return FromCache(final, source)


def _is_whole(directory: Path, count: int) -> bool:
    try:
        index = np.load(directory / "index.npy")
        size = (directory / "pictures.bin").stat().st_size
    except (OSError, ValueError):
        return False
    return len(index) == count and size == int((index[:, 1] * index[:, 2] * 3).sum())


def _fill(directory: Path, source: FromFiles, workers: int) -> None:
    index = np.zeros((len(source), 4), np.int64)
    arrays = DataLoader(
        source,
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_is,
        worker_init_fn=follow_parent,
        multiprocessing_context=starter(workers),
    )
    with (directory / "pictures.bin").open("wb") as file:
        for i, array in enumerate(arrays):
            data = np.ascontiguousarray(array).tobytes()
            index[i] = file.tell(), array.shape[0], array.shape[1], zlib.crc32(data)
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
    with (directory / "index.npy").open("wb") as file:
        np.save(file, index)
        os.fsync(file.fileno())


def _as_is(array: Any) -> Any:
    return array
