"""report.html: one file that fetches nothing and runs nothing, however a class or a file is named."""

from __future__ import annotations

import base64
import hashlib

from distilledge.pipeline.report import background, ladder, lengths, placement, sections, shown, task_tables
from distilledge.pipeline.report.markup import Markup, el, join
from distilledge.pipeline.report.protocol import section_of_protocol
from distilledge.pipeline.report.style import STYLE
from distilledge.pipeline.report.vocabulary import ReportContent


def page(content: ReportContent) -> str:
    """The whole document."""
    title = f"distilledge report: {content.recipe.name}"
    head = el(
        "head",
        {},
        el("meta", {"charset": "utf-8"}),
        el("meta", {"http-equiv": "Content-Security-Policy", "content": policy()}),
        el("meta", {"name": "referrer", "content": "no-referrer"}),
        el("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        el("title", {}, title),
        el("style", {}, Markup(STYLE)),
    )
    return (
        "<!doctype html>\n" + el("html", {"lang": "en"}, head, el("body", {}, el("main", {}, *_body(content)))) + "\n"
    )


def policy() -> str:
    """Nothing but our own style sheet, by its hash, and pictures that are inside the file."""
    digest = base64.b64encode(hashlib.sha256(STYLE.encode("utf-8")).digest()).decode("ascii")
    return f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def _body(content: ReportContent) -> list[Markup]:
    parts = [
        sections.header(content),
        sections.verdict(content),
        sections.table(content),
        task_tables.section_of_tasks(content),
        sections.trade_offs(content),
        lengths.section_of_lengths(content),
        section_of_protocol(content.protocol),
        sections.teacher_worth(content),
        sections.precisions(content),
        placement.section_of_placement(content),
        ladder.section_of_ladder(content),
        sections.answers(content),
        shown.gallery(content),
        background.parity(content),
        background.training(content),
        background.data(content),
        background.conditions(content),
        background.provenance(content),
    ]
    return [join([part]) for part in parts if part]
