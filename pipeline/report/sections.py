"""The first half of the page: verdict, table, figures, ledgers, pictures. An empty part is left out."""

from __future__ import annotations

from collections.abc import Sequence

from distilledge.pipeline.evidence import noun
from distilledge.pipeline.record import Check
from distilledge.pipeline.report import figures
from distilledge.pipeline.report.markup import Markup, el
from distilledge.pipeline.report.table import NONE, Cell, columns, generated, judged_length, metric_name, number, rows
from distilledge.pipeline.report.vocabulary import FileResult, Headline, Reliability, ReportContent

NOTHING = Markup("")
OUTCOMES = {
    "pass": "Passed: every budget is kept by what ships for {}",
    "fail": "Failed: a budget is broken by what ships for {}",
    "inconclusive": "Inconclusive: the evidence does not decide every budget for {}",
}
LEFT = ("Model", "Verdict", "Precision", "Runtime")


def section(title: str, explanation: str, *children: Markup | None) -> Markup:
    """A card; ``explanation`` says how to read it."""
    shown = [child for child in children if child]
    return el("section", {}, el("h2", {}, title), el("p", {"class": "soft"}, explanation), *shown)


def folded(title: str, *children: Markup) -> Markup:
    """Shown on a click."""
    return el("details", {}, el("summary", {}, title), *children)


def grid(titles: Sequence[str], lines: Sequence[Sequence[str | Cell]], *, left: Sequence[str] = LEFT) -> Markup:
    """A table; columns named in ``left`` are set left, the first always."""
    sides = ["l" if i == 0 or title in left else "r" for i, title in enumerate(titles)]
    head = el("tr", {}, *(el("th", {"class": s}, t) for s, t in zip(sides, titles, strict=True)))
    body = [el("tr", {}, *(_td(s, c) for s, c in zip(sides, line, strict=True))) for line in lines]
    return el("div", {"class": "scroll"}, el("table", {}, el("thead", {}, head), el("tbody", {}, *body)))


def _td(side: str, cell: str | Cell) -> Markup:
    if isinstance(cell, Cell):
        return el("td", {"class": side}, cell.text, *([el("small", {}, cell.detail)] if cell.detail else []))
    long = " wrap" if not isinstance(cell, Markup) and len(cell) > 40 else ""
    return el("td", {"class": side + long}, cell)


def word(outcome: str) -> Markup:
    return el("span", {"class": f"word {outcome.replace(' ', '-')}"}, outcome)


def header(content: ReportContent) -> Markup:
    models = {c.role: c.model for c in content.checkpoints}
    names = f"{models.get('teacher', '?')} → {models.get('student', '?')}"
    counted = f"{content.pictures:,} test {noun(content.recipe)}"
    if content.recipe.task != "question-answering":
        what = "tags" if content.recipe.task == "token-classification" else "classes"
        counted += f", {len(content.data.classes)} {what}"
    banners = []
    if content.data.synthetic:
        banners.append(_banner("SYNTHETIC", f"data: {generated(content.recipe)}."))
    if any(t.quick for t in content.timings):
        banners.append(_banner("QUICK", "measurement: fewer samples than a reportable number needs."))
    if any(t.flags for t in content.timings):
        flags = ", ".join(sorted({flag for t in content.timings for flag in t.flags}))
        banners.append(_banner("FLAGGED", f"measurement: {flags}. See the conditions below."))
    if content.device.get("emulated"):
        banners.append(_banner("EMULATED", "device: its latencies are not comparable with a real one's."))
    lead = f"{names} · {counted} · {content.created}"
    return el("header", {}, el("h1", {}, content.recipe.name), el("p", {"class": "soft"}, lead), *banners)


def _banner(title: str, words: str) -> Markup:
    return el("div", {"class": "banner"}, el("strong", {}, title), " " + words)


def verdict(content: ReportContent) -> Markup:
    lines = [_headline(h) for h in content.headlines]
    lines += [el("li", {}, "Left out: " + reason) for reason in content.left_out]
    runtimes = ", ".join(h.runtime for h in content.headlines if h.outcome == content.outcome)
    title = OUTCOMES[content.outcome].format(runtimes) if runtimes else "Not judged: the run ended before its gate"
    return el(
        "section",
        {"class": f"verdict {content.outcome}"},
        el("h2", {}, title),
        el("ul", {}, *lines),
        folded("Every check of every file", _checks(content)),
    )


def _headline(headline: Headline) -> Markup:
    notes = el("ul", {}, *(el("li", {}, note) for note in headline.notes)) if headline.notes else NOTHING
    runtime = el("strong", {}, headline.runtime)
    return el("li", {}, runtime, " ", word(headline.outcome), " ", headline.text, notes)


def _checks(content: ReportContent) -> Markup:
    lines = [
        (file.name, check.what, *_check_cells(check), word(check.outcome), check.note)
        for file in content.files
        if file.verdict
        for check in file.verdict.checks
    ]
    return grid(("File", "Check", "Value", "Limit", "Outcome", "Note"), lines, left=("Check", "Outcome", "Note"))


def _check_cells(check: Check) -> tuple[Cell, str]:
    detail = "" if check.low is None or check.high is None else f"{check.low:.3g} to {check.high:.3g}"
    return Cell(f"{check.value:.4g}", detail), NONE if check.limit is None else f"{check.limit:g}"


def table(content: ReportContent) -> Markup:
    shown = columns(content)
    sides = ["l" if c.title in LEFT else "r" for c in shown]
    head = el("tr", {}, *(el("th", {"class": s}, c.title) for s, c in zip(sides, shown, strict=True)))
    body = []
    for row in rows(content):
        cells = [_td(s, cell) for s, cell in zip(sides[:-1], row.cells[:-1], strict=True)]
        cells.append(_verdict_cell(row.file, row.cells[-1]))
        body.append(el("tr", {"class": "ships" if row.file.shipped else row.file.role}, *cells))
    samples, length = noun(content.recipe), judged_length(content)
    tokens = f", of {length} tokens" if length else ""
    whole = el("div", {"class": "scroll"}, el("table", {}, el("thead", {}, head), el("tbody", {}, *body)))
    return section(
        "All files, teacher first",
        f"Small print: 95 % interval. {metric_name(content.recipe)}: every file's own answers on the whole test split; "
        f"the drop is paired, on the same {samples}, against the fp32 teacher in the same runtime. Latency: model "
        f"alone, one {samples.removesuffix('s')} at a time{tokens}; p99 is refused below 1,000 samples. Tinted green: "
        f"the file that its runtime ships.{_tokenizers(content)}",
        whole,
    )


def _tokenizers(content: ReportContent) -> str:
    """What the column of sizes leaves out."""
    sizes = [(t.role, t.size_mb) for t in content.tokenizers]
    found = ", ".join(f"{role} {s:.2f} MB" if s >= 0.1 else f"{role} {1000 * s:.1f} kB" for role, s in sizes)
    return f" Size: the model file; its tokenizer.json travels beside it ({found})." if found else ""


def _verdict_cell(file: FileResult, cell: Cell) -> Markup:
    notes = [cell.detail] if cell.detail else []
    notes += list(file.verdict.alarms) if file.verdict else []
    return el("td", {"class": "l"}, word(cell.text), *(el("small", {}, note) for note in notes))


def trade_offs(content: ReportContent) -> Markup:
    pareto, latency = figures.pareto(content), figures.latencies(content)
    if pareto is None and latency is None:
        return NOTHING
    return section(
        f"{metric_name(content.recipe)} against latency",
        "Left: up and left is better; rings are teachers, dots students, areas file sizes, bars 95 % intervals, the "
        "dashed line the best trade-offs. Right: 1st to 99th percentile (thin), middle half (thick), median (tick), "
        "and the median of each launch (dots).",
        el("div", {"class": "row"}, *(el("figure", {}, f) for f in (pareto, latency) if f)),
    )


def teacher_worth(content: ReportContent) -> Markup:
    found = content.teacher_worth
    if found is None:
        return NOTHING
    gap = found.teacher.value - found.control.value
    share = 100 * found.gain.value / gap if gap > 0 < found.gain.value else 0.0
    closed = f" It closes {share:.0f} % of the gap to the teacher." if share else ""
    lines: list[tuple[str | Cell, ...]] = [
        ("teacher", number(found.teacher, 2), NONE),
        ("student, distilled", number(found.student, 2), number(found.gain, 2)),
        ("the same student without the teacher", number(found.control, 2), "0"),
    ]
    samples = noun(content.recipe)
    low, high = found.gain.low or 0.0, found.gain.high or 0.0
    word_ = "helped" if low > 0 else "hurt" if high < 0 else f"made no difference that these {samples} can show"
    return section(
        "What the teacher was worth",
        f"Same student, budget, seeds and {samples}; fp32 files in {found.runtime}. The teacher {word_} "
        f"({found.test}: p = {found.p_value:.2g}; the distilled student alone is right on "
        f"{found.only_student} {samples}, the control alone on {found.only_control}).{closed}",
        grid(("Model", columns(content)[3].title, "Points gained"), lines),
    )


def precisions(content: ReportContent) -> Markup:
    lines = [_precision_line(f) for f in content.files if f.role == "student"]
    titles = (
        "Runtime",
        "Precision",
        columns(content)[3].title,
        "Points below own fp32",
        "Size, MB",
        "Times as fast as own fp32",
        "Float operations left",
        "Recipe",
    )
    if not lines:
        return NOTHING
    return section(
        "What each precision cost and gained",
        "Each student file against the student's own fp32 file in the same runtime.",
        grid(titles, lines, left=(*LEFT, "Float operations left", "Recipe")),
    )


def _precision_line(file: FileResult) -> tuple[str | Cell, ...]:
    return (
        file.runtime,
        file.precision,
        number(file.metric, 2),
        number(file.drop_fp32, 2),
        f"{file.size_mb:.2f}",
        number(file.faster_than_fp32, 2),
        ", ".join(file.float_operations) or NONE,
        file.recipe,
    )


def answers(content: ReportContent) -> Markup:
    """Confusions, classes and calibration of the teacher and the shipped student, where the task has them."""
    if content.compared is None or not (content.confusions or content.class_changes):
        return NOTHING
    task = content.recipe.task
    counted = "entities of the test texts" if task == "token-classification" else f"test {noun(content.recipe)}"
    measure = "F1" if content.recipe.is_text else "recall"
    parts: list[Markup] = []
    if content.confusions:
        shown = [
            _figure(c.name, figures.confusion(c, content.data.classes[: len(c.matrix)])) for c in content.confusions
        ]
        title = "Confusions of tags, by word" if task == "token-classification" else "Confusions"
        parts += [el("h3", {}, title), el("div", {"class": "row"}, *shown)]
    if content.class_changes:
        change = figures.class_changes(content.class_changes, measure, counted)
        parts += [el("h3", {}, f"Change of every {_class_word(task)}, points of {measure}"), change]
    if content.reliabilities:
        title = "Reliability: dots below the line are overconfident"
        calibrations = [_reliability(r) for r in content.reliabilities]
        parts += [el("h3", {}, title), el("div", {"class": "row"}, *calibrations)]
    compared = f"{content.compared[0]} against {content.compared[1]}, the first runtime's shipped file."
    return section("Where the answers differ", compared, *parts)


def _class_word(task: str) -> str:
    return {"token-classification": "entity type", "multi-label-classification": "label"}.get(task, "class")


def _reliability(found: Reliability) -> Markup:
    caption = f"{found.name}: expected calibration error {found.error:.1f} points"
    return _figure(caption, figures.reliability(found))


def _figure(caption: str, drawing: Markup) -> Markup:
    return el("figure", {}, el("figcaption", {}, caption), drawing)
