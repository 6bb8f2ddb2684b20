"""Distillation losses of the inner states of text models: (student, teacher, real) and options by keyword.

``real`` (N, L) is False at padding, which counts for nothing. Each loss is a mean over real tokens, in float32.
"""

from __future__ import annotations

from math import gcd
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from distilledge.models.errors import UsageError

Heads = Annotated[int, Field(ge=0, le=1024)]


def hidden(student: Tensor, teacher: Tensor, real: Tensor) -> Tensor:
    """Mean squared difference of states (N, L, D), the student's projected (Jiao et al. 2020, equations 8 and 9)."""
    return _mean((student.float() - teacher.float()).square().mean(2), real)


def hidden_cosine(student: Tensor, teacher: Tensor, real: Tensor) -> Tensor:
    """1 - cosine of states (N, L, D), in 0..2 (Sanh et al. 2019, section 3)."""
    return _mean(1 - functional.cosine_similarity(student.float(), teacher.float(), dim=2, eps=1e-8), real)


def attention_scores(student: Tensor, teacher: Tensor, real: Tensor) -> Tensor:
    """Mean squared difference of scores before softmax (N, H, L, L) (Jiao et al. 2020, equation 7).

    Where the numbers of heads differ, the means over the heads are compared.
    """
    s, t = _same_heads(student.float(), teacher.float())
    both = real.unsqueeze(2) & real.unsqueeze(1)
    return _mean((s - t).square().mean(1), both)


def attention_relation(student: Tensor, teacher: Tensor, real: Tensor) -> Tensor:
    """KL(teacher || student) of the attention of each head and token, scores (N, H, L, L) (Wang et al. 2020, 3.1).

    Where the numbers of heads differ, the mean distributions over the heads are compared. Nats.
    """
    log_q, log_p = (_log_attention(scores.float(), real) for scores in (student, teacher))
    if log_q.shape[1] != log_p.shape[1]:
        log_q, log_p = (x.logsumexp(1, keepdim=True) - torch.tensor(x.shape[1]).log().to(x) for x in (log_q, log_p))
    return _mean((log_p.exp() * (log_p - log_q)).sum(3).mean(1), real)


def value_relation(student: Tensor, teacher: Tensor, real: Tensor, *, relation_heads: Heads = 0) -> Tensor:
    """KL(teacher || student) of softmax(V V^T / sqrt(d)), values (N, H, L, d) (Wang et al. 2020, section 3.2). Nats.

    ``relation_heads``: cut the values side by side into so many heads (Wang et al. 2021); 0: as they are, or, where
    their numbers differ, into as many as divide both.
    """
    count = relation_heads or gcd(student.shape[1], teacher.shape[1])
    log_q, log_p = (_log_attention(_relations(_cut(v.float(), count)), real) for v in (student, teacher))
    return _mean((log_p.exp() * (log_p - log_q)).sum(3).mean(1), real)


def _relations(values: Tensor) -> Tensor:
    relations: Tensor = torch.matmul(values, values.transpose(2, 3)) / values.shape[3] ** 0.5
    return relations


def _cut(values: Tensor, heads: int) -> Tensor:
    """(N, H, L, d) -> (N, heads, L, H*d/heads)"""
    width = values.shape[1] * values.shape[3]
    if width % heads:
        what = f"values {width} wide cannot be cut into {heads} heads"
        raise UsageError("E2416", what, "choose a relation_heads that divides the widths of student and teacher")
    batch, _, length, _ = values.shape
    return values.transpose(1, 2).reshape(batch, length, heads, width // heads).transpose(1, 2)


def _log_attention(scores: Tensor, real: Tensor) -> Tensor:
    """log softmax over real keys; padded ones have next to no share (exactly 0 in float32)."""
    return functional.log_softmax(scores.masked_fill(~real[:, None, None, :], -1e4), dim=3)


def _same_heads(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    if student.shape[1] == teacher.shape[1]:
        return student, teacher
    return student.mean(1, keepdim=True), teacher.mean(1, keepdim=True)


def _mean(of_each: Tensor, counted: Tensor) -> Tensor:
    return (of_each * counted).sum() / counted.sum().clamp_min(1)
