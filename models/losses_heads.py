"""The training loss of a network of several tasks: each has its labels and a teacher's answers, features are shared."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from distilledge.models.features import LayerPair, Outputs, StagePair
from distilledge.models.heads import Head, spans
from distilledge.models.losses import LOSSES, cross_entropy
from distilledge.models.losses_total import DistillationLoss, Term, hard_labels
from distilledge.models.weightings import Weighting, gradient_lengths


class MultiTaskLoss(DistillationLoss):
    """``weighting`` of one loss for each task, plus the terms that look at features or the embedding, as they are.

    A task's loss is hard_weight * cross_entropy + the terms of logits, on its own columns. A row without a label of a
    task (its targets do not sum to 1 there) is masked in that task's cross-entropy; a teacher's answers teach it all
    the same. ``class_weights``: of each task. ``shared``: the weight of the last layer below the heads.
    """

    def __init__(
        self,
        heads: Sequence[Head],
        weighting: Weighting,
        terms: Sequence[Term] = (),
        *,
        hard_weight: float = 1.0,
        label_smoothing: float = 0.0,
        class_weights: Sequence[Sequence[float] | None] = (),
        pairs: Sequence[StagePair] | Sequence[LayerPair] = (),
        shared: nn.Parameter | None = None,
    ) -> None:
        super().__init__(terms, hard_weight=hard_weight, label_smoothing=label_smoothing, pairs=pairs)
        self.names, self.columns, self.weighting = tuple(head.name for head in heads), spans(heads), weighting
        self._shared = () if shared is None else (shared,)  # in a tuple, so that it is no parameter of the loss
        for number, weights in enumerate(class_weights):
            made = None if weights is None else torch.tensor(weights, dtype=torch.float32)
            self.register_buffer(f"class_weights_{number}", made, persistent=False)
        self._balanced = bool(class_weights)
        self._named = list(zip(self._names(), self.terms, strict=True))
        self._of_heads = [(n, t) for n, t in self._named if LOSSES[t.name].needs == "logits"]

    def forward(self, student: Outputs, teacher: Outputs | None, targets: Tensor) -> dict[str, Tensor]:
        """See ``DistillationLoss``; ``targets`` (N, sum of classes), and parts are named such as ``hard texture``."""
        parts: dict[str, Tensor] = {}
        losses, present = [], []
        for number, (name, columns) in enumerate(zip(self.names, self.columns, strict=True)):
            own = targets[:, columns]
            found = self._of_head(number, _only(student, columns), teacher and _only(teacher, columns), own)
            parts |= {f"{part} {name}": value for part, (value, _) in found.items()}
            losses.append(sum((w * v for v, w in found.values()), student.logits.new_zeros((), dtype=torch.float32)))
            labelled = bool(self.hard_weight) & (hard_labels(own) >= 0).any()
            present.append(labelled | torch.tensor(bool(self._of_heads), device=own.device))
        total = self.weighting(torch.stack(losses), torch.stack(present), self._lengths)
        for name, term in self._named:
            if LOSSES[term.name].needs != "logits":
                assert teacher is not None, "distillation terms need the teacher's outputs"
                parts[name] = self._term(name, term, student, teacher, targets)
                total = total + term.weight * parts[name]
        return {name: part.detach() for name, part in parts.items()} | {"total": total}

    def _of_head(
        self, number: int, student: Outputs, teacher: Outputs | None, targets: Tensor
    ) -> dict[str, tuple[Tensor, float]]:
        """Parts of one task's loss with their weights."""
        found: dict[str, tuple[Tensor, float]] = {}
        if self.hard_weight:
            weights = getattr(self, f"class_weights_{number}") if self._balanced else None
            smooth = self.label_smoothing
            hard = cross_entropy(student.logits, targets, label_smoothing=smooth, class_weights=weights)
            found["hard"] = hard, self.hard_weight
        for name, term in self._of_heads:
            assert teacher is not None, "distillation terms need the teacher's outputs"
            found[name] = self._term(name, term, student, teacher, targets), term.weight
        return found

    def _lengths(self, losses: Tensor) -> Tensor:
        assert self._shared, "this weighting looks at the last shared layer"
        return gradient_lengths(losses, self._shared[0])

    def told(self) -> dict[str, float]:
        """The factor of each task's loss now, for the curves: ``weight.texture``."""
        return {f"weight.{n}": float(w) for n, w in zip(self.names, self.weighting.weights(), strict=True)}


def _only(outputs: Outputs, columns: slice) -> Outputs:
    return outputs._replace(logits=outputs.logits[:, columns])
