"""What CLIP is asked: templates, prompts of classes, and how a recipe names such a model. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

PREFIX = "clip"
TEMPLATES: dict[str, tuple[str, ...]] = {
    "single": ("a photo of a {}.",),
    "ensemble": (
        "itap of a {}.",
        "a bad photo of the {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    ),
    "inspection": (
        "a close-up photo of {}.",
        "a grey photo of {} on a surface.",
        "a photo of a part with {}.",
        "an inspection photo showing {}.",
    ),
}
"""``ensemble``: the seven that CLIP's authors chose for ImageNet of their eighty; ``inspection``: ours, untested."""


def is_clip(model: str) -> bool:
    """Whether a recipe's model is ``clip:NAME`` or, with a directory of weights, ``clip``."""
    return model.partition(":")[0] == PREFIX


def hub_name(model: str) -> str:
    """What stands behind ``clip:``; empty where nothing does."""
    return model.partition(":")[2]


def prompts_of(classes: Sequence[str], templates: Sequence[str], names: Mapping[str, str]) -> dict[str, list[str]]:
    """Prompts by class. A class without a name of its own is called as it is written, ``_`` and ``-`` being blanks."""
    words = {label: names.get(label) or re.sub(r"[_\-]+", " ", label).strip() for label in classes}
    return {label: [template.replace("{}", words[label]) for template in templates] for label in classes}
