"""The one way from a text to ids: in training, in calibration, on the host and on the device.

Standard library, numpy and ``tokenizers`` only; imports nothing of ours. ``tokenizers`` is imported with the first
encoder, so that a device for pictures needs none.

Rules, stated here once:

- A text is data: ``[SEP]`` or ``<pad>`` written in it are characters, never special tokens.
- Halves of a surrogate pair, which are no characters, become U+FFFD, one for one: positions stay.
- Texts longer than ``max_length`` tokens are cut, special tokens kept; of a question with its context the context is
  cut, and the question only where it takes more than half of ``max_length``.
- What has no tokens at all (an empty text without special tokens) becomes one pad.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Int32Array = npt.NDArray[np.int32]
Row = Mapping[str, Any]
"""``{"text": str or list of words, "context": str or None}``."""

SURROGATES = re.compile("[\ud800-\udfff]")
QUESTION_ANSWERING = "question-answering"


class BadText(ValueError):  # noqa: N818 (a verdict on the row, and a name users read)
    """A row that is refused; ``reason`` is one clause without the row's number."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class WrongTokenizer(ValueError):  # noqa: N818 (as BadText)
    """The tokenizer file is not the one that the model was trained with."""


@dataclass(frozen=True)
class TextSpec:
    """How a text becomes int32 ids (L,)."""

    max_length: int
    pad_id: int
    task: str
    tokenizer_sha256: str = ""
    """Of the tokenizer file; empty: not checked."""
    buckets: tuple[int, ...] = ()
    """Empty: the file takes any length. Else ids are padded to the smallest that holds them; the last is max_length."""
    tokenizer: str = "tokenizer.json"
    truncation: str = "right"
    dtype: str = "int32"
    kind: str = "text"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> TextSpec:
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        return cls(**values)


@dataclass(frozen=True)
class Encoded:
    """Ids of one row and where each came from."""

    ids: Int32Array
    words: tuple[int | None, ...]
    """Index of the word each token is of (of its own text, or its own context); None for special tokens."""
    offsets: tuple[tuple[int, int], ...]
    """(start, end) of each token in its text (of words: in its word), blanks left out; (0, 0) for special tokens."""
    in_context: tuple[bool, ...]
    cut: bool = False
    """Whether tokens were left out for ``max_length``."""


class TextEncoder:
    """A tokenizer.json with the rules of a spec. Raises ``WrongTokenizer`` where the file has another hash."""

    def __init__(self, path: str | os.PathLike[str], spec: TextSpec) -> None:
        from tokenizers import Tokenizer

        with open(path, "rb") as file:
            data = file.read()
        found = hashlib.sha256(data).hexdigest()
        if spec.tokenizer_sha256 and found != spec.tokenizer_sha256:
            raise WrongTokenizer(f"{os.fspath(path)}: expected sha256 {spec.tokenizer_sha256}, got {found}")
        try:
            self._tokenizer = Tokenizer.from_str(data.decode("utf-8"))
        except Exception as error:  # the boundary of tokenizers, which raises plain Exception
            raise WrongTokenizer(f"not a tokenizer: {os.fspath(path)}: {error}") from error
        self.spec = spec
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()  # done here: its own, of two long texts, keeps each pair of their parts
        self._tokenizer.encode_special_tokens = True

    @property
    def vocabulary(self) -> int:
        """Ids lie below this; added tokens count."""
        return int(self._tokenizer.get_vocab_size())

    def encode(self, row: Row) -> Int32Array:
        """Ids (L,), at most ``max_length``, not padded. Raises ``BadText``."""
        return self._ids(self._encoding(row)[0])

    def encode_aligned(self, row: Row) -> Encoded:
        """Ids and where they came from. Raises ``BadText``."""
        made, cut = self._encoding(row)
        if not made.ids:
            return Encoded(self._ids(made), (None,), ((0, 0),), (False,))
        texts = (clean_text(row["text"]), clean_text(row.get("context") or ""))
        sequences = made.sequence_ids
        places = zip(sequences, made.word_ids, made.offsets, strict=True)
        return Encoded(
            ids=self._ids(made),
            words=tuple(word if s is not None else None for s, word in zip(sequences, made.word_ids, strict=True)),
            offsets=tuple((0, 0) if s is None else _trimmed(texts[s], w, offset) for s, w, offset in places),
            in_context=tuple(s == 1 for s in sequences),
            cut=cut,
        )

    def _ids(self, made: Any) -> Int32Array:
        return np.array(made.ids or [self.spec.pad_id], np.int32)

    def _encoding(self, row: Row) -> tuple[Any, bool]:
        """What ``tokenizers`` makes of a row, and whether tokens were left out."""
        text, context = checked(row)
        if context is None or not isinstance(text, str):
            made = self._tokens(text)
            cut = self._cut(made, self._room(pair=False))
            return self._tokenizer.post_process(made), cut
        question, shorter = self._question(text)
        made = self._tokens(context)
        cut = self._cut(made, self._room(pair=True) - len(question.ids))
        return self._tokenizer.post_process(question, made), cut or shorter

    def _tokens(self, text: str | list[str]) -> Any:
        return self._tokenizer.encode(text, is_pretokenized=not isinstance(text, str), add_special_tokens=False)

    def _room(self, *, pair: bool) -> int:
        return max(0, self.spec.max_length - int(self._tokenizer.num_special_tokens_to_add(pair)))

    def _cut(self, made: Any, room: int) -> bool:
        if len(made.ids) <= room:
            return False
        made.truncate(room, direction=self.spec.truncation)
        return True

    def _question(self, text: str) -> tuple[Any, bool]:
        """Tokens of a question, at most half of ``max_length``: those of its text up to there."""
        whole, limit = self._tokens(text), min(self.spec.max_length // 2, self._room(pair=True))
        if len(whole.ids) <= limit:
            return whole, False
        starts = (self._tokens(text[: whole.offsets[keep - 1][1]]) for keep in range(limit, 0, -1))
        return next((made for made in starts if len(made.ids) <= limit), self._tokens("")), True


def checked(row: Row) -> tuple[str | list[str], str | None]:
    """Text (or words) and context of a row, without surrogates. Raises ``BadText``."""
    if not isinstance(row, Mapping) or "text" not in row:
        raise BadText("no text")
    text, context = row["text"], row.get("context")
    if not isinstance(text, str) and not (isinstance(text, list | tuple) and all(isinstance(w, str) for w in text)):
        raise BadText(f"the text is {type(text).__name__}, not a string or a list of strings")
    if context is None:
        return clean_text(text), None
    if not isinstance(context, str) or not isinstance(text, str):
        raise BadText("a context stands beside a text only, and is one")
    return clean_text(text), clean_text(context)


def clean_text(text: Any) -> Any:
    """Text or list of words with U+FFFD for each half of a surrogate pair."""
    if isinstance(text, str):
        return SURROGATES.sub("\ufffd", text)
    return [SURROGATES.sub("\ufffd", word) for word in text]


def _trimmed(text: str | list[str], word: int | None, offset: tuple[int, int]) -> tuple[int, int]:
    """Without the blanks that byte-level and sentence-piece tokens begin with."""
    whole = text if isinstance(text, str) else text[word or 0]
    start, end = offset
    while start < end and whole[start].isspace():
        start += 1
    return start, end


def pad(ids: Int32Array, spec: TextSpec) -> Int32Array:
    """Ids as a file of this spec takes them: padded on the right to the smallest bucket that holds them."""
    length = next((b for b in spec.buckets if b >= len(ids)), len(ids))
    return np.pad(ids, (0, length - len(ids)), constant_values=spec.pad_id)


def read_rows(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file. Raises ``BadText`` naming the line."""
    rows = []
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
            except ValueError:
                raise BadText(f"line {number} is not JSON") from None
            if not isinstance(row, dict):
                raise BadText(f"line {number} is not an object")
            rows.append(row)
    return rows


def write_rows(rows: Iterable[Row], path: str | os.PathLike[str]) -> None:
    """What ``read_rows`` reads; surrogates are replaced first, as JSON would join two halves to one character."""
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            text, context = checked(row)
            file.write(json.dumps({"text": text, "context": context}) + "\n")
