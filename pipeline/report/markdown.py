"""report.md: the verdict, the table and the ledgers for a pull request or a wiki."""

from __future__ import annotations

from collections.abc import Sequence

from distilledge.pipeline.report import ladder, lengths, placement, task_tables
from distilledge.pipeline.report.background import counts, cuts
from distilledge.pipeline.report.fits import training_words
from distilledge.pipeline.report.table import NONE, columns, judged_length, number, rows, summary
from distilledge.pipeline.report.vocabulary import ReportContent

SPECIAL = "\\`*_[]<>|#~!&"
"""Characters that Markdown or HTML would act on."""


def markdown(content: ReportContent) -> str:
    length = judged_length(content)
    parts = [
        f"# {plain(content.recipe.name)}",
        *(plain(line) + "  " for line in summary(content)),
        "",
        "## All files, teacher first",
        "95 % intervals in brackets." + (f" Latencies are of {length} tokens." if length else ""),
        "",
        grid([c.title for c in columns(content)], [[str(cell) for cell in row.cells] for row in rows(content)]),
        *_tasks(content),
        *_teacher_worth(content),
        *_training(content),
        *_lengths(content),
        *_protocol(content),
        *_precisions(content),
        *_placement(content),
        *_ladder(content),
        *_parity(content),
        *_data(content),
        "## Reproduce",
        "",
        *(f"    {line}" for line in content.command.splitlines()),
        "",
        f"Data {content.data.data_hash}; made {content.created}; "
        + ", ".join(f"{plain(name)} {plain(version)}" for name, version in content.versions.items()),
    ]
    return "\n".join(parts) + "\n"


def plain(words: str) -> str:
    """The words themselves, on one line, whatever they are made of."""
    flat = " ".join(words.split())
    return "".join(f"&#{ord(c)};" if c in "<>&" else f"\\{c}" if c in SPECIAL else c for c in flat)


def grid(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    made = ["| " + " | ".join(plain(t) for t in titles) + " |", "|" + " --- |" * len(titles)]
    made += ["| " + " | ".join(plain(cell) for cell in line) + " |" for line in lines]
    return "\n".join(made) + "\n"


def _teacher_worth(content: ReportContent) -> list[str]:
    found = content.teacher_worth
    if found is None:
        return []
    lines = [
        ("teacher", str(number(found.teacher, 2)), NONE),
        ("student, distilled", str(number(found.student, 2)), str(number(found.gain, 2))),
        ("the same student without the teacher", str(number(found.control, 2)), "0"),
    ]
    table = grid(("Model", columns(content)[3].title, "Points gained"), lines)
    return ["## What the teacher was worth", "", table, f"{plain(found.test)}: p = {found.p_value:.2g}.", ""]


def _tasks(content: ReportContent) -> list[str]:
    if content.tasks is None or not content.tasks.files:
        return []
    tables = [grid(*task_tables.task_cells(content))]
    tables += [grid(task_tables.WORTH, task_tables.worth_cells(content))] if content.tasks.worth else []
    return [f"## {task_tables.TITLE}", "", plain(task_tables.words(content)), "", *tables]


def _training(content: ReportContent) -> list[str]:
    lines = training_words(content)
    return ["## Training", "", *(f"- {plain(line)}" for line in lines), ""] if lines else []


def _lengths(content: ReportContent) -> list[str]:
    titles, lines = lengths.table(content)
    if not lines:
        return []
    return ["## Latency by length", "", grid(titles, [[str(cell) for cell in line] for line in lines])]


def _protocol(content: ReportContent) -> list[str]:
    tables = content.protocol.tables
    parts = [part for t in tables for part in (f"### {t.title}", "", plain(t.explanation), "", grid(t.columns, t.rows))]
    return ["## Protocol", "", *parts] if tables else []


def _precisions(content: ReportContent) -> list[str]:
    lines = [
        (
            f.runtime,
            f.precision,
            str(number(f.metric, 2)),
            str(number(f.drop_fp32, 2)),
            f"{f.size_mb:.2f}",
            str(number(f.faster_than_fp32, 2)),
            ", ".join(f.float_operations) or NONE,
        )
        for f in content.files
        if f.role == "student"
    ]
    titles = (
        "Runtime",
        "Precision",
        columns(content)[3].title,
        "Points below own fp32",
        "Size, MB",
        "Times as fast as own fp32",
        "Float operations left",
    )
    return ["## What each precision cost and gained", "", grid(titles, lines)]


def _placement(content: ReportContent) -> list[str]:
    titles, lines = placement.cells(content)
    return ["## Where it runs", "", grid(titles, lines)] if lines else []


def _ladder(content: ReportContent) -> list[str]:
    if not content.ledgers:
        return []
    audits = [plain(line) + "  " for line in [*ladder.trained(content), *ladder.audits(content)]]
    return ["## The quantization ladder", "", grid(ladder.TRIED, ladder.tried(content)), *audits, ""]


def _parity(content: ReportContent) -> list[str]:
    lines = [
        (
            p.role,
            r.runtime,
            f"{r.reference} → {r.candidate}",
            f"{r.agreement:.3f}",
            f"{r.cosine:.5f}",
            f"{r.max_abs:.2g}",
            "holds" if r.holds else f"broken: {r.fault_class}",
        )
        for p in content.parities
        for r in p.rungs
    ]
    titles = ("Model", "Runtime", "Rung", "Same top-1", "Cosine", "Max abs", "Outcome")
    return ["## Parity", "", grid(titles, lines)] if lines else []


def _data(content: ReportContent) -> list[str]:
    warnings = [f"- {plain(w)}" for w in content.data.warnings]
    return ["## Data", "", grid(*counts(content)), *warnings, plain(cuts(content)), ""]
