"""Which packages are installed, against our lower bounds and the known-good set. Metadata only; none is imported."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Literal, NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from distilledge.models.errors import MissingPackageError

CONSTRAINTS = Path(__file__).with_name("constraints.txt")
"""The known-good set, installed with us."""

TORCHVISION_AHEAD = 15
"""torch 2.N goes with torchvision 0.(N + 15), since torch 2.0."""

Fit = Literal["known good", "within bounds", "too old or too new", "missing"]


class Installed(NamedTuple):
    """One direct dependency. ``found`` is empty where it is missing; ``known_good`` where the set does not name it."""

    name: str
    requirement: str
    found: str
    known_good: str
    fit: Fit


class TorchPair(NamedTuple):
    """torch and torchvision with their build tags, such as ``2.14.1+cu130``."""

    torch: str
    torchvision: str
    doubt: str
    """Why they may not belong together; empty where nothing speaks against it."""


def known_good() -> dict[str, str]:
    """Canonical name -> version, from ``CONSTRAINTS``."""
    lines = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    pins = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {canonicalize_name(name): version.strip() for name, version in pins}


def dependencies(path: Sequence[str] | None = None) -> list[Installed]:
    """Our direct dependencies as installed under ``path`` (default: the import path), in the order of pyproject.toml.

    Raises ``MissingPackageError`` where distilledge itself has no metadata there.
    """
    present = _present(path)
    if "distilledge" not in present:
        raise MissingPackageError("E4501", "distilledge is not installed in this environment", "pip install -e .")
    pins = known_good()
    wanted = [Requirement(text) for text in present["distilledge"].requires or ()]
    return [_fit(need, present, pins) for need in wanted if need.marker is None or need.marker.evaluate({"extra": ""})]


def torch_pair(path: Sequence[str] | None = None) -> TorchPair:
    """Whether torch and torchvision can belong together, judged from their metadata alone.

    A CPU-only torch beside the registry's torchvision (a CUDA build), or one of another release, makes every import of
    torchvision fail with ``operator torchvision::nms does not exist``.
    """
    present = _present(path)
    torch, vision = (_build(present.get(name), name) for name in ("torch", "torchvision"))
    if not torch or not vision:
        return TorchPair(torch, vision, "torch or torchvision is missing")
    ours, theirs = Version(torch), Version(vision)
    if theirs.release[1] != ours.release[1] + TORCHVISION_AHEAD:
        expected = f"0.{ours.release[1] + TORCHVISION_AHEAD}"
        return TorchPair(torch, vision, f"torch {ours.public} goes with torchvision {expected}")
    if _accelerator(ours) != _accelerator(theirs):
        return TorchPair(torch, vision, f"one is built for {_accelerator(ours)}, the other for {_accelerator(theirs)}")
    return TorchPair(torch, vision, "")


def _present(path: Sequence[str] | None) -> dict[str, Distribution]:
    found = distributions() if path is None else distributions(path=list(path))
    present: dict[str, Distribution] = {}
    for distribution in found:
        present.setdefault(canonicalize_name(distribution.name), distribution)
    return present


def _fit(need: Requirement, present: dict[str, Distribution], pins: dict[str, str]) -> Installed:
    name = canonicalize_name(need.name)
    pin = pins.get(name, "")
    if name not in present:
        return Installed(need.name, str(need), "", pin, "missing")
    found = present[name].version
    if not need.specifier.contains(found, prereleases=True):
        return Installed(need.name, str(need), found, pin, "too old or too new")
    return Installed(
        need.name, str(need), found, pin, "known good" if Version(found).public == pin else "within bounds"
    )


def _build(distribution: Distribution | None, package: str) -> str:
    """Version with its build tag: the registry's wheels carry the tag in version.py only, not in their metadata."""
    if distribution is None:
        return ""
    source = distribution.read_text(f"../{package}/version.py")
    assigned = [n for n in ast.parse(source or "").body if isinstance(n, ast.Assign)]
    for node in assigned:
        if ast.unparse(node.targets[0]) == "__version__" and isinstance(node.value, ast.Constant):
            return str(node.value.value)
    return distribution.version


def _accelerator(version: Version) -> str:
    """``cpu``, ``cuda`` or ``rocm`` from a local tag such as ``cu130``; macOS wheels carry none."""
    tag = version.local or ""
    return next((name for start, name in (("cu", "cuda"), ("rocm", "rocm")) if tag.startswith(start)), "cpu")
