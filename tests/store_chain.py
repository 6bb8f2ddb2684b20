"""A chain of real store entries, one for each stage, that fault tests kill: ``python store_chain.py ROOT``.

Every stage writes the same bytes whenever it is built, so that an interrupted and repeated chain can be compared with
an undisturbed one. Each build is noted in ``ROOT.built``.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

from distilledge.models.base import Value
from distilledge.models.errors import DistilledgeError
from distilledge.pipeline.failpoints import STAGES, failpoint
from distilledge.pipeline.store import Store, Stored

SIZE = 20_000


class Made(Value):
    name: str
    sha256: str


def make(root: Path, stage: str, before: str, size: int = SIZE) -> Stored[Made]:
    def build(out: Path, partial: Path) -> Made:
        with Path(f"{root}.built").open("a") as log:
            log.write(f"{stage}\n")
        (partial / "checkpoint").write_text(stage)
        data = hashlib.shake_256(stage.encode()).digest(size)
        (out / "deep").mkdir()
        (out / "deep" / "weights.bin").write_bytes(data)
        (out / "curves.jsonl").write_text("{}\n")
        return Made(name=stage, sha256=hashlib.sha256(data).hexdigest())

    return Store(root).once(stage, 1, {"before": before, "lr": 1e-3}, Made, build)


def chain(root: Path, *, stages: tuple[str, ...] = STAGES, big: str = "", size: int = SIZE) -> dict[str, str]:
    """Run it; sha256 of every file but the manifests, which hold times. The stage ``big`` writes ``size`` bytes."""
    hashes, before = {}, ""
    for stage in stages:
        failpoint(f"{stage}.start")
        stored = make(root, stage, before, size if stage == big else SIZE)
        failpoint(f"{stage}.built")
        before = stored.fingerprint
        for path in sorted(stored.path.rglob("*")):
            if path.is_file() and path.name != "manifest.json":
                hashes[f"{stage}/{path.name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return hashes


def built(root: Path) -> list[str]:
    return Path(f"{root}.built").read_text().splitlines()


if __name__ == "__main__":
    try:
        chain(Path(sys.argv[1]), stages=tuple(os.environ.get("CHAIN_STAGES", ",".join(STAGES)).split(",")))
    except DistilledgeError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
