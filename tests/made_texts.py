"""Made texts of every task, a real WordPiece tokenizer over their words, and logits that answer as they are told."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from distilledge.pipeline.decode import first_pieces
from distilledge.pipeline.record import TextRow
from distilledge.targets.ondevice.text import TextEncoder, TextSpec

TASKS = ("text-classification", "multi-label-classification", "token-classification", "question-answering")
CLASSES = {
    "text-classification": ("leak", "noise", "no power", "overheating", "vibration"),
    "multi-label-classification": ("electrical", "hydraulic", "mechanical", "safety"),
    "token-classification": ("O", "B-PART", "I-PART", "B-PLACE", "I-PLACE", "B-TIME"),
    "question-answering": ("start", "end"),
}
PARTS = ("pump", "gear box", "valve", "cooling fan", "bearing", "filter housing", "motor", "drive belt")
PLACES = ("hall three", "line two", "the roof", "cell nine", "press shop")
TIMES = ("yesterday", "today", "monday", "friday")
SYMPTOMS = {
    "leak": "oil drips below the {} and the floor is wet",
    "noise": "loud grinding sound comes from the {} at start",
    "no power": "the {} does not react although the switch is on",
    "overheating": "surface of the {} is too hot to touch after an hour",
    "vibration": "the {} shakes so much that screws come loose",
}
LENGTH = 48


def made_rows(task: str, count: int, seed: int = 0) -> tuple[list[TextRow], list[int]]:
    """Rows of a task, and the labels of their samples."""
    rng = np.random.default_rng(seed)
    made = [MAKERS[task](rng) for _ in range(count)]
    labels = [row.labels[0] if task == "text-classification" else 0 for row in made]
    bare = [row.model_copy(update={"labels": ()}) for row in made] if task == "text-classification" else made
    return bare, labels


def _pick(rng: np.random.Generator, words: Sequence[str]) -> str:
    return words[int(rng.integers(len(words)))]


def _ticket(rng: np.random.Generator) -> TextRow:
    label = int(rng.integers(len(SYMPTOMS)))
    words = list(SYMPTOMS.values())[label].format(_pick(rng, PARTS))
    return TextRow(text=f"{_pick(rng, PLACES)} : {words} , since {_pick(rng, TIMES)} .", labels=(label,))


def _labels(rng: np.random.Generator) -> TextRow:
    held = tuple(int(i) for i in np.flatnonzero(rng.random(4) < 0.4))
    return _ticket(rng).model_copy(update={"labels": held})


def _tagged(rng: np.random.Generator) -> TextRow:
    parts = [("the", "O"), (_pick(rng, PARTS), "PART"), ("in", "O"), (_pick(rng, PLACES), "PLACE")]
    parts += [("failed", "O"), (_pick(rng, TIMES), "TIME"), ("again", "O")][: int(rng.integers(1, 4))]
    words, tags = [], []
    for phrase, kind in parts:
        for i, word in enumerate(phrase.split()):
            words.append(word)
            tags.append("O" if kind == "O" else f"{'I' if i else 'B'}-{kind}")
    return TextRow(text=tuple(words), labels=tuple(CLASSES["token-classification"].index(t) for t in tags))


def _question(rng: np.random.Generator) -> TextRow:
    part, place, day = _pick(rng, PARTS), _pick(rng, PLACES), _pick(rng, TIMES)
    context = f"the {part} in {place} was replaced {day} and it runs again . a spare {_pick(rng, PARTS)} is on order ."
    asked, answer = [("where was it replaced ?", place), ("when was it replaced ?", day)][int(rng.integers(2))]
    return TextRow(text=asked, context=context, answers=((context.index(answer), answer),))


MAKERS = {
    "text-classification": _ticket,
    "multi-label-classification": _labels,
    "token-classification": _tagged,
    "question-answering": _question,
}


def made_tokenizer(path: Path) -> str:
    """A tokenizer.json of single letters and the first halves of words; returns its sha256."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {w for t in TASKS for r in made_rows(t, 200)[0] for w in " ".join((*_words(r), r.context or "")).split()}
    halves = sorted({w[: max(2, len(w) // 2)] for w in words})
    letters = sorted({c for w in words for c in w})
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *halves, *(f"##{c}" for c in letters)]
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(dict.fromkeys(entries))}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    pair = "[CLS] $A [SEP] $B:1 [SEP]:1"
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", pair, special)
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _words(row: TextRow) -> tuple[str, ...]:
    return (row.text,) if isinstance(row.text, str) else row.text


def made_encoder(directory: Path, task: str, length: int | None = None) -> TextEncoder:
    sha = made_tokenizer(directory / "tokenizer.json")
    longest = length or {"question-answering": 160, "token-classification": 64}.get(task, LENGTH)
    return TextEncoder(directory / "tokenizer.json", TextSpec(longest, 0, task, tokenizer_sha256=sha))


def logits_of(
    task: str, rows: Sequence[TextRow], labels: Sequence[int], encoder: TextEncoder, *, wrong: Collection[int],
    seed: int = 0, strength: float = 8.0,
) -> np.ndarray:  # fmt: skip
    """Logits that are right but for the rows ``wrong``: noise with ``strength`` on the answer."""
    rng = np.random.default_rng(seed)
    classes = len(CLASSES[task])
    if task == "text-classification":
        z = rng.normal(size=(len(rows), classes))
        answers = [(label + (i in wrong)) % classes for i, label in enumerate(labels)]
        z[np.arange(len(rows)), answers] += strength
        return z.astype(np.float32)
    if task == "multi-label-classification":
        held = np.array([[i in row.labels for i in range(classes)] for row in rows])
        for i in wrong:
            held[i, i % classes] ^= True
        return (np.where(held, strength, -strength) * rng.uniform(0.05, 1, held.shape)).astype(np.float32)
    z = rng.normal(size=(len(rows), encoder.spec.max_length, classes))
    for index, row in enumerate(rows):
        _mark(z[index], row, encoder, index in wrong, strength)
    return z.astype(np.float32)


def _mark(z: np.ndarray, row: TextRow, encoder: TextEncoder, wrong: bool, strength: float) -> None:
    text = row.text if isinstance(row.text, str) else list(row.text)
    encoded = encoder.encode_aligned({"text": text, "context": row.context})
    if row.context is None:
        for word, place in first_pieces(encoded.words).items():
            z[place, row.labels[word]] += strength
        if wrong:  # the first word becomes a part
            z[1, 1] += 2 * strength
        return
    start, answer = row.answers[0]
    inside = [
        i for i, (a, b) in enumerate(encoded.offsets)
        if encoded.in_context[i] and b > a and start <= a and b <= start + len(answer)
    ]  # fmt: skip
    first, last = (inside[0], inside[-1]) if not wrong else (inside[-1] + 2, inside[-1] + 3)
    z[first, 0] += strength
    z[last, 1] += strength
