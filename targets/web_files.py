"""The runtimes of the web: npm packages of fixed versions, fetched when asked and compared with recorded hashes."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from distilledge.models.errors import MissingPackageError
from distilledge.targets import web

ENVIRONMENT, USUAL = "DISTILLEDGE_WEB", Path("~/.cache/distilledge/web")
COMMAND = "distilledge devices fetch-web"
FETCH_SECONDS = 600


@cache
def packages() -> dict[str, Any]:
    """Package -> ``version``, ``integrity`` (of its archive, as npm writes it), ``files`` -> sha256."""
    found: dict[str, Any] = json.loads((Path(web.__path__[0]) / "packages.json").read_text(encoding="utf-8"))
    return found


def versions() -> dict[str, str]:
    return {name: str(package["version"]) for name, package in packages().items()}


def folder() -> Path:
    """``DISTILLEDGE_WEB``, or a folder of the user's cache."""
    return Path(os.environ.get(ENVIRONMENT) or USUAL).expanduser()


def files() -> dict[str, Path]:
    """``PACKAGE/PATH`` -> file, each compared with its hash. Raises ``MissingPackageError`` where one is not there."""
    found = {}
    for name, package in packages().items():
        for path, sha256 in package["files"].items():
            place = folder() / name / path
            if not place.is_file():
                what = f"the runtimes of the web are not here: {name}/{path} is missing in {folder()}"
                raise MissingPackageError("E4060", what, COMMAND)
            if hashlib.sha256(place.read_bytes()).hexdigest() != sha256:
                what = f"{place} is not that of {name} {package['version']}"
                raise MissingPackageError("E4061", what, f"fetch it again: {COMMAND}")
            found[f"{name}/{path}"] = place
    return found


def fetch(archives: Path | None = None) -> Path:
    """Fill ``folder()`` by ``npm pack``, or from ``archives``, a folder of what it made elsewhere; return the folder.

    Nothing that a package brings is run. Raises ``MissingPackageError``.
    """
    if archives is None and shutil.which("npm") is None:
        hint = "install npm, or run `npm pack` elsewhere and give the folder: --archives"
        raise MissingPackageError("E4062", "no npm on this machine to fetch the runtimes of the web", hint)
    target = folder()
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=target) as temporary:
        for name, package in packages().items():
            archive = _archive(name, package["version"], archives) if archives else _packed(name, package, temporary)
            _check(archive, name, package)
            _take(archive, package, Path(temporary) / name)
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(target / name, ignore_errors=True)
            (Path(temporary) / name).rename(target / name)
    files()
    return target


def archive_name(name: str, version: str) -> str:
    """As npm calls it."""
    return f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"


def _archive(name: str, version: str, archives: Path) -> Path:
    return archives / archive_name(name, version)


def _packed(name: str, package: dict[str, Any], into: str) -> Path:
    """By npm's own configuration: its registry, proxy and cache are the user's."""
    wanted = f"{name}@{package['version']}"
    command = ["npm", "pack", "--ignore-scripts", "--loglevel=error", "--pack-destination", into, wanted]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_SECONDS, cwd=into)
        said = [line for line in done.stderr.splitlines() if line.strip()] if done.returncode else []
    except subprocess.TimeoutExpired:
        said = [f"no answer for {FETCH_SECONDS} s"]
    path = _archive(name, package["version"], Path(into))
    if said or not path.is_file():
        reason = "; ".join(said[:2]) or "it wrote no archive"
        raise MissingPackageError("E4063", f"npm could not fetch {name}: {reason}", "see: npm config get registry")
    return path


def _check(archive: Path, name: str, package: dict[str, Any]) -> None:
    if not archive.is_file():
        what = f"no archive of {name} {package['version']}: {archive}"
        raise MissingPackageError("E4067", what, f"npm pack {name}@{package['version']}")
    kind, _, expected = package["integrity"].partition("-")
    if base64.b64encode(hashlib.new(kind, archive.read_bytes()).digest()).decode() != expected:
        what = f"{archive.name} is not what was published as {name} {package['version']}"
        raise MissingPackageError("E4068", what, "ask whoever runs the npm registry that you use")


def _take(archive: Path, package: dict[str, Any], into: Path) -> None:
    """The few files that are needed, by their exact names."""
    with tarfile.open(archive) as tar:
        for path in package["files"]:
            member = tar.extractfile(f"package/{path}")
            assert member is not None, path
            place = into / path
            place.parent.mkdir(parents=True, exist_ok=True)
            with place.open("wb") as file:
                shutil.copyfileobj(member, file)
