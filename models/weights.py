"""Files of weights: reading them, refusing bad ones, naming what does not fit."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distilledge.models.errors import RejectedError

State = dict[str, Tensor]
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".tar")
CONVERT = "convert it: safetensors.torch.save_file(model.state_dict(), 'model.safetensors')"


def read_weights(path: Path, *, trust_pickle: bool = False) -> tuple[State, str]:
    """All tensors of a file by name, and the sha256 of the very bytes they were read from."""
    if not path.is_file():
        raise RejectedError("E3401", f"no weights file: {path}", "give a .safetensors file, `hub` or `none`")
    if path.suffix in PICKLES:
        return _read_pickle(path, trust_pickle=trust_pickle)
    if path.suffix != ".safetensors":
        raise RejectedError("E3402", f"unknown kind of weights file: {path}", "give a .safetensors file")
    return _read_safetensors(path)


def _read_safetensors(path: Path) -> tuple[State, str]:
    import safetensors
    from safetensors.torch import load

    data = path.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    reason = _header_fault(data)
    if reason is None:
        try:
            return load(data), sha256
        except (safetensors.SafetensorError, KeyError, ValueError) as error:
            reason = str(error)
    raise RejectedError(
        "E3403",
        f"not a valid safetensors file ({reason}): {path} ({len(data)} bytes, sha256 {sha256})",
        "fetch the file again and compare its size and sha256 with the publisher's",
    )


def _header_fault(data: bytes) -> str | None:
    """Why this cannot be a safetensors file, or None: 8 bytes of length, then JSON, no name twice."""
    if len(data) < 8:
        return "empty" if not data else "truncated"
    if data.lstrip()[:1] == b"<":
        return "it is HTML or XML"
    if data[:2] in (b"PK", b"\x80\x02", b"\x80\x04"):
        return "it is a pickle"
    length = int.from_bytes(data[:8], "little")
    if length > len(data) - 8:
        return "truncated"
    try:
        json.loads(data[8 : 8 + length], object_pairs_hook=_unique)
    except ValueError as error:
        return str(error)
    return None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen = dict(pairs)
    if len(seen) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError("duplicate tensor " + ", ".join(sorted({n for n in names if names.count(n) > 1})))
    return seen


def _read_pickle(path: Path, *, trust_pickle: bool) -> tuple[State, str]:
    """A state dict, bare or under ``state_dict``/``model``. Even a trusted file loads tensors only."""
    if not trust_pickle:
        raise RejectedError(
            "E3404",
            f"pickle files can run code when read: {path}",
            "give a .safetensors file, or set `trust_pickle: true` if you know who made it",
        )
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise RejectedError("E3405", f"not a file of tensors ({reason}): {path}", CONVERT) from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise RejectedError("E3405", f"not a file of tensors: {path}", CONVERT)
    return {str(k).removeprefix("module."): v for k, v in content.items()}, sha256


def check_finite(state: State, path: Path) -> None:
    bad = [name for name, t in state.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]
    if bad:
        raise RejectedError(
            "E3406", f"NaN or Inf in {listed(bad)}: {path}", "take an earlier checkpoint; this training diverged"
        )


def check_fit(own: State, needed: Collection[str], state: State, path: Path) -> None:
    """``state`` must have the names ``needed``, none that ``own`` lacks, and the shapes and kinds of ``own``."""
    faults = [
        ("missing", [k for k in needed if k not in state]),
        ("unexpected", [k for k in state if k not in own]),
        ("misshapen", [_shapes(k, v, own[k]) for k, v in state.items() if k in own and v.shape != own[k].shape]),
        (
            "not floating-point",
            [k for k, v in state.items() if k in own and own[k].is_floating_point() > v.is_floating_point()],
        ),
    ]
    found = "; ".join(f"{what}: {listed(names)}" for what, names in faults if names)
    if found:
        raise RejectedError(
            "E3408", f"the tensors do not fit the model ({found}): {path}", "check that the file belongs to the model"
        )


def _shapes(name: str, theirs: Tensor, own: Tensor) -> str:
    return f"{name} {tuple(theirs.shape)} instead of {tuple(own.shape)}"


def listed(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
