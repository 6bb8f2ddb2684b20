"""``init`` for texts: which task, which columns, how long; each choice with its reason beside it."""

from __future__ import annotations

import json
from typing import Any

from distilledge.pipeline.data.listing import counted, few, shown
from distilledge.pipeline.data.text_files import READERS
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
from distilledge.pipeline.recipe import METRICS

SEEN = {"teacher": (12_000, 3, 20), "student": (24_000, 6, 60)}
"""Texts to see in training, and the fewest and most epochs that this may come to."""
LISTED = 12
"""Classes that are listed by name."""
LONGEST = 512
"""Tokens that the drafted teacher knows positions for."""
TEXT_TEMPLATE = """\
schema: 1
name: {name}
task: {task}
metric: {metric}
data:
  path: {path}
{columns}{separator}{groups}{splits}{notes}  calibration: {calibration}  # texts from train by which int8 ranges are set
teacher:
  model: sentence-transformers/all-MiniLM-L6-v2  # or any other encoder of the hub, or a directory
  weights: hub  # fetched when the run starts; none: from scratch
  text: {{max_length: {max_length}}}  # 99 % of the texts have at most about {tokens} tokens; longer ones are cut
  training:
    epochs: {teacher_epochs}
    batch_size: {batch}
    lr: 5e-5
{sampling}student:
  model: teacher  # every second layer of the teacher, with its weights
  text: {{max_length: {max_length}, layers: [0, 2, 4]}}
  training:
    epochs: {student_epochs}  # about {seen} texts seen
    batch_size: {batch}
    lr: 1e-4
{sampling}distill:
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


def text_choices(place: str, found: dict[str, Any]) -> dict[str, str | int]:
    """What stands in the template's braces. ``found``: of ``describe_text``."""
    every = sum(n for split, n in found["texts"].items() if split != "unlabelled")
    train = train_share(found["texts"].get("train", 0), every)
    of = totals(found["counts"], found["classes"])
    single = found["task"] == "text-classification"
    rounds = {role: epochs(seen, least, most, train) for role, (seen, least, most) in SEEN.items()}
    unbalanced = single and imbalance(of) >= UNBALANCED
    return {
        "name": json.dumps(recipe_name(place, tuple(READERS))),
        "task": found["task"],
        "metric": metric(of, "texts") if single else METRICS[found["task"]][0],
        "path": json.dumps(place, ensure_ascii=False),
        "columns": f"  columns: {json.dumps(found['columns'], ensure_ascii=False)}\n" if found["columns"] else "",
        "separator": _separator(found),
        "groups": _groups(found, every),
        "splits": split_line(found["splits"]),
        "notes": _notes(found),
        "calibration": min(200, train),
        "max_length": _max_length(found["tokens"]),
        "tokens": found["tokens"],
        "teacher_epochs": rounds["teacher"],
        "student_epochs": rounds["student"],
        "seen": rounds["student"] * train,
        "batch": 32 if train >= 320 else 8,
        "sampling": "    sampling: balanced  # each class is drawn equally often\n" if unbalanced else "",
    }


def text_head(found: dict[str, Any]) -> list[str]:
    """What the first comment says of the data."""
    of = totals(found["counts"], found["classes"])
    texts, units = sum(found["texts"].values()), "words" if found["task"] == "token-classification" else "texts"
    lines = [f"Data:   {texts} texts ({counted(found['texts'])}), taken for {found['task']}"]
    if found["task"] != "question-answering":
        each = counted(of) if len(of) <= LISTED else f"{min(of.values())} to {max(of.values())}"
        lines += [f"        {len(of)} classes, {units} of each: {each}"]
    rare = [f"{shown(name)} {n}" for name, n in of.items() if n < FEW]
    return lines + ([f"Note:   few {units} of {few(rare, LISTED)}: expect wide intervals"] if rare else [])


def _separator(found: dict[str, Any]) -> str:
    return f"  label_separator: {json.dumps(found['separator'])}\n" if found["separator"] != "|" else ""


def _groups(found: dict[str, Any], every: int) -> str:
    if not 1 < found["groups"] < every:
        return ""
    return f"  # {found['groups']} groups found: texts of one group never straddle two splits\n"


def _notes(found: dict[str, Any]) -> str:
    """What the audit will stop at, and the setting that lets it go on; the choice is the user's."""
    notes = []
    if found["conflicts"]:
        notes.append(f"{found['conflicts']} equal texts carry different labels: mend them, or on_conflict: quarantine")
    if found["twice"]:
        notes.append(f"{found['twice']} texts are in two splits: remove them, or allow_leakage: true")
    return "".join(f"  # {note}\n" for note in notes)


def _max_length(tokens: int) -> int:
    """The next power of two, which is a bucket of TFLite files too."""
    return min(LONGEST, max(16, 1 << (tokens - 1).bit_length()))
