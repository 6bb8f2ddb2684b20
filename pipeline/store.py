"""The store: every stage's result in a directory named by the fingerprint of its inputs, complete or absent.

    <root>/<stage>-<fingerprint[:16]>/   value.json, the stage's files, manifest.json (written last)
    <root>/.tmp-...                      being built; swept when its owner is gone
    <root>/.partial-...                  survives a kill, so that a training resumes; removed after the commit
    <root>/.locks/                       kernel locks, and beside each who holds it

Decisions are made from hashes alone, never from times: clocks jump and files are copied. Extra files in an entry are
ignored, since nothing reads a file that its value or manifest does not name.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from distilledge.models.errors import LockedError
from distilledge.pipeline.canonical import canonical_json, differences, explain
from distilledge.pipeline.disk import atomic_write, disk_errors, fsync_directory, kernel_lock, run_lock
from distilledge.pipeline.failpoints import failpoint
from distilledge.pipeline.manifest import VALUE, Manifest, damage, read_manifest, seal

__all__ = ["Manifest", "Store", "Stored", "atomic_write", "canonical_json", "explain", "run_lock"]

T = TypeVar("T", bound=BaseModel)
log = logging.getLogger("distilledge.store")


@dataclass(frozen=True)
class Stored(Generic[T]):
    """A stage's result. ``path`` is the directory that the value's file names start from."""

    value: T
    path: Path
    fingerprint: str
    cached: bool
    """Found in the store, not built in this call."""
    seconds: float
    """What building it took, then or now."""


def fingerprint(stage: str, version: int, inputs: Mapping[str, Any]) -> str:
    """sha256 (hex) of the canonical JSON of the three; ``version`` counts changes of the stage's own code."""
    return hashlib.sha256(canonical_json({"stage": stage, "version": version, "inputs": inputs})).hexdigest()


class Store:
    """Directories of finished stages under ``root``. Nothing is touched on construction."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def fingerprint(self, stage: str, version: int, inputs: Mapping[str, Any]) -> str:
        return fingerprint(stage, version, inputs)

    def path(self, stage: str, key: str) -> Path:
        """Where the entry is, or would be."""
        return self.root / f"{stage}-{key[:16]}"

    def probe(self, stage: str, key: str) -> bool:
        """Whether an entry with this full fingerprint is there. Cheap: no file but the manifest is read."""
        return isinstance(read_manifest(self.path(stage, key), stage, key), Manifest)

    def damage(self, stage: str, key: str) -> str | None:
        """The first thing wrong with an entry that is there, such as ``model.onnx: sha256 differs``; None if sound."""
        path = self.path(stage, key)
        if not path.is_dir():
            return None
        manifest = read_manifest(path, stage, key)
        return manifest if isinstance(manifest, str) else damage(path, manifest)

    def lookup(self, stage: str, key: str, result: type[T]) -> Stored[T] | None:
        """The entry, if every file has the size, sha256 and mode of its manifest; a damaged one is a miss, logged."""
        found = self._read(stage, key, result)
        if isinstance(found, str):
            log.warning("%s is damaged and will be rebuilt: %s", self.path(stage, key), found)
            return None
        return found

    def once(
        self,
        stage: str,
        version: int,
        inputs: Mapping[str, Any],
        result: type[T],
        build: Callable[[Path, Path], T],
    ) -> Stored[T]:
        """Return the recorded result of these inputs, or build, commit and return it.

        ``build(out, partial)`` writes the stage's files into ``out``; what it leaves in ``partial`` is there again when
        a killed build is repeated. Raises ``LockedError`` (exit 8) while another process builds the same entry and
        ``ResourceError`` (exit 9) when the disk is full or failing; finished entries stay as they are.
        """
        key = fingerprint(stage, version, inputs)
        name = self.path(stage, key).name
        found = self._read(stage, key, result)
        if isinstance(found, Stored):
            self._sweep(sound=name)
            return found
        locks = self.root / ".locks"
        with disk_errors(f"stage {stage}", locks):
            locks.mkdir(parents=True, exist_ok=True)
        with kernel_lock(locks / f"{name}.lock", f"stage {stage} of {self.root}"):
            again = self.lookup(stage, key, result)
            if again is not None:
                return again
            self._sweep(locked=name)
            out = self.root / f".tmp-{name}-{os.getpid()}-{secrets.token_hex(4)}"
            try:
                with disk_errors(f"stage {stage}", out):
                    seconds = self._build(stage, key, inputs, build, out)
            finally:
                shutil.rmtree(out, ignore_errors=True)
            failpoint("commit.done")
        value = result.model_validate_json((self.path(stage, key) / VALUE).read_bytes())
        return Stored(value, self.path(stage, key), key, cached=False, seconds=seconds)

    def partial(self, stage: str, key: str) -> Path:
        return self.root / f".partial-{self.path(stage, key).name}"

    def reason(self, stage: str, version: int, inputs: Mapping[str, Any]) -> str:
        """Why ``once`` would build: ``cached``, ``artefact damaged: ...``, or the change from the nearest entry."""
        key = fingerprint(stage, version, inputs)
        damaged = self.damage(stage, key)
        if damaged is not None:
            return f"artefact damaged: {damaged}"
        if self.probe(stage, key):
            return "cached"
        return explain(stage, inputs, self.nearest(stage, inputs))

    def nearest(self, stage: str, inputs: Mapping[str, Any]) -> dict[str, Any] | None:
        """Inputs of the stored entry of this stage that differ in the fewest places; None if there is no entry."""
        manifests = (read_manifest(path, stage, None) for path in sorted(self.root.glob(f"{stage}-*")))
        others = [m.inputs for m in manifests if isinstance(m, Manifest)]
        return min(others, key=lambda other: len(differences(inputs, other)), default=None)

    def _build(
        self, stage: str, key: str, inputs: Mapping[str, Any], build: Callable[[Path, Path], BaseModel], out: Path
    ) -> float:
        """Build and commit; return the seconds that building took."""
        partial = self.partial(stage, key)
        out.mkdir()
        partial.mkdir(exist_ok=True)
        started = time.monotonic()
        value = build(out, partial)
        seconds = time.monotonic() - started
        failpoint("commit.write")
        (out / VALUE).write_text(value.model_dump_json(by_alias=True, indent=1), encoding="utf-8")
        seal(out, stage=stage, key=key, inputs=inputs, seconds=seconds)
        self._publish(out, self.path(stage, key))
        shutil.rmtree(partial)
        return seconds

    def _publish(self, out: Path, final: Path) -> None:
        """One rename. A damaged predecessor steps aside only now that its successor is complete on the disk."""
        failpoint("commit.rename")
        aside = out.with_name(f".tmp-{final.name}-{os.getpid()}-damaged")
        if final.is_symlink() or final.exists():
            final.rename(aside)
        out.rename(final)
        fsync_directory(self.root)
        _remove(aside)

    def _read(self, stage: str, key: str, result: type[T]) -> Stored[T] | str | None:
        """The verified entry, None where there is none, or in words what is wrong with it."""
        path = self.path(stage, key)
        if not path.is_symlink() and not path.exists():
            return None
        manifest = read_manifest(path, stage, key)
        if isinstance(manifest, str):
            return manifest
        damaged = damage(path, manifest)
        if damaged is not None:
            return damaged
        try:
            value = result.model_validate_json((path / VALUE).read_bytes())
        except ValidationError as error:
            return f"{VALUE} does not fit {result.__name__}: {error.errors()[0]['msg']}"
        return Stored(value, path, key, cached=True, seconds=manifest.seconds)

    def _sweep(self, *, locked: str = "", sound: str = "") -> None:
        """Remove what dead processes left: half-built entries, replaced ones, and the partial of the ``sound`` one.

        The caller holds the lock of ``locked``; what belongs to another entry goes only if its lock is free. The
        partial of an entry that is absent or damaged stays: a build resumes from it.
        """
        for path in self.root.glob(".tmp-*-*"):
            self._sweep_one(path, "-".join(path.name.removeprefix(".tmp-").split("-")[:-2]), locked)
        partial = self.root / f".partial-{sound}"
        if sound and partial.exists():
            self._sweep_one(partial, sound, locked)

    def _sweep_one(self, path: Path, name: str, locked: str) -> None:
        if name == locked:
            _remove(path)
            return
        try:
            with kernel_lock(self.root / ".locks" / f"{name}.lock", name):
                _remove(path)
        except LockedError:
            log.debug("%s is being built", path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
