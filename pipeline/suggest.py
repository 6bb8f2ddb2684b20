"""``plan --suggest``: which strategy fits the data, in words, with the lines for the recipe."""

from __future__ import annotations

from typing import Any, NamedTuple

from distilledge.pipeline.recipe import Columns, Recipe
from distilledge.pipeline.recipe_strategy import ARGUMENTS

FEW, MANY = 20, 100
"""Training samples of the smallest class, below and above which there are few and many. Measured: docs/transfer.md."""
SIMILAR = 0.22
"""Distance of BatchNorm statistics below which pictures are like the source. Measured: docs/choosing.md."""
SEPARATE = 0.8
"""Balanced share of samples whose nearest neighbours are of their class, from which features separate classes."""


class Facts(NamedTuple):
    """What is known of the data and the weights; None: not looked at, ``unknown`` says why."""

    task: str
    samples: int
    """Labelled ones to learn from."""
    unlabelled: int
    classes: int
    per_class: int
    """To learn from, of the smallest class."""
    label_columns: tuple[str, ...]
    """Columns that could each be a task."""
    target: str
    """A place of pictures of another domain; empty: none."""
    keep_source: bool
    pretrained: bool
    attention: bool = False
    """Whether the teacher is a transformer."""
    distance: float | None = None
    separation: float | None = None
    chance: float | None = None
    """Share of the largest class."""
    unknown: tuple[str, ...] = ()


class Proposal(NamedTuple):
    strategy: str
    reason: str
    lines: str
    """YAML for the recipe; empty where this version cannot do it."""
    also: tuple[str, ...] = ()
    """What else to think of."""


def propose(facts: Facts) -> Proposal:
    """The first row of the table that fits."""
    for row in ROWS:
        found = row(facts)
        if found is not None:
            return found._replace(also=(*found.also, *_also(facts)))
    raise AssertionError("the last row fits everything")


def _no_labels(facts: Facts) -> Proposal | None:
    if facts.samples:
        return None
    if facts.task != "image-classification":
        return Proposal("label some", "no text has a label, and there is no zero-shot teacher of texts", "")
    why = f"none of {facts.unlabelled} pictures has a label: a CLIP teacher labels them from the classes' names"
    lines = "teacher:\n  model: clip:openai/clip-vit-base-patch32\n  weights: hub\n  strategy: zero-shot\n"
    return _if_known("zero-shot", why, lines)


def _several(facts: Facts) -> Proposal | None:
    if len(facts.label_columns) < 2:
        return None
    names = ", ".join(facts.label_columns)
    why = f"several label columns ({names}): one network with a head for each shares what they have in common"
    lines = "data:\n  columns:\n    labels: {" + ", ".join(f"{_key(c)}: {c}" for c in facts.label_columns) + "}\n"
    if "labels" not in Columns.model_fields or facts.task != "image-classification":
        return None
    return Proposal("multi-task", why, lines, (f"one recipe for each of {names} is the comparison",))


def _other_domain(facts: Facts) -> Proposal | None:
    if not facts.target:
        return None
    why = "labels are of one domain, the model will run in another: what differs between the two is to be unlearned"
    lines = f"data:\n  target: {{path: {facts.target}}}\nteacher:\n  strategy: mmd\n"
    others = "dann and coral are the others: compare on the target"
    if facts.task == "image-classification":
        others = f"adabn costs no training; {others}"
    return _if_known("mmd", why, lines, others)


def _keep(facts: Facts) -> Proposal | None:
    if not (facts.keep_source and facts.pretrained):
        return None
    if facts.attention:
        why = "the source must be kept: adapters of low rank change little of it, and can be left out again"
        return Proposal("lora", why, _lines("lora", {"source": "PATH/TO/SOURCE"}, 1e-4))
    why = "the source must be kept: what it needs most is held where it was (EWC), and BatchNorm keeps its statistics"
    lines = _lines("ewc", {"source": "PATH/TO/SOURCE"}, 1e-3) + "    batch_norm: frozen\n"
    return Proposal("ewc", why, lines, ("progressive is the choice where there is no source data",))


def _from_scratch(facts: Facts) -> Proposal | None:
    if facts.pretrained:
        return None
    why = (
        "the teacher has no pretrained weights, so there is nothing to transfer: all layers are trained from the start"
    )
    return Proposal("fine-tune", why, _lines("fine-tune", {}, 1e-3), ("set teacher.weights to pretrained ones",))


def _few(facts: Facts) -> Proposal | None:
    if facts.per_class >= FEW:
        return None
    size = f"{facts.per_class} samples of the smallest class"
    if _fits(facts) is False:
        why = (
            f"{size}, and {_distance_words(facts)}: the top layers must change, the lower ones have too little to go by"
        )
        return Proposal("fine-tune", why, _lines("fine-tune", {"layers": 2}, _rate(facts) / 3))
    if facts.task in ("token-classification", "question-answering"):
        why = f"{size}: low-rank adapters have little to overfit with"
        return Proposal("lora", why, _lines("lora", {}, 1e-3))
    why = f"{size}" + (f", and {_distance_words(facts)}" if _fits(facts) else "")
    why += ": a new head on frozen features has little to overfit with, and takes seconds"
    also = ("fine-tune with layers: 2 was better where it was measured (docs/transfer.md): try both",)
    return Proposal("feature-extraction", why, _lines("feature-extraction", {}, 1e-2), also)


def _moderate(facts: Facts) -> Proposal | None:
    if facts.per_class >= MANY:
        return None
    size = f"{facts.per_class} samples of the smallest class"
    if _fits(facts) is False:
        why = f"{size}, and {_distance_words(facts)}: the features themselves must change"
        return Proposal("fine-tune", why, _lines("fine-tune", {}, _rate(facts)))
    why = f"{size}: enough for the top layers, while the lower ones, which are general, stay"
    return Proposal("fine-tune", why, _lines("fine-tune", {"layers": 2}, _rate(facts)))


def _many(facts: Facts) -> Proposal | None:
    why = f"{facts.per_class} samples of the smallest class are enough to fine-tune all layers"
    return Proposal("fine-tune", why, _lines("fine-tune", {}, _rate(facts)))


ROWS = (_no_labels, _several, _other_domain, _keep, _from_scratch, _few, _moderate, _many)
"""In the order they are asked; the first that fits is proposed."""


def _fits(facts: Facts) -> bool | None:
    """Whether the weights' features are made for such data: by their distance, else by how they separate classes."""
    separate = facts.separation is not None and facts.separation >= SEPARATE
    if facts.distance is not None:
        return facts.distance < SIMILAR or separate
    return None if facts.separation is None else separate


def _distance_words(facts: Facts) -> str:
    parts = []
    if facts.distance is not None:
        like = "like" if facts.distance < SIMILAR else "unlike"
        parts.append(f"{like} the source of the weights (distance {facts.distance:.2f}, alike below {SIMILAR})")
    if facts.separation is not None:
        parts.append(f"{100 * facts.separation:.0f} % have neighbours of their class in frozen features")
    return ", and ".join(parts)


def _also(facts: Facts) -> tuple[str, ...]:
    made = []
    if facts.unlabelled and facts.samples:
        made.append(f"{facts.unlabelled} samples without labels: give them to the student as distill.unlabelled")
    if facts.chance is not None and facts.separation is not None and facts.separation < 1.2 / max(1, facts.classes):
        made.append("frozen features hardly tell the classes apart: other weights may be worth more than a strategy")
    if facts.pretrained:
        made.append("teacher.check_transfer: true says what the weights were worth; `distilledge lr-find` finds the lr")
    return tuple(made)


def _rate(facts: Facts) -> float:
    """A peak learning rate to fine-tune from; ``lr-find`` knows better."""
    return 1e-4 if facts.attention else 1e-3


def _lines(name: str, arguments: dict[str, Any], lr: float) -> str:
    given = ", ".join(f"{key}: {value}" for key, value in arguments.items())
    chosen = f"{{name: {name}, arguments: {{{given}}}}}" if given else name
    return f"teacher:\n  strategy: {chosen}\n  training:\n    lr: {lr:.0e}\n"


def _if_known(name: str, why: str, lines: str, *also: str) -> Proposal:
    if name in ARGUMENTS:
        return Proposal(name, why, lines, also)
    return Proposal(name, why, "", ("this version of distilledge does not have the strategy",))


def _key(column: str) -> str:
    kept = "".join(c if c.isalnum() else "_" for c in column)[:32]
    return kept if kept[:1].isalpha() else f"t_{kept}"[:32]


def keeps_source(recipe: Recipe) -> bool:
    """Whether the recipe names a source."""
    return bool(recipe.teacher.strategy.arguments.get("source"))
