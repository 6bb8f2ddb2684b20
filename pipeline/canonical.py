"""Canonical JSON, and the difference of two inputs in words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel


def canonical_json(obj: object) -> bytes:
    """UTF-8 JSON with sorted keys and no spaces: equal values give equal bytes, whatever the order of their keys.

    Pydantic models are written by alias. Raises ``ValueError`` for NaN, inf and text that is not Unicode, ``TypeError``
    for keys that are not text (``1`` and ``"1"`` would collide) and for anything that JSON does not know.
    """
    text = json.dumps(plain(obj), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def plain(obj: object) -> Any:
    """The same value in JSON's own types: dict, list, str, int, float, bool, None."""
    if isinstance(obj, BaseModel):
        return plain(obj.model_dump(mode="json", by_alias=True))
    if isinstance(obj, Mapping):
        odd = [key for key in obj if not isinstance(key, str)]
        if odd:
            raise TypeError(f"a key that is not text: {odd[0]!r}")
        return {key: plain(item) for key, item in obj.items()}
    if isinstance(obj, list | tuple):
        return [plain(item) for item in obj]
    if obj is None or isinstance(obj, str | int | float):
        return obj
    raise TypeError(f"JSON does not know {type(obj).__name__}: {obj!r}")


def explain(stage: str, inputs: Mapping[str, Any], previous: Mapping[str, Any] | None, *, limit: int = 3) -> str:
    """Why a stage runs: ``never built``, ``student.training.epochs 4 -> 6``, ``data_hash changed``, ``code changed``.

    ``previous`` are the inputs of an earlier build. More than ``limit`` differences are counted. Equal inputs mean that
    the stage's own version moved.
    """
    if previous is None:
        return "never built"
    lines = differences(inputs, previous)
    if not lines:
        return f"code of stage {stage} changed"
    return "; ".join(lines[:limit]) + (f"; and {len(lines) - limit} more" if len(lines) > limit else "")


def differences(inputs: Mapping[str, Any], previous: Mapping[str, Any]) -> list[str]:
    """Every place where two inputs differ, in words, in the order of their sorted keys."""
    return _differences(plain(inputs), plain(previous), "")


def _differences(now: Any, before: Any, path: str) -> list[str]:
    if isinstance(now, dict) and isinstance(before, dict):
        lines = []
        for key in sorted(now.keys() | before.keys()):
            name = f"{path}.{key}" if path else key
            if key not in before:
                lines.append(f"{name} is new")
            elif key not in now:
                lines.append(f"{name} is gone")
            else:
                lines += _differences(now[key], before[key], name)
        return lines
    if isinstance(now, list) and isinstance(before, list) and len(now) == len(before):
        pairs = enumerate(zip(now, before, strict=True))
        return [line for i, (a, b) in pairs for line in _differences(a, b, f"{path}.{i}")]
    if json.dumps(now, sort_keys=True) == json.dumps(before, sort_keys=True):
        return []
    return [_change(path, now, before)]


def _change(path: str, now: Any, before: Any) -> str:
    texts = [json.dumps(x, ensure_ascii=False) for x in (before, now)]
    if isinstance(now, Sequence | dict) and any(len(t) > 40 or _is_hash(t) for t in texts):
        return f"{path.replace('_', ' ')} changed"
    return f"{path} {texts[0]} -> {texts[1]}"


def _is_hash(text: str) -> bool:
    return len(text) >= 34 and all(c in '0123456789abcdef"' for c in text)
