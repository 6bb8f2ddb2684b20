"""What lies in a store entry: the manifest, how it is written last, and how an entry is checked against it."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from distilledge.models.base import Value
from distilledge.pipeline.canonical import canonical_json
from distilledge.pipeline.disk import atomic_write, fsync_tree
from distilledge.pipeline.failpoints import failpoint

MANIFEST, VALUE = "manifest.json", "value.json"


class FileRecord(Value):
    size: int
    sha256: str
    mode: int
    """Permission bits; a file whose bits changed was touched by someone."""


class Manifest(Value):
    """What lies in an entry and what made it. Canonical JSON on disk."""

    format: Literal[1] = 1
    stage: str
    fingerprint: str
    inputs: dict[str, Any]
    files: dict[str, FileRecord]
    created: str
    """ISO 8601, UTC. For people; no decision looks at it."""
    seconds: float


def seal(out: Path, *, stage: str, key: str, inputs: Mapping[str, Any], seconds: float) -> None:
    """Make what was built durable, then write the manifest over it, durable too."""
    failpoint("commit.fsync")
    fsync_tree(out)
    files = {path.relative_to(out).as_posix(): _record(path) for path in _files(out)}
    created = datetime.now(UTC).isoformat(timespec="seconds")
    manifest = Manifest(
        stage=stage, fingerprint=key, inputs=dict(inputs), files=files, created=created, seconds=seconds
    )
    failpoint("commit.manifest")
    atomic_write(out / MANIFEST, canonical_json(manifest))


def _files(out: Path) -> list[Path]:
    """Regular files below ``out``. A stage that leaves a link or a socket is a bug: it could not be hashed or moved."""
    paths = sorted(p for p in out.rglob("*") if p.is_symlink() or not p.is_dir())
    odd = [p for p in paths if not stat.S_ISREG(p.lstat().st_mode)]
    if odd:
        raise ValueError(f"a stage left something that is not a file: {odd[0]}")
    return paths


def _record(path: Path) -> FileRecord:
    with path.open("rb") as file:
        info = os.fstat(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileRecord(size=info.st_size, sha256=digest, mode=stat.S_IMODE(info.st_mode))


def read_manifest(path: Path, stage: str, key: str | None) -> Manifest | str:
    """The manifest of an entry, or in words why it is none of this stage and (if given) fingerprint."""
    try:
        manifest = Manifest.model_validate_json((path / MANIFEST).read_bytes())
    except OSError as error:
        return f"{MANIFEST}: {error.strerror}"
    except ValidationError as error:
        return f"{MANIFEST}: {error.errors()[0]['msg']}"
    if manifest.stage != stage or key not in (None, manifest.fingerprint):
        return f"{MANIFEST}: of another entry"
    return manifest


def damage(path: Path, manifest: Manifest) -> str | None:
    """The first file that is not what the manifest says; sizes and modes are compared before anything is hashed."""
    if VALUE not in manifest.files:
        return f"{VALUE}: not in the manifest"
    items = manifest.files.items()
    for check in (_outside_damage, _content_damage):
        for name, record in items:
            try:
                wrong = check(path / name, record)
            except OSError as error:
                wrong = error.strerror
            if wrong is not None:
                return f"{name}: {wrong}"
    return None


def _outside_damage(path: Path, record: FileRecord) -> str | None:
    info = path.lstat()
    if not stat.S_ISREG(info.st_mode):
        return "not a file"
    if info.st_size != record.size:
        return f"{info.st_size} bytes instead of {record.size}"
    mode = stat.S_IMODE(info.st_mode)
    return None if mode == record.mode else f"mode {mode:o} instead of {record.mode:o}"


def _content_damage(path: Path, record: FileRecord) -> str | None:
    return None if _record(path).sha256 == record.sha256 else "sha256 differs"
