"""What verdicts and reports are drawn from: the answers of every file on the same samples, and its timings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from distilledge.pipeline import stats, stats_counts
from distilledge.pipeline.outcomes import Outcomes, classified, of_rows
from distilledge.pipeline.recipe import Recipe
from distilledge.pipeline.record import Measurements, Scores
from distilledge.pipeline.stats import Estimate
from distilledge.targets.base import Measurement, Predictions

Arrays = Mapping[str, npt.NDArray[Any]]


class Evidence(NamedTuple):
    """What verdicts are drawn from: answers of every file on the same pictures or texts, timings, files."""

    recipe: Recipe
    predictions: tuple[Predictions, ...]
    logits: Arrays
    """By ``Predictions.name``: (N, classes), or of tokens (N, L, K)."""
    labels: npt.NDArray[np.int64]
    """0 where a labelled text has no single one."""
    groups: Sequence[str] | None
    measurements: tuple[Measurement, ...]
    outcomes: Mapping[str, Outcomes] = {}
    """By ``Predictions.name``, with the counts of the recipe's metric."""

    def find(self, role: str, runtime: str, precision: str) -> Predictions | None:
        return next(
            (p for p in self.predictions if (p.role, p.runtime, p.precision) == (role, runtime, precision)), None
        )

    def correct(self, predictions: Predictions) -> stats.Bools:
        """Which samples are answered right in whole."""
        return self.outcomes[predictions.name].right

    def counts(self, predictions: Predictions) -> stats.Floats:
        return self.outcomes[predictions.name].counts

    def value(self, predictions: Predictions) -> Estimate:
        """The recipe's metric, as a fraction."""
        chosen: dict[str, Any] = {"metric": self.recipe.metric, "groups": self.groups, "seed": self.recipe.seed}
        return stats_counts.interval(self.counts(predictions), self.labels, **chosen)

    def drop(self, reference: Predictions, candidate: Predictions) -> Estimate:
        """Points of the recipe's metric that ``candidate`` lies below ``reference``."""
        return stats_counts.drop(
            self.counts(reference),
            self.counts(candidate),
            self.labels,
            metric=self.recipe.metric,
            groups=self.groups,
            seed=self.recipe.seed,
        )

    def p_value(self, reference: Predictions, candidate: Predictions) -> float:
        """That the two are the same, by the recipe's metric."""
        pair = (self.counts(reference), self.counts(candidate))
        return stats_counts.p_value(*pair, metric=self.recipe.metric, groups=self.groups, seed=self.recipe.seed)

    def timing(self, role: str, runtime: str, precision: str) -> Measurement | None:
        """The measurement of a file with the recipe's first number of threads (0: the most there is).

        Of texts as they come; where only single lengths were timed, of the longest.
        """
        found = [m for m in self.measurements if (m.role, m.runtime, m.precision) == (role, runtime, precision)]
        found = [m for m in found if m.length is None] or sorted(found, key=lambda m: -(m.length or 0))
        wanted = self.recipe.measure.threads[0]
        exact = [m for m in found if m.threads == wanted]
        return next(iter(exact or sorted(found, key=lambda m: -m.threads)), None)


def gather_evidence(
    recipe: Recipe,
    scores: Scores,
    logits: Arrays,
    measurements: Measurements,
    groups: Sequence[str] | None,
    *,
    classes: Sequence[str],
    outcomes: Mapping[str, Outcomes] | None = None,
) -> Evidence:
    """Leave out samples without a label. Of pictures the outcomes are made here."""
    labels = np.asarray(scores.labels, np.int64)
    rows = np.flatnonzero(labels >= 0)
    kept = {name: array[rows] for name, array in logits.items()}
    labels = labels[rows]
    if outcomes is None:
        judged = {name: classified(recipe.metric, array, labels, classes) for name, array in kept.items()}
    else:
        judged = {name: of_rows(found, rows) for name, found in outcomes.items()}
    named = None if groups is None else [groups[int(i)] for i in rows]
    return Evidence(recipe, scores.items, kept, labels, named, measurements.items, judged)


def noun(recipe: Recipe) -> str:
    """What the samples are called."""
    return "texts" if recipe.is_text else "pictures"
