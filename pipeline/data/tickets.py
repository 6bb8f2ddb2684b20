"""The embedded default of text tasks: generated maintenance tickets. Synthetic: no plant wrote them.

Each ticket has an intent (what is asked for) and a severity, an affected part, a place and a reading. It is a function
of (seed, number) alone, through numpy's Philox counters, so sets of different sizes share their tickets.
Above difficulty 0, some tickets also hold a clause of another intent that is denied or long solved: the same words,
so that no word gives an intent away and a bag of words errs where a reader does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from distilledge.pipeline.data.ticket_phrases import (
    DENIALS,
    FRAMES,
    INTENTS,
    OPENERS,
    PARTS,
    PLACE_FRAMES,
    PLACES,
    QUESTIONS,
    READING_FRAMES,
    SEVERITIES,
    UNITS,
)
from distilledge.pipeline.recipe import TaskName, Tickets

MISLEADING = 0.9
"""Share of tickets with a misleading clause at difficulty 1."""
TYPING_ERRORS = 0.1
"""Share of words with a typing error at difficulty 1."""
CLOSERS = frozenset(".,;:?!")
"""Words that are written without a blank before them."""


class Ticket(NamedTuple):
    """One report, by words. ``spans``: first and last + 1 word of what is affected, by kind of entity."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    intent: str
    severity: str
    spans: dict[str, tuple[int, int]]


class _Draft:
    """A ticket that is being written."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.tags: list[str] = []
        self.spans: dict[str, tuple[int, int]] = {}

    def write(self, text: str, slots: dict[str, str], *, main: bool = True) -> None:
        """Adds a sentence; ``{part}``, ``{location}`` and ``{value}`` become tagged words."""
        first = len(self.words)
        for word in text.split():
            if word.startswith("{"):
                kind = word.strip("{}")
                self._entity(slots[kind].split(), kind.upper(), main=main)
            else:
                self.words.append(word)
                self.tags.append("O")
        self.words[first] = self.words[first][:1].upper() + self.words[first][1:]

    def _entity(self, words: Sequence[str], kind: str, *, main: bool) -> None:
        start = len(self.words)
        self.words += words
        self.tags += [f"B-{kind}", *[f"I-{kind}"] * (len(words) - 1)]
        if main:
            self.spans.setdefault(kind, (start, len(self.words)))


def tickets(options: Tickets, task: TaskName) -> Iterator[dict[str, Any]]:
    """The fields of ``options.count`` records of a task, by our column names."""
    make = FIELDS[task]
    for number in range(options.count):
        yield make(ticket(number, options), number)


def ticket(number: int, options: Tickets) -> Ticket:
    """The same for the same arguments on every call."""
    rng = np.random.Generator(np.random.Philox(key=[options.seed % 2**64, number]))
    hard = options.difficulty
    intent = sorted(INTENTS)[int(rng.integers(len(INTENTS)))]
    severity = sorted(SEVERITIES)[int(rng.choice(len(SEVERITIES), p=(0.25, 0.4, 0.35)))]
    slots = {"part": _one(rng, PARTS), "location": _place(rng), "value": _value(rng, intent)}
    draft = _Draft()
    if rng.random() < 0.4:
        draft.write(_one(rng, OPENERS), slots)
    sentences = [(_sentence(rng, INTENTS[intent], FRAMES, hard), True)]
    sentences.append((_one(rng, PLACE_FRAMES), True))
    sentences.append((_one(rng, READING_FRAMES), True))
    sentences.append((_sentence(rng, SEVERITIES[severity], ("{clause}",), hard), True))
    for bank, own, share in ((INTENTS, intent, 1.0), (SEVERITIES, severity, 0.4)):
        if rng.random() < MISLEADING * hard * share:
            other = _one(rng, sorted(set(bank) - {own}))
            sentences.append((_sentence(rng, bank[other], DENIALS, hard), False))
    for index in rng.permutation(len(sentences)).tolist():
        text, main = sentences[index]
        own_part = main or rng.random() < 0.5
        draft.write(text, slots if own_part else {**slots, "part": _one(rng, PARTS)}, main=main)
    words = _typing_errors(rng, draft, TYPING_ERRORS * hard)
    return Ticket(tuple(words), tuple(draft.tags), intent, severity, draft.spans)


def joined(words: Sequence[str]) -> tuple[str, tuple[int, ...]]:
    """The words as a text, and where each begins in it."""
    text, starts = "", []
    for word in words:
        text += " " if text and word not in CLOSERS else ""
        starts.append(len(text))
        text += word
    return text, tuple(starts)


def _one(rng: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[int(rng.integers(len(choices)))]


def _sentence(rng: np.random.Generator, clauses: Sequence[str], frames: Sequence[str], hard: float) -> str:
    """One of the first clauses, more of them the harder, in a frame."""
    known = clauses[: 1 + round(min(1.0, 2 * hard) * (len(clauses) - 1))]
    return _one(rng, frames).replace("{clause}", _one(rng, known)) + " ."


def _place(rng: np.random.Generator) -> str:
    return _one(rng, PLACES).format(n=int(rng.integers(1, 30)), m=int(rng.integers(1, 10)), c=_one(rng, "ABCDEF"))


def _value(rng: np.random.Generator, intent: str) -> str:
    """Half of the readings are of the intent's own quantity."""
    unit = UNITS[intent] if rng.random() < 0.5 else _one(rng, sorted(UNITS.values()))
    return f"{rng.uniform(1, 200):.1f} {unit}"


def _typing_errors(rng: np.random.Generator, draft: _Draft, share: float) -> list[str]:
    """Letters swapped, lost or doubled; never in a reading."""
    words = []
    for word, tag in zip(draft.words, draft.tags, strict=True):
        if len(word) < 4 or tag.endswith("VALUE") or rng.random() >= share:
            words.append(word)
            continue
        at, kind = int(rng.integers(1, len(word) - 1)), int(rng.integers(3))
        middle = (word[at + 1] + word[at], word[at + 1], word[at] * 2 + word[at + 1])[kind]
        words.append(word[:at] + middle + word[at + 2 :])
    return words


def _by_intent(ticket: Ticket, _number: int) -> dict[str, Any]:
    return {"text": joined(ticket.words)[0], "label": ticket.intent}


def _by_both(ticket: Ticket, _number: int) -> dict[str, Any]:
    return {"text": joined(ticket.words)[0], "label": [ticket.intent, f"severity-{ticket.severity}"]}


def _by_word(ticket: Ticket, _number: int) -> dict[str, Any]:
    return {"tokens": list(ticket.words), "tags": list(ticket.tags)}


def _by_question(ticket: Ticket, number: int) -> dict[str, Any]:
    """The tickets take turns in what is asked; the answer belongs to the affected part, not to a misleading clause."""
    kinds = sorted(QUESTIONS)
    kind, turn = kinds[number % len(kinds)], number // len(kinds)
    text, starts = joined(ticket.words)
    first, last = ticket.spans[kind]
    start, end = starts[first], starts[last - 1] + len(ticket.words[last - 1])
    question = QUESTIONS[kind][turn % len(QUESTIONS[kind])]
    return {"text": question, "context": text, "answers": {"text": [text[start:end]], "answer_start": [start]}}


FIELDS = {
    "text-classification": _by_intent,
    "multi-label-classification": _by_both,
    "token-classification": _by_word,
    "question-answering": _by_question,
}
