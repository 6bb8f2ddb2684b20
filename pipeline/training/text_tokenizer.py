"""Where a tokenizer.json comes from: the model's own, the teacher's, a file, or learned from the train split."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from distilledge.models.errors import RejectedError, UsageError
from distilledge.pipeline.data.listing import expand, shown

FILE = "tokenizer.json"
VOCABULARY = 8000
"""Entries of a learned tokenizer where the recipe names no number."""
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD = ("[PAD]", "<pad>", "<|pad|>", "<|padding|>", "<|endoftext|>", "</s>", "<unk>")
SEPARATOR = ("[SEP]", "</s>")
UNKNOWN = ("[UNK]", "<unk>", "<|endoftext|>")
MASK = ("[MASK]", "<mask>")


class Special(NamedTuple):
    """Ids of the special tokens; None where the tokenizer has none of that kind."""

    pad: int
    unknown: int
    separator: int | None
    mask: int | None
    others: tuple[int, ...]
    """All special tokens: never masked, never trained on as words."""


def special(tokenizer_json: str) -> Special:
    """Raises ``RejectedError`` for a tokenizer without any token that could pad."""
    ids = {t["content"]: int(t["id"]) for t in json.loads(tokenizer_json).get("added_tokens", []) if t["special"]}
    names = {**_vocabulary(tokenizer_json, (*PAD, *UNKNOWN)), **ids}

    def first(choices: Sequence[str]) -> int | None:
        return next((names[name] for name in choices if name in names), None)

    pad = first(PAD)
    if pad is None:
        raise RejectedError(
            "E3621",
            f"the tokenizer has no token to pad with (looked for {', '.join(PAD)})",
            "add a pad token to tokenizer.json",
        )
    unknown = first(UNKNOWN)
    return Special(pad, pad if unknown is None else unknown, first(SEPARATOR), first(MASK), tuple(sorted(ids.values())))


def _vocabulary(tokenizer_json: str, wanted: Iterable[str]) -> dict[str, int]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(tokenizer_json)
    found = {name: tokenizer.token_to_id(name) for name in wanted}
    return {name: number for name, number in found.items() if number is not None}


def size(tokenizer_json: str) -> int:
    """Ids lie below this."""
    from tokenizers import Tokenizer

    return int(max(Tokenizer.from_str(tokenizer_json).get_vocab().values())) + 1


def of_model(model: str, weights: str) -> str:
    """tokenizer.json of a directory or hub name of transformers. Raises ``RejectedError`` where there is none."""
    from transformers import AutoTokenizer

    place = model if weights in ("hub", "none") else expand(weights)
    direct = Path(expand(place)) / FILE
    if direct.is_file():
        return read(direct)
    try:
        found: Any = AutoTokenizer.from_pretrained(place)
        backend = found.backend_tokenizer
        if len(backend.get_vocab()) <= len(backend.get_added_tokens_decoder()) + 1:
            raise ValueError("it has no vocabulary")  # transformers makes an empty one where there is no file
    except (OSError, ValueError, AttributeError) as error:
        raise RejectedError(
            "E3622",
            f"no tokenizer for {shown(place)}: {str(error).strip().splitlines()[0]}",
            "set `text.tokenizer` to a tokenizer.json, a vocab.txt, or `train`",
        ) from error
    return cleaned(backend.to_str())


def read(path: Path) -> str:
    """A tokenizer.json. Raises ``RejectedError`` where it is none."""
    from tokenizers import Tokenizer

    try:
        found = path.read_text(encoding="utf-8")
        Tokenizer.from_str(found)
    except Exception as error:  # the boundary of tokenizers, which raises plain Exception
        raise RejectedError(
            "E3625", f"not a tokenizer: {shown(path)}: {error}", "set `text.tokenizer` to a tokenizer.json"
        ) from error
    return cleaned(found)


def of_file(path: str) -> str:
    """A tokenizer.json, or a vocab.txt of BERT (lower case, accents stripped)."""
    place = Path(expand(path))
    if not place.is_file():
        raise RejectedError("E3623", f"tokenizer file not found: {shown(place)}", "edit `text.tokenizer`")
    if place.suffix != ".txt":
        return read(place)
    words = place.read_text(encoding="utf-8", errors="replace").rstrip("\n").split("\n")
    return _bert({word: number for number, word in enumerate(words)})


def learned(texts: Iterable[str], vocabulary: int) -> str:
    """WordPiece (Schuster & Nakajima 2012) with BERT's rules, learned from ``texts``; the same texts, the same file."""
    from tokenizers.trainers import WordPieceTrainer

    tokenizer = _bert_tokenizer({})
    kept = list(texts)
    letters = sorted({letter for text in kept for letter in tokenizer.normalizer.normalize_str(text)} - {" "})
    # the pieces that go on within a word get their ids first, in order: else they depend on the trainer's hash tables,
    # and with them which of two equally frequent pairs is joined
    fixed = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters)]
    trainer = WordPieceTrainer(vocab_size=vocabulary, special_tokens=fixed, show_progress=False, min_frequency=2)
    tokenizer.train_from_iterator(kept, trainer)
    words = [word for word in sorted(tokenizer.get_vocab()) if word not in SPECIAL]
    return _bert({word: number for number, word in enumerate((*SPECIAL, *words))})


def _bert_tokenizer(words: dict[str, int]) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))  # noqa: S106 (a token of text)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _bert(words: dict[str, int]) -> str:
    from tokenizers import AddedToken
    from tokenizers.processors import TemplateProcessing

    missing = [name for name in SPECIAL if name not in words]
    if missing:
        raise UsageError("E2621", f"the vocabulary lacks {', '.join(missing)}", "use the vocab.txt of a BERT model")
    tokenizer = _bert_tokenizer(words)
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", words["[CLS]"]), ("[SEP]", words["[SEP]"])],
    )
    return cleaned(tokenizer.to_str())


def cleaned(tokenizer_json: str) -> str:
    """Without padding and truncation, which are the input spec's; compact, so that equal tokenizers are equal files."""
    fields = json.loads(tokenizer_json)
    fields["padding"] = fields["truncation"] = None
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":"))
