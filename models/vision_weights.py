"""Weights of image models: reading a file, refusing bad ones, fitting them to an architecture."""

from __future__ import annotations

import hashlib
import inspect
import json
import pickle
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from distilledge.models.errors import RejectedError
from distilledge.models.vision_names import head_names

State = dict[str, Tensor]
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".tar")
CONVERT = "convert it: safetensors.torch.save_file(model.state_dict(), 'model.safetensors')"


@dataclass(frozen=True)
class Loaded:
    """What came of a weights file."""

    sha256: str
    head: Literal["kept", "new"]
    """``new``: the file has no head or one for other classes; the model's own is freshly initialised."""
    note: str
    """One line for the log."""


def load_weights(model: nn.Module, path: Path, *, trust_pickle: bool = False) -> Loaded:
    """Copy the tensors of ``path`` into ``model``; every tensor must fit, only the head may differ.

    Position embeddings and relative tables of transformers are resampled to the model's grid by timm's own filter.
    Raises ``RejectedError`` for a file that is not what its name says (B29), a pickle without ``trust_pickle`` (B32),
    NaN or Inf, and missing, unexpected, duplicate or misshapen tensors, by name (B34).
    """
    state, sha256 = read_weights(path, trust_pickle=trust_pickle)
    _check_finite(state, path)
    state = _filtered(model, state, path)
    body, kept = _split_head(model, state)
    _check_fit(model, body, path)
    model.load_state_dict(body, strict=False)
    head: Literal["kept", "new"] = "kept" if kept else "new"
    note = f"{path.name}: {len(body)} tensors" + ("" if kept else "; its head does not fit the classes: new head")
    return Loaded(sha256, head, note)


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


def _check_finite(state: State, path: Path) -> None:
    bad = [name for name, t in state.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]
    if bad:
        raise RejectedError(
            "E3406", f"NaN or Inf in {_listed(bad)}: {path}", "take an earlier checkpoint; this training diverged"
        )


def _filtered(model: nn.Module, state: State, path: Path) -> State:
    """timm's ``checkpoint_filter_fn`` of the model's module: renames old keys, resamples position embeddings."""
    fit: Callable[..., State] | None = vars(sys.modules[type(model).__module__]).get("checkpoint_filter_fn")
    if fit is None:
        return state
    arguments = (state, model)[: len(inspect.signature(fit).parameters)]
    try:
        return dict(fit(*arguments))
    except (AttributeError, IndexError, KeyError, RuntimeError, ValueError) as error:
        raise RejectedError(
            "E3407", f"the tensors do not fit the model ({error}): {path}", "check that the file belongs to the model"
        ) from error


def _split_head(model: nn.Module, state: State) -> tuple[State, bool]:
    """The tensors to load, and whether the file's head is among them (all of it there, the same shapes)."""
    prefixes = tuple(f"{name}." for name in head_names(model))
    own = {k: v for k, v in model.state_dict().items() if k.startswith(prefixes)} if prefixes else {}
    if all(k in state and state[k].shape == v.shape for k, v in own.items()):
        return state, True
    others = {k for k, v in own.items() if k not in state or state[k].shape[1:] == v.shape[1:]}
    return {k: v for k, v in state.items() if k not in others}, False


def _check_fit(model: nn.Module, state: State, path: Path) -> None:
    """Names, shapes and kinds of all tensors but the head's and BatchNorm's batch counters."""
    own = model.state_dict()
    prefixes = tuple(f"{name}." for name in head_names(model))
    needed = [k for k in own if not k.endswith("num_batches_tracked") and not (prefixes and k.startswith(prefixes))]
    faults = [
        ("missing", [k for k in needed if k not in state]),
        ("unexpected", [k for k in state if k not in own]),
        ("misshapen", [_shapes(k, v, own[k]) for k, v in state.items() if k in own and v.shape != own[k].shape]),
        (
            "not floating-point",
            [k for k, v in state.items() if k in own and own[k].is_floating_point() > v.is_floating_point()],
        ),
    ]
    found = "; ".join(f"{what}: {_listed(names)}" for what, names in faults if names)
    if found:
        raise RejectedError(
            "E3408", f"the tensors do not fit the model ({found}): {path}", "check that the file belongs to the model"
        )


def _shapes(name: str, theirs: Tensor, own: Tensor) -> str:
    return f"{name} {tuple(theirs.shape)} instead of {tuple(own.shape)}"


def _listed(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
