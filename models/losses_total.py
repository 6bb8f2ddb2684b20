"""The whole training loss: distillation terms and the labels, weighed and added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from distilledge.models.errors import UsageError
from distilledge.models.features import LayerPair, Outputs, Projection, StagePair
from distilledge.models.losses import LOSSES, Argument, LossSpec, check_arguments, cross_entropy


class Term(NamedTuple):
    """One distillation loss in the sum."""

    name: str
    """A key of ``LOSSES``."""
    weight: float = 1.0
    arguments: Mapping[str, Argument] = {}


class DistillationLoss(nn.Module):
    """hard_weight * cross_entropy(student, labels) + sum of weight * term(student, teacher).

    With no terms it is the plain training loss, of a teacher or a control. ``pairs`` are needed by terms that look at
    features (``features.match_stages``) or states of texts (``features_text.match_layers``); only those that are looked
    at are kept. Their projections are parameters: train them with the student. Terms and labels of weight 0 are not
    computed. Raises ``UsageError`` for an unknown loss, a bad argument or a missing pair.
    """

    def __init__(
        self,
        terms: Sequence[Term] = (),
        *,
        hard_weight: float = 1.0,
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | None = None,
        pairs: Sequence[StagePair] | Sequence[LayerPair] = (),
    ) -> None:
        super().__init__()
        for term in terms:
            check_arguments(term.name, term.arguments)
        self.terms = tuple(t for t in terms if t.weight > 0)
        self.hard_weight, self.label_smoothing = hard_weight, label_smoothing
        if not self.terms and not hard_weight:
            raise UsageError("E2414", "nothing to train on: every loss has weight 0", "set distill.hard_weight above 0")
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)
        self.pairs = self._seen_pairs(pairs)
        self.projections = nn.ModuleDict({name: self._projections(name) for name in self._projected()})

    def needs(self, what: str) -> bool:
        """Whether some term looks at this field of ``Outputs``: tap the models for it."""
        return any(LOSSES[t.name].needs == what for t in self.terms)

    def _names(self) -> list[str]:
        """A name for each term: that of the loss, numbered from the second of its kind on."""
        names = [t.name for t in self.terms]
        counts = [names[: i + 1].count(name) for i, name in enumerate(names)]
        return [name if n == 1 else f"{name}_{n}" for name, n in zip(names, counts, strict=True)]

    def _seen_pairs(self, pairs: Sequence[StagePair] | Sequence[LayerPair]) -> tuple[StagePair | LayerPair, ...]:
        """The last alone where no term looks at others; none where no term looks at any."""
        specs = [LOSSES[t.name] for t in self.terms if LOSSES[t.name].needs not in ("logits", "embedding")]
        if not specs:
            return ()
        kind, name = (LayerPair, "layers of texts") if specs[0].of_texts else (StagePair, "stages of pictures")
        if not pairs or not all(isinstance(pair, kind) for pair in pairs):
            raise UsageError("E2415", f"a loss of features needs matched {name}", "use a logit loss such as kl")
        if self.needs("scores") and any(
            p.student.causal != p.teacher.causal for p in pairs if isinstance(p, LayerPair)
        ):
            what = "attention of a decoder and of an encoder cannot be compared"
            raise UsageError("E2418", what, "use a loss of hidden states or values")
        return tuple(pairs) if any(spec.needs == "features" or not spec.last for spec in specs) else tuple(pairs[-1:])

    def _projected(self) -> list[str]:
        return [name for name, t in zip(self._names(), self.terms, strict=True) if LOSSES[t.name].projected]

    def _projections(self, name: str) -> nn.ModuleList:
        """One for each pair that the term looks at."""
        spec = dict(zip(self._names(), (LOSSES[t.name] for t in self.terms), strict=True))[name]
        chosen = self.pairs[-1:] if spec.last or spec.needs == "embeddings" else self.pairs
        return nn.ModuleList(_projection(pair, spec) for pair in chosen)

    def forward(self, student: Outputs, teacher: Outputs | None, targets: Tensor) -> dict[str, Tensor]:
        """``total`` to differentiate, and each part unweighted and detached under its name, ``hard`` for the labels.

        ``targets``: labels (B,), -1 unlabelled, or soft targets (B, C); see ``losses.cross_entropy``. ``teacher`` may
        be None where there are no terms.
        """
        parts: dict[str, Tensor] = {}
        total = student.logits.new_zeros((), dtype=torch.float32)
        if self.hard_weight:
            weights = self.get_buffer("class_weights") if self.class_weights is not None else None
            parts["hard"] = cross_entropy(
                student.logits, targets, label_smoothing=self.label_smoothing, class_weights=weights
            )
            total = total + self.hard_weight * parts["hard"]
        for name, term in zip(self._names(), self.terms, strict=True):
            assert teacher is not None, "distillation terms need the teacher's outputs"
            parts[name] = self._term(name, term, student, teacher, targets)
            total = total + term.weight * parts[name]
        return {name: part.detach() for name, part in parts.items()} | {"total": total}

    def told(self) -> dict[str, float]:
        """What the curves say of the loss in each epoch, beside its value."""
        return {}

    def _term(self, name: str, term: Term, student: Outputs, teacher: Outputs, targets: Tensor) -> Tensor:
        spec = LOSSES[term.name]
        if spec.needs == "features":
            return self._of_features(name, spec, term, student, teacher)
        if spec.of_texts:
            return self._of_texts(name, spec, term, student, teacher)
        ours, theirs = (student.logits, teacher.logits)
        if spec.needs == "embedding":
            assert student.embedding is not None, "tap the student's embedding"
            assert teacher.embedding is not None, "tap the teacher's embedding"
            ours, theirs = student.embedding, teacher.embedding
        labels = (hard_labels(targets),) if spec.labels else ()
        return spec.fn(ours, theirs.detach(), *labels, **term.arguments)

    def _of_features(self, name: str, spec: LossSpec, term: Term, student: Outputs, teacher: Outputs) -> Tensor:
        """Mean over the pairs of stages."""
        losses = []
        for i, (ours, theirs) in enumerate(zip(student.features, teacher.features, strict=True)):
            projected = self.projections[name][i](ours, theirs) if spec.projected else ours  # type: ignore[index]
            losses.append(spec.fn(projected, theirs.detach(), **term.arguments))
        return torch.stack(losses).mean()

    def _of_texts(self, name: str, spec: LossSpec, term: Term, student: Outputs, teacher: Outputs) -> Tensor:
        """Mean over the pairs of layers, at the tokens that are real for both sides."""
        assert student.real is not None, "tap the student with features_text.TextTap"
        assert teacher.real is not None, "tap the teacher with features_text.TextTap"
        if student.real.shape != teacher.real.shape:
            what = f"{term.name} compares token by token, but teacher and student cut the text differently"
            raise UsageError("E2417", what, "give both the same tokenizer, or use a logit loss such as kl")
        real = student.real & teacher.real
        states = list(zip(getattr(student, spec.needs), getattr(teacher, spec.needs), strict=True))
        losses = []
        for i, (ours, theirs) in enumerate(states[-1:] if spec.last else states):
            projected = self.projections[name][i](ours) if spec.projected else ours  # type: ignore[index]
            losses.append(spec.fn(projected, theirs.detach(), real, **term.arguments))
        return torch.stack(losses).mean()


def _projection(pair: StagePair | LayerPair, spec: LossSpec) -> nn.Module:
    """To the teacher's width; states of texts that have it already are left as they are."""
    if isinstance(pair, StagePair):
        return Projection(pair.student.channels, pair.teacher.channels)
    ours, theirs = pair.student.width, pair.teacher.width
    if spec.needs == "embeddings":
        ours, theirs = pair.student.embedding_width, pair.teacher.embedding_width
    return nn.Identity() if ours == theirs else nn.Linear(ours, theirs, bias=False)


def hard_labels(targets: Tensor) -> Tensor:
    """Labels (B,) of labels or soft targets (B, C): the largest share; -1 where a row does not sum to 1."""
    if targets.ndim == 1:
        return targets
    known = (targets.sum(1) - 1).abs() < 1e-3
    return targets.argmax(1).where(known, -1)
