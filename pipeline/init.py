"""``init``: look at a data folder and draft a recipe for it, each choice with its reason beside it."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from distilledge.models.errors import RejectedError
from distilledge.pipeline.data.describe import describe
from distilledge.pipeline.data.listing import counted, shown
from distilledge.pipeline.recipe import Recipe
from distilledge.pipeline.recipe_file import recipe_to_yaml, schema_path
from distilledge.pipeline.recipe_yaml import parse

UNBALANCED = 3.0
"""Largest class over smallest, from which accuracy hides the small classes."""
FEW = 50
"""Pictures of a class below which its test result has a wide interval."""
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
    found = describe(place)
    text = TEMPLATE.format(**_choices(place, found))
    if explain:
        text = recipe_to_yaml(Recipe.model_validate(parse(text, "draft").data), comments=True)
    return _head(place, found) + text


def _place(path: Path) -> str:
    """As it stands in the recipe: absolute, so that the recipe can be moved; ``$NAME`` is for the run to expand."""
    text = str(path)
    if UNWRITABLE.search(text):
        raise RejectedError("E3501", f"a recipe cannot name this path: {shown(text)}", "rename the folder")
    return text if "$" in text or text == "synthetic" else str(path.expanduser().absolute())


def _head(place: str, found: dict[str, Any]) -> str:
    smallest, largest = ("x".join(map(str, found["sizes"].get(k, ["?"]))) for k in ("min", "max"))
    pixels = smallest if smallest == largest else f"{smallest} to {largest}"
    lines = [
        f"yaml-language-server: $schema={schema_path()}",
        f"Drafted by `distilledge init {shown(place)}`. Change what you know better; --explain lists every field.",
        f"Data:   {found['pictures']} pictures in {len(found['classes'])} classes ({found['format']}), {pixels} pixels",
        f"        {counted(_totals(found))}",
        "Run:    distilledge plan THIS.yaml, then distilledge run THIS.yaml (--smoke for a first look)",
    ]
    few = {name: n for name, n in _totals(found).items() if n < FEW}
    lines += [f"Note:   few pictures of {counted(few)}: expect wide intervals"] if few else []
    return "".join(f"# {line}\n" for line in lines)


def _choices(place: str, found: dict[str, Any]) -> dict[str, str | int]:
    """What stands in the template's braces."""
    train, size = _train_pictures(found), _student_size(found)
    epochs = {role: min(most, max(least, math.ceil(seen / train))) for role, (seen, least, most) in SEEN.items()}
    unbalanced = _imbalance(found) >= UNBALANCED
    return {
        "name": json.dumps(_name(place)),
        "metric": _metric(found),
        "path": json.dumps(place, ensure_ascii=False),
        "columns": f"  columns: {json.dumps(found['columns'], ensure_ascii=False)}\n" if found["columns"] else "",
        "groups": _groups(found),
        "splits": _splits(found),
        "calibration": min(200, train),
        "input": _input(found),
        "teacher_epochs": epochs["teacher"],
        "student_epochs": epochs["student"],
        "seen": epochs["student"] * train,
        "batch": 32 if train >= 320 else 8,
        "sampling": "    sampling: balanced  # each class is drawn equally often\n" if unbalanced else "",
        "size": size,
        "side": f"{_shorter_side(found)} pixels",
    }


def _totals(found: dict[str, Any]) -> dict[str, int]:
    """Pictures of each class over all splits, without the unlabelled."""
    return {name: sum(split.get(name, 0) for split in found["counts"].values()) for name in found["classes"]}


def _imbalance(found: dict[str, Any]) -> float:
    totals = _totals(found).values()
    return max(totals) / max(1, min(totals))


def _metric(found: dict[str, Any]) -> str:
    if (ratio := _imbalance(found)) < UNBALANCED:
        return "accuracy"
    return f"balanced_accuracy  # the largest class has {ratio:.0f} times the pictures of the smallest"


def _train_pictures(found: dict[str, Any]) -> int:
    """Pictures that training will see, before a missing validation part is cut from them."""
    parts = found["counts"]
    given = sum(parts["train"].values()) if "train" in parts else 0
    return max(1, given or round(0.7 * found["pictures"]))


def _groups(found: dict[str, Any]) -> str:
    if not 1 < found["groups"] < found["pictures"]:
        return ""
    return f"  # {found['groups']} groups found: pictures of one group never straddle two splits\n"


def _splits(found: dict[str, Any]) -> str:
    given = [name for name in found["splits"] if name != "unlabelled"]
    if "train" in given and "test" in given:
        return f"  # splits are given by the data: {', '.join(given)}\n"
    return "  splits: {train: 0.7, validation: 0.15, test: 0.15}  # the data brings no split of its own\n"


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


def _name(place: str) -> str:
    """Of the folder, with what a recipe's name may hold."""
    stem = Path(place).stem if Path(place).suffix.lower() in (".csv", ".jsonl") else Path(place).name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:64] or "recipe"
