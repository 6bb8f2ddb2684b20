"""The tables of several tasks, for HTML and Markdown."""

from __future__ import annotations

from distilledge.pipeline.report.markup import Markup, el
from distilledge.pipeline.report.sections import NOTHING, grid, section
from distilledge.pipeline.report.table import METRICS, NONE, number
from distilledge.pipeline.report.vocabulary import ReportContent
from distilledge.pipeline.stats import Estimate

TITLE = "Each task by itself"
LEFT = ("File", "Against the teacher")
WORTH = ("Task", "Student, distilled", "Without the teacher", "Points gained", "McNemar, p")


def section_of_tasks(content: ReportContent) -> Markup:
    found = content.tasks
    if found is None or not found.files:
        return NOTHING
    titles, lines = task_cells(content)
    worth = (
        [el("h3", {}, "What the teacher was worth to each"), grid(WORTH, worth_cells(content))] if found.worth else []
    )
    return section(TITLE, words(content), grid(titles, lines, left=LEFT), *worth)


def words(content: ReportContent) -> str:
    """How to read the tables, and how the tasks were weighed."""
    found = content.tasks
    assert found is not None
    weights = "; ".join(f"{training}: {told}" for training, told in found.weights)
    return (
        f"One file answers {', '.join(found.names)}. Each task is scored on the samples with its label and held to "
        f"the budget by itself; the worst decides. Other tables and figures are of {found.names[0]}, the primary task. "
        f"Losses: {found.weighting}; after the first epoch and the last: {weights}."
    )


def task_cells(content: ReportContent) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    found = content.tasks
    assert found is not None
    titles = ("Task", "File", f"{METRICS[content.recipe.metric]}, %", "Points below the teacher", *LEFT[1:], "Samples")
    lines: list[tuple[str, ...]] = []
    for one in found.files:
        drop = Estimate(value=one.drop.value, low=one.drop.low, high=one.drop.high) if one.drop else None
        told = "; ".join(filter(None, (one.drop.outcome, one.drop.note))) if one.drop else NONE
        name = f"{one.file} (ships)" if one.shipped else one.file
        lines.append((one.task, name, str(number(one.metric, 1)), str(number(drop, 2)), told, str(one.samples)))
    return titles, lines


def worth_cells(content: ReportContent) -> list[tuple[str, ...]]:
    assert content.tasks is not None
    return [
        (w.task, f"{w.student:.2f}", f"{w.control:.2f}", str(number(w.gain, 2)), f"{w.p_value:.2g}")
        for w in content.tasks.worth
    ]
