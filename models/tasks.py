"""Tasks: which rows of a model's outputs are compared with which targets.

Every task is brought to rows of logits (R, K) and one class for each (R,), so that ``losses.cross_entropy`` and all
distillation losses of logits are the same for pictures, texts, tokens and answers. To add one: a line in ``TASKS``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

IGNORED = -100
"""Target of a token that is not looked at: padding, special tokens, second pieces of a word. -1 is a row without a
label, which only a teacher's answer can teach."""

Rows = tuple[Tensor, Tensor]


class Task(NamedTuple):
    """What is learned from the outputs of a model."""

    rows: Callable[[Tensor, Tensor], Rows]
    """(logits, targets) -> logits (R, K), targets (R,) of classes, -1 unlabelled, or soft targets (R, K)."""
    language: bool = False
    """Learned through ``TextNet.language_model``: logits (T, V) of the tokens whose target is not ``IGNORED``."""


def whole(logits: Tensor, targets: Tensor) -> Rows:
    """Logits (N, C), targets (N,) or (N, C): one row for each sample."""
    return logits, targets


def of_labels(logits: Tensor, targets: Tensor) -> Rows:
    """Logits (N, C), targets (N, C) in {0, 1, -1} -> (N*C, 2), (N*C,): a row for each label, absent or present.

    softmax of (0, z) is sigmoid of z, so cross entropy of the rows is binary cross entropy, and kl that of Bernoullis.
    """
    present = logits.reshape(-1)
    return torch.stack([torch.zeros_like(present), present], dim=1), targets.reshape(-1)


def of_tokens(logits: Tensor, targets: Tensor) -> Rows:
    """Logits (N, L, C), targets (N, L) -> (R, C), (R,): a row for each token that is not ``IGNORED``."""
    seen = targets != IGNORED
    return logits[seen], targets[seen]


def of_ends(logits: Tensor, targets: Tensor) -> Rows:
    """Logits (N, L, 2), targets (N, 2) token positions -> (2N, L), (2N,): start and end of each answer."""
    return logits.transpose(1, 2).reshape(-1, logits.shape[1]), targets.reshape(-1)


def of_words(logits: Tensor, targets: Tensor) -> Rows:
    """Logits (T, V) of the chosen tokens already, targets (N, L) -> the same logits, (T,)."""
    return logits, targets[targets != IGNORED]


TASKS: dict[str, Task] = {
    "image-classification": Task(whole),
    "text-classification": Task(whole),
    "multi-label-classification": Task(of_labels),
    "token-classification": Task(of_tokens),
    "question-answering": Task(of_ends),
    "masked-language-modelling": Task(of_words, language=True),
    "causal-language-modelling": Task(of_words, language=True),
}
