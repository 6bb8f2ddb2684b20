"""Weights of image models: fitting a file to an architecture."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import nn

from distilledge.models.errors import RejectedError
from distilledge.models.vision_names import head_names
from distilledge.models.weights import State, check_finite, check_fit, read_weights


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
    check_finite(state, path)
    state = _filtered(model, state, path)
    body, kept = _split_head(model, state)
    _check_fit(model, body, path)
    model.load_state_dict(body, strict=False)
    head: Literal["kept", "new"] = "kept" if kept else "new"
    note = f"{path.name}: {len(body)} tensors" + ("" if kept else "; its head does not fit the classes: new head")
    return Loaded(sha256, head, note)


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
    check_fit(own, needed, state, path)
