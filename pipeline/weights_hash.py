"""The fingerprint of a file of weights, or of the folder that a text model is read from."""

from __future__ import annotations

import hashlib
from pathlib import Path

from distilledge.models.errors import RejectedError
from distilledge.pipeline.data.listing import expand


def file_hash(path: Path) -> str:
    """sha256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def weights_hash(weights: str) -> str:
    """sha256; ``hub`` and ``none`` are themselves. Raises ``RejectedError`` where there is no such file."""
    if weights in ("hub", "none"):
        return weights
    path = Path(expand(weights))
    if path.is_dir():  # of transformers: what a network and its tokenizer are read from
        names = sorted(p for p in path.iterdir() if p.suffix in (".json", ".safetensors", ".txt", ".bin", ".model"))
        return hashlib.sha256("".join(f"{p.name} {file_hash(p)}\n" for p in names).encode()).hexdigest()
    if not path.is_file():
        raise RejectedError(
            "E3090", f"weights file not found: {weights}", "set `weights` to a .safetensors file, `hub` or `none`"
        )
    return file_hash(path)
