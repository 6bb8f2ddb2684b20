"""The gallery: pictures or texts on which teacher and shipped student disagree."""

from __future__ import annotations

from collections.abc import Sequence

from distilledge.models.metrics_text import kinds
from distilledge.pipeline.evidence import noun
from distilledge.pipeline.report.markup import Markup, el
from distilledge.pipeline.report.sections import NOTHING, section
from distilledge.pipeline.report.vocabulary import Disagreement, Line, Piece, ReportContent

TEXTS = {
    "text-classification": "their first characters; beside each answer its probability",
    "multi-label-classification": "their first characters; beside each answer the probability of all its labels",
    "token-classification": "cut to where they differ; beside each model the probability of its least sure word",
    "question-answering": "cut to the answers; beside each the probability of its start and end",
}
"""What is shown of a text, and what the numbers are."""
COLOURS = 8
"""Colours of entity types; further ones begin anew."""


def gallery(content: ReportContent) -> Markup:
    found = content.gallery
    if found is None or not found.shown:
        return NOTHING
    samples = noun(content.recipe)
    total = found.teacher_right + found.student_right + found.both_wrong
    how = TEXTS.get(content.recipe.task, "as the student sees them")
    counted = (
        f"{total} of {content.pictures}: only the teacher is right on {found.teacher_right}, only the student on "
        f"{found.student_right}, neither on {found.both_wrong}. Shown: {len(found.shown)}, {how}."
    )
    if content.recipe.is_text:
        shots = [_text(d, content) for d in found.shown]
        body = el("div", {"class": "texts"}, *shots)
    else:
        body = el("div", {"class": "gallery"}, *(_shot(d) for d in found.shown))
    title = f"{samples.capitalize()} on which teacher and student disagree"
    return section(title, counted, _legend(content), body)


def _legend(content: ReportContent) -> Markup | None:
    if content.recipe.task != "question-answering":
        return None
    names = (("truth", "true answer"), ("teacher", "teacher"), ("student", "student"))
    marks = [el("span", {"class": f"span m-{kind}"}, words) for kind, words in names]
    return el("p", {"class": "soft legend"}, "Marked in the context: ", *marks)


def _shot(found: Disagreement) -> Markup:
    if found.picture:
        picture = el("img", {"src": found.picture, "alt": found.path})
    else:
        picture = el("div", {"class": "gone"}, "file not readable any more")
    return el("div", {"class": "shot"}, picture, *_answers(found), _origin(found))


def _text(found: Disagreement, content: ReportContent) -> Markup:
    task = content.recipe.task
    names = kinds(content.data.classes) if task == "token-classification" else ()
    lines = [_line(line, names, found) for line in found.lines]
    answers = [] if task == "token-classification" else _answers(found, "none")
    return el("div", {"class": "shot"}, *lines, *answers, _origin(found))


def _line(line: Line, names: Sequence[str], found: Disagreement) -> Markup:
    """``names``: entity types, in the order of their colours."""
    sure = {"teacher": found.teacher_probability, "student": found.student_probability}.get(line.who)
    who = [el("span", {"class": "who"}, line.who, *([f" {chance(sure)}"] if sure is not None else []))]
    pieces = [_piece(piece, names) for piece in line.pieces]
    spaced = [part for piece in pieces for part in (piece, " ")] if names else pieces
    return el("div", {"class": "line"}, *(who if line.who else []), el("span", {"class": "said"}, *spaced))


def _piece(piece: Piece, names: Sequence[str]) -> str:
    if not piece.marks:
        return piece.text
    if names:
        (kind,) = piece.marks
        colour = names.index(kind) % COLOURS if kind in names else 0
        return el("span", {"class": f"entity e{colour}"}, piece.text, el("small", {}, kind))
    return el("span", {"class": " ".join(["span", *(f"m-{mark}" for mark in piece.marks)])}, piece.text)


def _answers(found: Disagreement, nothing: str = "") -> list[Markup]:
    return [
        el("div", {}, "true: ", el("strong", {}, found.label or nothing)),
        _answer("teacher", found.teacher or nothing, found.teacher_probability, found.teacher_right),
        _answer("student", found.student or nothing, found.student_probability, found.student_right),
    ]


def _answer(who: str, answer: str, probability: float, right: bool) -> Markup:
    said = el("span", {"class": f"word {'better' if right else 'worse'}"}, answer)
    return el("div", {}, f"{who}: ", said, f" {chance(probability)}")


def chance(probability: float) -> str:
    return f"{probability:.2f}" if probability >= 0.005 else "< 0.01"


def _origin(found: Disagreement) -> Markup:
    return el("div", {"class": "soft"}, found.path)
