"""``init``: look at a data folder and draft a recipe for it, each choice with its reason beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distilledge.models.errors import RejectedError
from distilledge.pipeline.data.describe import describe
from distilledge.pipeline.data.listing import counted, shown
from distilledge.pipeline.data.text_describe import describe_text, is_text
from distilledge.pipeline.init_counts import (
    FEW,
    UNBALANCED,
    epochs,
    imbalance,
    metric,
    recipe_name,
    split_line,
    totals,
    train_share,
)
from distilledge.pipeline.init_text import TEXT_TEMPLATE, text_choices, text_head
from distilledge.pipeline.recipe import Recipe
from distilledge.pipeline.recipe_file import recipe_to_yaml, schema_path
from distilledge.pipeline.recipe_yaml import parse

LONG = 2.0
"""Longer over shorter side, from which stretching to a square distorts much."""
SIZES = ((192, 128), (384, 160))
"""(shorter side below, student's pixels); 224 for larger pictures."""
SEEN = {"teacher": (8_000, 2, 20), "student": (16_000, 6, 60)}
"""Pictures to see in training, and the fewest and most epochs that this may come to."""
UNWRITABLE = re.compile("[\x7f-\x9f\ud800-\udfff\u2028\u2029\ufeff\ufffe\uffff]")
"""Characters that YAML cannot hold: bytes that are not UTF-8, and some controls."""
TEMPLATE = """\
schema: 1
name: {name}
metric: {metric}
data:
  path: {path}
{columns}{groups}{splits}  calibration: {calibration}  # pictures from train by which int8 ranges are set
teacher:
  model: deit_tiny_patch16_224  # `distilledge models` lists others
  weights: hub  # fetched when the run starts; or a .safetensors file, or none
  input: {{size: 224, interpolation: bicubic{input}}}
  training:
    epochs: {teacher_epochs}
    batch_size: {batch}
    lr: 2e-4
    layer_decay: 0.75
{sampling}    augment: {{crop_scale: [0.6, 1.0]}}  # add vertical_flip: 0.5 where up and down mean nothing
student:
  model: tf_efficientnet_lite0
  weights: hub
  # The pictures' shorter side is {side} (median). Larger where defects are small, smaller where time is short.
  input: {{size: {size}, interpolation: bicubic{input}}}
  training:
    epochs: {student_epochs}  # about {seen} pictures seen
    batch_size: {batch}
    lr: 1e-3
    ema: 0.98
{sampling}    augment: {{crop_scale: [0.6, 1.0]}}
distill:
  losses: [{{name: kl, weight: 1.0, arguments: {{temperature: 2.0}}}}]
  hard_weight: 0.5
budgets:
  default: {{max_drop_points: 1.0, max_drop_points_fp32: 0.5}}  # add max_latency_ms, max_size_mb, max_peak_rss_mb
gate: {{on_fail: stop}}  # report: only say so
smoke:  # `--smoke`: minutes instead of hours, for a first look
  teacher.training.epochs: 1
  student.training.epochs: 1
  distill.control: false
  measure.quick: true
  verify.samples: 16
  verify.min_agreement_int8: 0.0
  verify.min_cosine_int8: 0.5
"""


def draft(path: Path, *, explain: bool = False) -> str:
    """A recipe that ``load_recipe`` takes. ``explain``: every field with its meaning and range, not only those chosen.

    Raises ``RejectedError`` (exit 3) where no run could read the data.
    """
    place = _place(path)
    if is_text(place):
        texts = describe_text(place)
        about, text = text_head(texts), TEXT_TEMPLATE.format(**text_choices(place, texts))
    else:
        found = describe(place)
        about, text = _about(found), TEMPLATE.format(**_choices(place, found))
    if explain:
        text = recipe_to_yaml(Recipe.model_validate(parse(text, "draft").data), comments=True)
    return _head(place, about) + text


def _place(path: Path) -> str:
    """As it stands in the recipe: absolute, so that the recipe can be moved; ``$NAME`` is for the run to expand."""
    text = str(path)
    if UNWRITABLE.search(text):
        raise RejectedError("E3501", f"a recipe cannot name this path: {shown(text)}", "rename the folder")
    return text if "$" in text or text == "synthetic" else str(path.expanduser().absolute())


def _head(place: str, about: Sequence[str]) -> str:
    lines = [
        f"yaml-language-server: $schema={schema_path()}",
        f"Drafted by `distilledge init {shown(place)}`. Change what you know better; --explain lists every field.",
        *(line for line in about if not line.startswith("Note:")),
        "Run:    distilledge plan THIS.yaml, then distilledge run THIS.yaml (--smoke for a first look)",
        *(line for line in about if line.startswith("Note:")),
    ]
    return "".join(f"# {line}\n" for line in lines)


def _about(found: dict[str, Any]) -> list[str]:
    smallest, largest = ("x".join(map(str, found["sizes"].get(k, ["?"]))) for k in ("min", "max"))
    pixels = smallest if smallest == largest else f"{smallest} to {largest}"
    of = totals(found["counts"], found["classes"])
    few = {name: n for name, n in of.items() if n < FEW}
    return [
        f"Data:   {found['pictures']} pictures in {len(found['classes'])} classes ({found['format']}), {pixels} pixels",
        f"        {counted(of)}",
        *([f"Note:   few pictures of {counted(few)}: expect wide intervals"] if few else []),
    ]


def _choices(place: str, found: dict[str, Any]) -> dict[str, str | int]:
    """What stands in the template's braces."""
    in_train = sum(found["counts"].get("train", {}).values())
    train, size = train_share(in_train, found["pictures"]), _student_size(found)
    rounds = {role: epochs(seen, least, most, train) for role, (seen, least, most) in SEEN.items()}
    of = totals(found["counts"], found["classes"])
    unbalanced = imbalance(of) >= UNBALANCED
    return {
        "name": json.dumps(recipe_name(place, (".csv", ".jsonl"))),
        "metric": metric(of, "pictures"),
        "path": json.dumps(place, ensure_ascii=False),
        "columns": f"  columns: {json.dumps(found['columns'], ensure_ascii=False)}\n" if found["columns"] else "",
        "groups": _groups(found),
        "splits": split_line(found["splits"]),
        "calibration": min(200, train),
        "input": _input(found),
        "teacher_epochs": rounds["teacher"],
        "student_epochs": rounds["student"],
        "seen": rounds["student"] * train,
        "batch": 32 if train >= 320 else 8,
        "sampling": "    sampling: balanced  # each class is drawn equally often\n" if unbalanced else "",
        "size": size,
        "side": f"{_shorter_side(found)} pixels",
    }


def _groups(found: dict[str, Any]) -> str:
    if not 1 < found["groups"] < found["pictures"]:
        return ""
    return f"  # {found['groups']} groups found: pictures of one group never straddle two splits\n"


def _shorter_side(found: dict[str, Any]) -> int:
    return int(min(found["sizes"].get("median", [128])))


def _student_size(found: dict[str, Any]) -> int:
    return next((size for below, size in SIZES if _shorter_side(found) < below), 224)


def _input(found: dict[str, Any]) -> str:
    """Whatever both inputs need beyond the size: letterbox for long pictures, all bits of 16-bit files."""
    sides = found["sizes"].get("median", [1, 1])
    parts = ["resize: letterbox"] if max(sides) >= LONG * max(1, min(sides)) else []
    parts += ["bit_depth: 16"] if any(mode.startswith(("I", "F")) for mode in found["modes"]) else []
    return "".join(f", {part}" for part in parts)
