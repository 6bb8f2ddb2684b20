"""The table of all files, teacher first: one source for HTML, Markdown and the terminal; and the raw numbers as CSV."""

from __future__ import annotations

import csv
import io
import shutil
import sys
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from distilledge.pipeline.evidence import noun
from distilledge.pipeline.recipe import METRICS as TASK_METRICS
from distilledge.pipeline.recipe import MetricName, Recipe
from distilledge.pipeline.recipe_multitask import tasks
from distilledge.pipeline.report.protocol import csv_columns
from distilledge.pipeline.report.vocabulary import FileResult, ReportContent
from distilledge.pipeline.stats import Estimate

NONE = "–"  # noqa: RUF001 - an en dash stands for a number that was not taken
RIGHT = ("p50, ms", "times as fast", "MB")
METRICS: dict[MetricName, str] = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "macro_f1": "Macro F1",
    "micro_f1": "Micro F1",
    "entity_f1": "Entity F1",
    "exact_match": "Exact match",
    "answer_f1": "Answer F1",
}


class Cell(NamedTuple):
    """A number or word, and its interval or remark."""

    text: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.text} ({self.detail})" if self.detail else self.text


class Column(NamedTuple):
    """``short``: its title on a terminal, empty where it is not shown there. ``whole``: there too with its interval."""

    title: str
    cell: Callable[[FileResult], Cell]
    short: str = ""
    whole: bool = False


def _other(metric: MetricName) -> Callable[[FileResult], Cell]:
    """Cells of one of the task's other metrics."""
    return lambda file: plain(file.others.get(metric), 1)


class Row(NamedTuple):
    file: FileResult
    cells: tuple[Cell, ...]


def metric_name(recipe: Recipe, metric: MetricName | None = None) -> str:
    """The recipe's metric, or another of its task, in words; accuracy of tags counts words."""
    name = METRICS[metric or recipe.metric]
    if metric is None and tasks(recipe.data):
        return f"{name} of {tasks(recipe.data)[0]}"
    return f"{name} by word" if recipe.task == "token-classification" and name == "Accuracy" else name


def columns(content: ReportContent) -> tuple[Column, ...]:
    """The recipe's metric is the fourth."""
    recipe = content.recipe
    others = [m for m in TASK_METRICS[recipe.task] if any(m in f.others for f in content.files)]
    return (
        Column("Model", lambda f: Cell(f.role, f.model), "model"),
        Column("Runtime", lambda f: Cell(f.runtime), "runtime"),
        Column("Precision", lambda f: Cell(f.precision), "precision"),
        Column(f"{metric_name(recipe)}, %", lambda f: number(f.metric, 1), "metric, %", whole=True),
        Column("Points below teacher", lambda f: number(f.drop, 2), "below teacher", whole=True),
        *(Column(f"{metric_name(recipe, m)}, %", _other(m)) for m in others),
        Column("p50, ms", lambda f: latency(f.p50), "p50, ms"),
        Column("p90, ms", lambda f: latency(f.p90)),
        Column("p99, ms", lambda f: latency(f.p99)),
        Column("End to end p50, ms", lambda f: latency(f.end_to_end_p50)),
        Column("Times as fast as teacher", lambda f: number(f.faster_than_teacher, 2), "times as fast"),
        Column("Size, MB", lambda f: Cell(f"{f.size_mb:.2f}"), "MB"),
        Column("Peak RSS, MB", lambda f: plain(f.peak_rss_mb, 0)),
        Column("Load, ms", lambda f: plain(f.load_ms, 0)),
        Column("Verdict", _verdict, "verdict", whole=True),
    )


def rows(content: ReportContent) -> list[Row]:
    """The teacher's files first, then the student's; one cell for each of ``columns``."""
    shown = columns(content)
    return [Row(file, tuple(column.cell(file) for column in shown)) for file in content.files]


def number(estimate: Estimate | None, digits: int) -> Cell:
    """A value with its interval."""
    if estimate is None:
        return Cell(NONE)
    if estimate.low is None or estimate.high is None:
        return Cell(f"{estimate.value:.{digits}f}")
    return Cell(f"{estimate.value:.{digits}f}", f"{estimate.low:.{digits}f} to {estimate.high:.{digits}f}")


def latency(estimate: Estimate | None) -> Cell:
    """Milliseconds with three significant digits, the interval with as many decimals as the value."""
    if estimate is None:
        return Cell(NONE)
    return number(estimate, 3 if estimate.value < 1 else 2 if estimate.value < 10 else 1)


def plain(value: float | None, digits: int) -> Cell:
    return Cell(NONE) if value is None else Cell(f"{value:.{digits}f}")


def _verdict(file: FileResult) -> Cell:
    if file.verdict is None:
        return Cell("reference" if file.role == "teacher" else NONE)
    return Cell(file.verdict.outcome, "ships" if file.shipped else "withheld" if file.chosen else "")


def judged_length(content: ReportContent) -> int | None:
    """Tokens of the texts that the judged latencies are of; None where they are mixed, or pictures."""
    lengths = {t.length for t in content.timings}
    return None if None in lengths or not lengths else max(n for n in lengths if n)


def terminal(report: ReportContent | dict[str, Any]) -> str:
    """Verdict and table for a terminal. ``report``: the content, or what report.json holds."""
    from rich.console import Console

    content = report if isinstance(report, ReportContent) else ReportContent.model_validate(report)
    buffer = io.StringIO()
    width = max(100, shutil.get_terminal_size((140, 24)).columns)
    console = Console(file=buffer, width=width, force_terminal=sys.stdout.isatty(), highlight=False)
    console.print(_rich_table(content))
    for line in summary(content):
        console.print(line, markup=False)
    return buffer.getvalue().rstrip("\n")


def generated(recipe: Recipe) -> str:
    """What the generated sets do not show."""
    return f"generated {noun(recipe)}, no claim about real {'ones' if recipe.is_text else 'parts'}"


def summary(content: ReportContent) -> list[str]:
    """The verdict in words, a line each."""
    models = {c.role: c.model for c in content.checkpoints}
    names = f"{models.get('teacher', '?')} to {models.get('student', '?')}"
    lines = [
        f"{content.outcome.upper()}: {content.recipe.name}, {names}, {content.pictures} test {noun(content.recipe)}"
    ]
    if content.data.synthetic:
        lines.append(f"SYNTHETIC data: {generated(content.recipe)}")
    if any(t.quick for t in content.timings):
        lines.append("QUICK measurement: too short for a reportable number")
    for headline in content.headlines:
        lines.append(f"{headline.runtime}: {headline.outcome}: {headline.text}")
        lines += [f"  {note}" for note in headline.notes]
    return lines + [f"left out: {reason}" for reason in content.left_out]


def _rich_table(content: ReportContent) -> Any:
    from rich.markup import escape
    from rich.table import Table

    shown = columns(content)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in shown:
        if column.short:
            side: Literal["left", "right"] = "right" if column.short in RIGHT else "left"
            table.add_column(column.short, justify=side, no_wrap=True)
    for row in rows(content):
        cells = [
            escape(str(cell) if column.whole else cell.text)
            for column, cell in zip(shown, row.cells, strict=True)
            if column.short
        ]
        table.add_row(*cells, style="bold" if row.file.shipped else "")
    return table


def csv_text(content: ReportContent) -> str:
    """benchmarks.csv: a line per file with every number unrounded; an estimate takes three columns."""
    lines = [_flat(content, file) for file in content.files]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(lines[0]) if lines else ["name"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()


ESTIMATES = (
    ("metric_points", "metric"),
    ("drop_points", "drop"),
    ("drop_fp32_points", "drop_fp32"),
    ("p50_ms", "p50"),
    ("p90_ms", "p90"),
    ("p99_ms", "p99"),
    ("end_to_end_p50_ms", "end_to_end_p50"),
    ("faster_than_teacher", "faster_than_teacher"),
    ("faster_than_fp32", "faster_than_fp32"),
)


def _flat(content: ReportContent, file: FileResult) -> dict[str, object]:
    line: dict[str, object] = {
        "run": content.recipe.name,
        "name": file.name,
        "role": file.role,
        "model": file.model,
        "runtime": file.runtime,
        "precision": file.precision,
        "metric": content.recipe.metric,
        noun(content.recipe): content.pictures,
    }
    if content.recipe.is_text:
        others = [m for m in TASK_METRICS[content.recipe.task] if m != content.recipe.metric]
        line |= {f"{m}_points": file.others.get(m) for m in others}
    for title, field in ESTIMATES:
        estimate: Estimate | None = getattr(file, field)
        line[title] = estimate.value if estimate else None
        line[f"{title}_low"] = estimate.low if estimate else None
        line[f"{title}_high"] = estimate.high if estimate else None
    return line | {
        "load_ms": file.load_ms,
        "first_inference_ms": file.first_inference_ms,
        "peak_rss_mb": file.peak_rss_mb,
        "size_mb": file.size_mb,
        "verdict": file.verdict.outcome if file.verdict else "",
        "ships": file.shipped,
        "sha256": file.sha256[0],
        **dict.fromkeys(csv_columns(content.protocol)),
        **content.protocol.numbers.get(file.name, {}),
    }
