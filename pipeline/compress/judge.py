"""Judging one candidate of the ladder on the validation split, beside the fp32 file, on the device."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from distilledge.models import metrics
from distilledge.pipeline import gate, stats_counts
from distilledge.pipeline.compress.climb import INT8, outcome_of
from distilledge.pipeline.compress.ladder import Attempt
from distilledge.pipeline.compress.ledger import Tried, Twin
from distilledge.pipeline.compress.slowness import Slowness, slowness
from distilledge.pipeline.evidence import noun
from distilledge.pipeline.inputs import picture_rows
from distilledge.pipeline.outcomes import Outcomes, classified, distinct, outcomes
from distilledge.pipeline.recipe import Budget, Recipe
from distilledge.pipeline.record import Check, Sample, TextRow
from distilledge.pipeline.stats import Estimate, samples_needed
from distilledge.targets import get
from distilledge.targets.base import Exported, FloatArray, Measurement
from distilledge.targets.devices.base import Device
from distilledge.targets.measure import Candidate, measure, score
from distilledge.targets.ondevice.preprocess import InputSpec
from distilledge.targets.ondevice.text import TextEncoder, TextSpec
from distilledge.targets.placement import file_of, read_back
from distilledge.targets.samples import Samples, is_text

QUICK_SAMPLES, LAUNCHES = 256, 2
SAME_SPEED = 1.1
"""What a float fallback may take of the fp32 file's time: it is taken for its size."""
SLOWDOWN = "p50 over the fp32 file's"


class Ground(NamedTuple):
    """What candidates are judged on and by."""

    recipe: Recipe
    budget: Budget
    device: Device
    samples: Sequence[Sample]
    """Of the validation split, in the order of ``inputs``."""
    inputs: Samples
    rows: Sequence[TextRow] = ()
    """Of a text task, those of ``samples``."""


class Judge:
    """Holds the fp32 file's answers, so that each candidate is compared with the same ones."""

    def __init__(self, ground: Ground, fp32: Exported, directory: Path) -> None:
        self.ground = ground
        self.fp32 = Candidate(name="fp32", role="student", directory=str(directory), exported=fp32)
        self.labels = np.asarray([s.label for s in ground.samples], np.int64)
        self.encoder = encoder_of(fp32, directory)
        self.reference = self.outcomes(self.logits(self.fp32))

    def logits(self, candidate: Candidate) -> FloatArray:
        """Logits (N, classes), of tokens (N, L, K), over the validation split, made on the device."""
        out = Path(candidate.directory)
        found = score(candidate, self.ground.device, inputs=self.ground.inputs, out=out)
        return np.asarray(np.load(out / found.logits), np.float32)

    def outcomes(self, logits: FloatArray) -> Outcomes:
        """Of all samples, in the task's own words."""
        recipe, classes = self.ground.recipe, self.fp32.exported.classes
        if not recipe.is_text:
            return classified(recipe.metric, logits, self.labels, classes)
        task, rows = recipe.task, self.ground.rows
        return outcomes(task, recipe.metric, logits, rows, self.encoder, classes, labels=self.labels.tolist())

    def __call__(self, attempt: Attempt, exported: Exported, directory: Path, started: float) -> Tried:
        name = f"{attempt.rung} {exported.precision}"
        candidate = Candidate(name=name, role="student", directory=str(directory), exported=exported)
        logits = self.logits(candidate)
        found = self.outcomes(logits)
        drop = self.drop(found)
        answers, truths = map(len, distinct(self.ground.recipe.task, found))
        budget, target = self.ground.budget, get(exported.runtime)
        checks = [
            gate.check_of(gate.DROP_FP32, drop, budget.max_drop_points_fp32),
            gate.check_of(gate.SIZE, Estimate(value=exported.size_bytes / gate.MB), budget.max_size_mb),
        ]
        sound = bool(np.isfinite(logits).all()) and (answers > 1 or truths < 2)
        timed: dict[str, Any] = {}
        if sound and outcome_of(checks) != "fails":
            timed, more = self.timed(candidate)
            checks += more
            if any(check.what.startswith(SLOWDOWN) for check in more):
                profile = read_back(file_of(candidate), self.ground.device, self.threads)
                timed["slowness"] = slowness(profile, exported.float_operations, islands=bool(attempt.scheme.islands))
        conversions = target.boundaries(directory / exported.files[0])
        outcome = outcome_of(checks) if sound else "fails"
        return Tried(
            rung=attempt.rung,
            recipe=exported.recipe,
            precision=exported.precision,
            outcome=outcome,
            reason=self.reason(checks, conversions, exported.float_operations, timed.get("slowness"), sound=sound),
            drop=drop,
            agreement=float(np.mean([a == b for a, b in zip(found.answers, self.reference.answers, strict=True)])),
            answers=answers,
            size_mb=exported.size_bytes / gate.MB,
            conversions=conversions,
            float_operations=exported.float_operations,
            islands=attempt.scheme.islands,
            seconds=time.perf_counter() - started,
            twin=None if attempt.twin is None else self.beside(attempt.twin, attempt.of, logits),
            **timed,
        )

    def beside(self, twin: nn.Module, of: str, logits: FloatArray) -> Twin:
        """The file's logits beside those of ``twin``, which sees the same pictures."""
        rows = picture_rows(self.ground.inputs, InputSpec.from_dict(self.fp32.exported.input_spec)).real()
        expected = rows.by_torch(twin).logits
        return Twin(
            of=of,
            agreement=metrics.agreement(expected, logits),
            kl=metrics.kl(expected, logits),
            cosine=metrics.cosine(expected, logits),
            psnr_db=metrics.psnr(expected, logits),
            max_abs=metrics.max_abs(expected, logits),
        )

    def drop(self, found: Outcomes) -> Estimate:
        """Points below the fp32 file, paired, on the labelled samples."""
        rows = np.flatnonzero(self.labels >= 0)
        metric, labels = self.ground.recipe.metric, self.labels[rows]
        reference, candidate = (one.counts[rows] for one in (self.reference, found))
        groups = [self.ground.samples[int(i)].group for i in rows]
        named = groups if any(groups) else None
        seed = self.ground.recipe.seed
        return stats_counts.drop(reference, candidate, labels, metric=metric, groups=named, seed=seed)

    def timed(self, candidate: Candidate) -> tuple[dict[str, Any], list[Check]]:
        """Quickly, interleaved with the fp32 file; a first look, the measure stage has the reportable figures.

        What seems slower than float is timed again, and all launches count: other load comes and goes.
        """
        seed, budget = self.ground.recipe.seed, self.ground.budget
        found, ratio = self.compared(candidate)
        p50 = gate.latency_ms(found, 50, seed)
        rss = gate.peak_rss_mb(found)
        assert p50 is not None
        assert rss is not None  # it is timed on this machine, which tells it
        checks = [
            gate.check_of(gate.P50, p50, budget.max_latency_ms),
            gate.check_of(gate.RSS, Estimate(value=rss), budget.max_peak_rss_mb),
            *self.slowdown(found, ratio),
        ]
        for length in self.lengths:
            checks += self.slowdown(*self.compared(candidate, length))
        return {"p50_ms": p50.value, "p50_ratio": ratio, "peak_rss_mb": rss}, checks

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens at which a text file is timed beside its texts as they come."""
        wanted = self.ground.recipe.measure.lengths if self.ground.recipe.is_text else ()
        return tuple(n for n in wanted if n <= self.fp32.exported.input_spec["max_length"])

    def compared(self, candidate: Candidate, length: int | None = None) -> tuple[Measurement, Estimate]:
        seed = self.ground.recipe.seed
        before, found = self.launches(candidate, length)
        ratio = gate.latency_ratio(found, before, seed)
        if ratio is not None and self.slowdown(found, ratio):
            again = zip((before, found), self.launches(candidate, length), strict=True)
            before, found = (m.model_copy(update={"launches": m.launches + more.launches}) for m, more in again)
            ratio = gate.latency_ratio(found, before, seed)
        assert ratio is not None
        return found, ratio

    @property
    def threads(self) -> int:
        return self.ground.recipe.measure.threads[0]

    def launches(self, candidate: Candidate, length: int | None) -> tuple[Measurement, ...]:
        """Of the fp32 file and the candidate."""
        settings = self.ground.recipe.measure
        return measure(
            [self.fp32, candidate],
            self.ground.device,
            threads=self.threads,
            samples=QUICK_SAMPLES,
            min_seconds=0.0,
            launches=LAUNCHES,
            warmup=settings.warmup,
            end_to_end=0,
            quick=True,
            inputs=self.ground.inputs,
            length=length,
        )

    def slowdown(self, found: Measurement, ratio: Estimate) -> list[Check]:
        """A check that fails where the whole interval lies beyond the limit; else nothing is held against the file."""
        limit = self.ground.recipe.compress.max_slowdown if found.precision in INT8 else SAME_SPEED
        what = SLOWDOWN if found.length is None else f"{SLOWDOWN} at {found.length} tokens"
        check = gate.check_of(what, ratio, limit)
        return [check] if check.outcome == "fails" else []

    def reason(
        self,
        checks: Sequence[Check],
        conversions: int,
        operations: Sequence[str],
        slow: Slowness | None,
        *,
        sound: bool,
    ) -> str:
        """Each limit that is not certainly kept, in words."""
        if not sound:
            return f"collapsed: one answer to all {noun(self.ground.recipe)}, or no number"
        words = []
        for check in checks:
            if check.limit is None or check.outcome == "holds":
                continue
            beyond = check.value > check.limit
            words.append(f"{check.what} {check.value:.3g}, limit {check.limit:.3g}")
            if check.what.startswith(SLOWDOWN):
                floats = ", ".join(operations) or "none"
                words[-1] += f" ({conversions} conversions between int8 and float; float operations: {floats})"
            elif not beyond and check.high is not None:
                more = samples_needed(
                    Estimate(value=check.value, low=check.low, high=check.high), check.limit, self.many
                )
                words[-1] += f", interval up to {check.high:.3g}" + (
                    f": needs {more:,} more {noun(self.ground.recipe)}" if more else ""
                )
        return "; ".join([*words, *([slow.words] if slow else [])]) or "every budget holds"

    @property
    def many(self) -> int:
        return int((self.labels >= 0).sum())


def encoder_of(exported: Exported, directory: Path) -> TextEncoder | None:
    """Of a text file, its tokenizer."""
    if not is_text(exported):
        return None
    spec = TextSpec.from_dict(exported.input_spec)
    return TextEncoder(directory / spec.tokenizer, spec)
