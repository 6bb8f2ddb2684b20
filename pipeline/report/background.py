"""The second half of the page: parity, training, data, measurement conditions, provenance."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from distilledge.pipeline.evidence import noun
from distilledge.pipeline.recipe import METRICS
from distilledge.pipeline.record import Checkpoint, Rung
from distilledge.pipeline.report import figures
from distilledge.pipeline.report.fits import training_words
from distilledge.pipeline.report.lengths import histogram
from distilledge.pipeline.report.markup import Markup, el
from distilledge.pipeline.report.sections import NOTHING, folded, grid, section, word
from distilledge.pipeline.report.table import NONE, Cell, latency, metric_name
from distilledge.pipeline.report.vocabulary import ReportContent, Timing

LISTED = 12
"""Entries of a list in the audit that are shown."""
SHOWN = ("findings", "class_counts", "lengths", "texts_per_split")
"""Parts of the audit that have a table of their own."""
LOSSES = {"train_loss": "training loss", "loss": "validation loss"}
"""Names in curves.jsonl -> words; the task's metrics are shown too, other quantities are in report.json alone."""


def parity(content: ReportContent) -> Markup:
    lines = [(p.role, *_rung(r)) for p in content.parities for r in p.rungs]
    if not lines:
        return NOTHING
    titles = (
        "Model",
        "Runtime",
        "From",
        "To",
        "Same top-1",
        "KL, nats",
        "Cosine",
        "PSNR, dB",
        "Max abs",
        "Limit",
        "Holds",
    )
    samples = max(p.samples for p in content.parities)
    return section(
        "Parity ladder",
        f"Outputs on the same {samples} validation {noun(content.recipe)}, rung by rung from torch to int8; the first "
        "broken rung is where a fault came in.",
        grid(titles, lines, left=("Runtime", "From", "To", "Limit", "Holds")),
    )


def _rung(rung: Rung) -> tuple[str | Cell, ...]:
    fault = " at ".join(filter(None, (rung.fault_class, rung.first_divergent)))
    return (
        rung.runtime,
        rung.reference,
        rung.candidate,
        f"{100 * rung.agreement:.1f} %",
        f"{rung.kl:.2g}",
        f"{rung.cosine:.5f}",
        "∞" if rung.psnr_db is None else f"{rung.psnr_db:.1f}",
        f"{rung.max_abs:.2g}",
        rung.limit,
        word("holds") if rung.holds else Cell("broken", fault),
    )


def training(content: ReportContent) -> Markup:
    if not content.checkpoints:
        return NOTHING
    recipe, samples = content.recipe, noun(content.recipe)
    metrics = {m: f"validation {_small(metric_name(recipe, m))}" for m in METRICS[recipe.task]}
    titles = (
        "Model", "Architecture", "Parameters, M", "MACs, M", *(f"V{words[1:]}" for words in metrics.values()),
        "Kept epoch", "Time, s", f"{samples.capitalize()}/s", "Precision",
    )  # fmt: skip
    drawn = [
        figures.curves(title, [c.model_copy(update={"name": names[c.name]}) for c in content.curves if c.name in names])
        for title, names in (("loss", LOSSES), ("metric, as a fraction", {str(m): w for m, w in metrics.items()}))
    ]
    return section(
        "Training",
        "Validation figures are of the kept epoch, in torch.",
        grid(titles, [_checkpoint(c, tuple(metrics)) for c in content.checkpoints], left=("Architecture", "Precision")),
        el("ul", {}, *(el("li", {}, line) for line in training_words(content))),
        el("div", {"class": "row"}, *(el("figure", {}, d) for d in drawn if d)),
    )


def _checkpoint(found: Checkpoint, metrics: Sequence[str]) -> tuple[str, ...]:
    return (
        found.role,
        found.model,
        f"{found.parameters / 1e6:.2f}",
        f"{found.macs / 1e6:.0f}",
        *(_share(found.validation.get(metric)) for metric in metrics),
        f"{found.best_epoch} of {found.epochs}",
        f"{found.seconds:.0f}",
        f"{found.samples_per_second:.0f}",
        found.precision,
    )


def _small(words: str) -> str:
    return words[:1].lower() + words[1:]


def _share(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.1f} %"


def data(content: ReportContent) -> Markup:
    found = content.data
    recipe, samples = content.recipe, noun(content.recipe)
    grouped = f" in {found.groups:,} groups" if found.groups < content.pictures else ""
    return section(
        "Data and audit",
        f"{content.pictures:,} test {samples}{grouped}; {found.calibration} calibration {samples}, from train only. "
        f"{counted(found.bad_count, 'text' if recipe.is_text else 'file')} quarantined.{cuts(content)}",
        *[el("p", {"class": "banner"}, warning) for warning in found.warnings],
        el("div", {"class": "row"}, grid(*counts(content)), *(el("figure", {}, h) for h in _histograms(found.audit))),
        _findings(found.audit),
        folded("Audit", tree({k: v for k, v in found.audit.items() if k not in SHOWN})) if found.audit else None,
        _bad_files(content),
    )


def counts(content: ReportContent) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Titles and lines of what each split holds: classes, and in the last line all of them, or the texts."""
    found, task = content.data, content.recipe.task
    splits = list(found.counts)
    titles = {"token-classification": "Words tagged", "question-answering": "Texts"}.get(task, "Class")
    names = () if task == "question-answering" else found.classes
    lines = [(name, *(f"{found.counts[s].get(name, 0):,}" for s in splits)) for name in names]
    if task == "question-answering":
        lines.append(("with an answer", *(f"{found.counts[s].get('start', 0):,}" for s in splits)))
    per_split = found.audit.get("texts_per_split", {})
    if not content.recipe.is_text and content.tasks is None:
        lines.append(("all", *(f"{sum(found.counts[s].values()):,}" for s in splits)))
    elif all(s in per_split for s in splits):
        lines.append(("all texts", *(f"{per_split[s]:,}" for s in splits)))
    return (titles, *splits), lines


def cuts(content: ReportContent) -> str:
    """How many texts are cut; empty for pictures."""
    found = [f"{t.cut:,} of {t.texts:,} by the {t.role} (at {t.max_length} tokens)" for t in content.tokenizers]
    return f" Test texts that are cut: {', '.join(found)}." if found else ""


def _histograms(audit: Mapping[str, Any]) -> list[Markup]:
    found = audit.get("lengths", {})
    drawn = [histogram(found[what], what) for what in ("words",) if what in found]
    return [figure for figure in drawn if figure]


def counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _findings(audit: Mapping[str, Any]) -> Markup | None:
    """What the audit says, a line each."""
    lines = [
        (
            str(f["severity"]),
            str(f["kind"]).replace("_", " "),
            f"{f['count']:,}",
            str(f["message"]),
            _words(f["examples"]),
        )
        for f in audit.get("findings", ())
    ]
    titles = ("Severity", "Finding", "Count", "What", "Examples")
    return grid(titles, lines, left=("Finding", "What", "Examples")) if lines else None


def _bad_files(content: ReportContent) -> Markup | None:
    found = content.data
    if not found.bad_files:
        return None
    titles = list(dict.fromkeys(key for bad in found.bad_files for key in bad))
    lines = [[_words(bad.get(title)) for title in titles] for bad in found.bad_files]
    summary = f"Quarantined {'texts' if content.recipe.is_text else 'files'} ({len(lines)} of {found.bad_count})"
    return folded(summary, grid(titles, lines, left=titles))


def tree(value: Mapping[str, Any]) -> Markup:
    """Nested records as nested lists of names and values."""
    children: list[Markup] = []
    for key, inner in value.items():
        shown = tree(inner) if isinstance(inner, Mapping) and inner else _words(inner)
        children += [el("dt", {}, str(key).replace("_", " ")), el("dd", {}, shown)]
    return el("dl", {}, *children)


def _words(value: object) -> str:
    if value is None or value in ({}, []):
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        more = f", and {len(value) - LISTED} more" if len(value) > LISTED else ""
        return ", ".join(_words(v) for v in value[:LISTED]) + more
    return json.dumps(value, ensure_ascii=False) if isinstance(value, Mapping) else str(value)


def conditions(content: ReportContent) -> Markup:
    if not content.timings:
        return NOTHING
    tokens = ("Tokens",) if content.recipe.is_text else ()
    titles = (
        "File", *tokens, "Threads", "Launches", "Samples", "Warm-up", "p50, ms", "p90, ms", "p99, ms",
        "End to end p50, ms", "CPU/wall", "Waited", "Runtime", "Computes in", "Flags",
    )  # fmt: skip
    return section(
        "Measurement conditions",
        "Single stream, batch 1. Files of one runtime take turns in blocks: a change of the machine meets them all. "
        "CPU/wall below 0.97 in a single thread, or waiting above 1 %, means that something else ran.",
        grid(
            titles,
            [_timing(t, bool(tokens)) for t in content.timings],
            left=("Runtime", "Computes in", "Flags"),
        ),
        _beside_host(content),
        folded("Device", tree(content.device)),
    )


def _beside_host(content: ReportContent) -> Markup:
    if not content.beside_host:
        return NOTHING
    lines = [(b.name, f"{100 * b.agreement:.2f} %", f"{b.max_abs:.3g}") for b in content.beside_host]
    return el(
        "div",
        {},
        el("h3", {}, "The same files on this machine"),
        grid(("File", "Equal answers", "Largest difference of logits"), lines),
    )


def _timing(found: Timing, of_text: bool) -> Sequence[str | Cell]:
    flags = [*(["quick"] if found.quick else []), *found.flags]
    return (
        found.name,
        *([str(found.length or "mixed")] if of_text else []),
        str(found.threads),
        str(found.launches),
        f"{found.samples:,}",
        str(found.warmup),
        latency(found.p50),
        latency(found.p90),
        latency(found.p99),
        latency(found.end_to_end_p50),
        NONE if found.cpu_share is None else f"{found.cpu_share:.2f}",
        NONE if found.waited_share is None else f"{100 * found.waited_share:.1f} %",
        found.runtime_version,
        found.execution_precision,
        ", ".join(flags) or NONE,
    )


def provenance(content: ReportContent) -> Markup:
    files = [(f.name, f"{f.size_mb:.2f}", ", ".join(f.sha256)) for f in content.files]
    stages = [(s.name, s.fingerprint[:16], "found" if s.cached else "made", f"{s.seconds:.1f}") for s in content.stages]
    hashes = {
        "data": content.data.data_hash,
        "calibration set": content.data.calibration_hash,
        **{f"{c.role} weights": c.weights_sha256 for c in content.checkpoints},
    }
    recipe = json.dumps(content.recipe.model_dump(mode="json", by_alias=True), indent=1, ensure_ascii=False)
    return section(
        "Provenance",
        "This command makes the run again; equal fingerprints mean equal inputs, code version and packages.",
        el("pre", {}, content.command),
        tree(hashes),
        folded("Files and their sha256", grid(("File", "Size, MB", "sha256"), files, left=("sha256",))),
        folded("Stages", grid(("Stage", "Fingerprint", "This time", "Seconds"), stages)),
        folded("Package versions", tree(content.versions)),
        folded("Recipe with every default", el("pre", {}, recipe)),
    )
