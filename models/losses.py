"""Distillation losses: pure functions of tensors, each taking (student, teacher[, labels]) and options by keyword.

All compute in float32 and return a scalar. To add one: write the function, add a line to ``LOSSES``.
What the options may be stands in the signatures; ``check_arguments`` reads it from there.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor
from torch.nn import functional

from distilledge.models import losses_text
from distilledge.models.errors import UsageError

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Power = Annotated[int, Field(ge=1, le=8)]
Argument = float | int | bool | str


def kl(student: Tensor, teacher: Tensor, *, temperature: Positive = 2.0) -> Tensor:
    """tau^2 KL(softmax(teacher/tau) || softmax(student/tau)), mean over the batch; logits (B, C), nats.

    Hinton et al. 2015, section 2.1: the factor tau^2 keeps the gradient's size when tau changes.
    """
    q = functional.log_softmax(student.float() / temperature, dim=1)
    p = functional.log_softmax(teacher.float() / temperature, dim=1)
    return functional.kl_div(q, p, reduction="sum", log_target=True) / max(1, len(q)) * temperature**2


def kl_standardised(student: Tensor, teacher: Tensor, *, temperature: Positive = 2.0) -> Tensor:
    """``kl`` of logits with mean 0 and standard deviation 1 in each row (Sun et al. 2024, equation 9).

    The student need not match the teacher's range, only its shape: the loss ignores scale and shift of either side.
    """
    if not len(student):
        return student.float().sum()
    return kl(_standardise(student.float()), _standardise(teacher.float()), temperature=temperature)


def _standardise(logits: Tensor) -> Tensor:
    return (logits - logits.mean(1, keepdim=True)) / (logits.std(1, keepdim=True) + 1e-7)


def dkd(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    alpha: NotNegative = 1.0,
    beta: NotNegative = 8.0,
    temperature: Positive = 4.0,
) -> Tensor:
    """Decoupled KD: alpha TCKD + beta NCKD, times tau^2 (Zhao et al. 2022, equation 7).

    TCKD: KL of (label, rest); NCKD: KL among the classes that are not the label. Needs C >= 3 to say more than TCKD.
    ``labels`` (B,) int; the rows with -1 are left out.
    """
    known = (labels >= 0).float()
    own = labels.clamp_min(0).unsqueeze(1)  # (B, 1)
    q, p = (functional.log_softmax(z.float() / temperature, dim=1) for z in (student, teacher))
    rest_q, rest_p = (_rest(z, own) for z in (q, p))
    binary = _kl_rows(torch.cat([q.gather(1, own), rest_q], 1), torch.cat([p.gather(1, own), rest_p], 1))
    among = _kl_rows((q - rest_q).scatter(1, own, 0.0), (p - rest_p).scatter(1, own, 0.0))
    rows = (alpha * binary + beta * among) * temperature**2
    return (rows * known).sum() / known.sum().clamp_min(1)


def _rest(log_p: Tensor, own: Tensor) -> Tensor:
    """Log-probability (B, 1) of all classes but the label's, together."""
    return log_p.scatter(1, own, -torch.inf).logsumexp(1, keepdim=True)


def _kl_rows(log_q: Tensor, log_p: Tensor) -> Tensor:
    """KL(p || q) of each row; an entry that is 0 on both sides adds nothing."""
    return (log_p.exp() * (log_p - log_q)).sum(1)


def dist(
    student: Tensor,
    teacher: Tensor,
    *,
    beta: NotNegative = 1.0,
    gamma: NotNegative = 1.0,
    temperature: Positive = 1.0,
) -> Tensor:
    """1 - Pearson correlation of the probabilities, within rows and within columns (Huang et al. 2022, equations 8-10).

    beta weighs the relation between classes, gamma that between pictures of a batch (which needs two pictures or more).
    """
    y_s, y_t = (functional.softmax(z.float() / temperature, dim=1) for z in (student, teacher))
    if not len(y_s):
        return y_s.sum()
    inter = 1 - _pearson(y_s, y_t).mean()
    intra = 1 - _pearson(y_s.T, y_t.T).mean() if len(y_s) > 1 else torch.zeros_like(inter)
    return (beta * inter + gamma * intra) * temperature**2


def _pearson(a: Tensor, b: Tensor) -> Tensor:
    return functional.cosine_similarity(a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True), dim=1, eps=1e-8)


def hint(student: Tensor, teacher: Tensor, *, normalise: bool = False) -> Tensor:
    """Mean squared difference of feature maps (B, C, H, W), the student's projected (Romero et al. 2015, equation 3).

    ``normalise``: each map is first divided by the root mean square over its picture, so that only its shape counts.
    """
    s, t = student.float(), teacher.float()
    if normalise:
        s, t = (x / x.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(1e-6) for x in (s, t))
    return functional.mse_loss(s, t)


def attention(student: Tensor, teacher: Tensor, *, power: Power = 2) -> Tensor:
    """Squared distance of unit-length attention maps, in 0..4 (Zagoruyko & Komodakis 2017, equation 2).

    The map is sum_c |A_c|^power of (B, C, H, W); channels may differ; the larger grid is averaged down.
    """
    grid = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    a, b = (_attention_map(functional.adaptive_avg_pool2d(x.float(), grid), power) for x in (student, teacher))
    return (a - b).square().sum(1).mean()


def _attention_map(features: Tensor, power: int) -> Tensor:
    return functional.normalize(features.abs().pow(power).sum(1).flatten(1), dim=1)  # (B, H*W)


def relational(student: Tensor, teacher: Tensor, *, distance: NotNegative = 25.0, angle: NotNegative = 50.0) -> Tensor:
    """Huber difference of the pairwise distances and triplet angles of embeddings (B, D) (Park et al. 2019, eqs. 4-8).

    D may differ. Distances are divided by their mean in the batch. Memory grows with B^2 (B + D).
    """
    s, t = student.float(), teacher.float().detach()
    loss = s.sum() * 0.0
    if len(s) < 2:
        return loss
    if distance:
        loss = loss + distance * functional.smooth_l1_loss(_distances(s), _distances(t))
    if angle:
        loss = loss + angle * functional.smooth_l1_loss(_angles(s), _angles(t))
    return loss


def _distances(e: Tensor) -> Tensor:
    """(B, B) Euclidean distances over their mean, the diagonal left out of the mean."""
    d = (e[:, None] - e[None]).square().sum(2).clamp_min(1e-12).sqrt() * (1 - torch.eye(len(e), device=e.device))
    return d / (d.sum() / (len(e) * (len(e) - 1))).clamp_min(1e-12)


def _angles(e: Tensor) -> Tensor:
    """(B, B, B) cosines at corner i of every triangle i, j, k."""
    edges = functional.normalize(e[None] - e[:, None], dim=2)  # (B, B, D)
    with torch.autocast(e.device.type, enabled=False):  # which would take bfloat16
        return torch.bmm(edges, edges.transpose(1, 2))


def cross_entropy(
    student: Tensor, targets: Tensor, *, label_smoothing: float = 0.0, class_weights: Tensor | None = None
) -> Tensor:
    """Weighted mean of -sum_c w_c t_c log p_c over the labelled rows; 0 if there is none.

    ``targets``: labels (B,), -1 unlabelled, or soft targets (B, C), unlabelled where a row does not sum to 1 (a mixture
    with an unlabelled picture). Equals torch's for labels; soft targets too are divided by their classes' weight.
    """
    logits = student.float()
    t = one_hot(targets, logits.shape[1]) if targets.ndim == 1 else targets.float()
    t = t * ((t.sum(1, keepdim=True) - 1).abs() < 1e-3)
    weights = t.new_ones(t.shape[1]) if class_weights is None else class_weights.to(t)
    smooth = t * (1 - label_smoothing) + t.sum(1, keepdim=True) * label_smoothing / t.shape[1]
    log_p = functional.log_softmax(logits, dim=1)
    return -(weights * smooth * log_p).sum() / (weights * t).sum().clamp_min(1e-12)


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Float targets (B, C) of labels (B,); a row of zeros where the label is -1."""
    rows = functional.one_hot(labels.clamp_min(0), classes).float()
    return rows * (labels >= 0).unsqueeze(1)


class LossSpec(NamedTuple):
    """A distillation loss and what it is a function of."""

    fn: Callable[..., Tensor]
    needs: Literal["logits", "features", "embedding", "hidden", "scores", "values", "embeddings"]
    """A field of ``features.Outputs``; those from ``hidden`` on are of texts."""
    labels: bool = False
    """Takes the labels as third argument."""
    projected: bool = False
    """The student's side is brought to the teacher's width by a learned projection: maps always, texts where needed."""
    last: bool = False
    """Compares the last pair of layers only."""

    @property
    def of_texts(self) -> bool:
        """Takes (N, L), False at padding, as third argument."""
        return self.needs in ("hidden", "scores", "values", "embeddings")


LOSSES: dict[str, LossSpec] = {
    "kl": LossSpec(kl, "logits"),
    "kl_standardised": LossSpec(kl_standardised, "logits"),
    "dkd": LossSpec(dkd, "logits", labels=True),
    "dist": LossSpec(dist, "logits"),
    "hint": LossSpec(hint, "features", projected=True),
    "attention": LossSpec(attention, "features"),
    "relational": LossSpec(relational, "embedding"),
    "hidden": LossSpec(losses_text.hidden, "hidden", projected=True),
    "hidden_cosine": LossSpec(losses_text.hidden_cosine, "hidden", projected=True, last=True),
    "embeddings": LossSpec(losses_text.hidden, "embeddings", projected=True),
    "attention_scores": LossSpec(losses_text.attention_scores, "scores"),
    "attention_relation": LossSpec(losses_text.attention_relation, "scores", last=True),
    "value_relation": LossSpec(losses_text.value_relation, "values", last=True),
}


def check_arguments(name: str, arguments: Mapping[str, Argument]) -> None:
    """Raise ``UsageError`` unless ``name`` is a loss and ``arguments`` are options of its signature, in range."""
    if name not in LOSSES:
        raise UsageError("E2411", f"unknown loss {name!r}; choose from {', '.join(LOSSES)}", "edit distill.losses")
    signature = inspect.signature(LOSSES[name].fn, eval_str=True)
    options = {k: p for k, p in signature.parameters.items() if p.kind is p.KEYWORD_ONLY}
    positional = [None] * (len(signature.parameters) - len(options))
    choices = "its arguments: " + ", ".join(f"{k} (default {p.default})" for k, p in options.items())
    try:
        signature.bind(*positional, **arguments)
    except TypeError as error:
        raise UsageError("E2412", f"loss {name}: {error}", choices) from error
    for key, value in arguments.items():
        _check_value(name, key, value, options[key].annotation, choices)


def _check_value(name: str, key: str, value: Argument, annotation: Any, choices: str) -> None:
    try:
        TypeAdapter(annotation).validate_python(value, strict=True)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise UsageError("E2413", f"loss {name}: {key}={value!r}: {reason}", choices) from error
