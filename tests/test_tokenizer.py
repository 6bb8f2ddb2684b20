"""Texts to ids: the same on the host and on the device, and what is done with what is no good text."""

from __future__ import annotations

import hashlib
import json
import shutil
import string
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from distilledge.targets import ondevice
from distilledge.targets.ondevice.text import (
    BadText,
    TextEncoder,
    TextSpec,
    WrongTokenizer,
    pad,
    read_rows,
    write_rows,
)

WORDS = ["the", "of", "card", "was", "dog", "runs", "my", "lost", "in", "Paris", "London", "12", "3.5", "Überraschung"]
ROW = {"text": "my card was lost in Paris"}


def wordpiece(vocabulary: dict[str, int]) -> Tokenizer:
    """As BERT, lower case."""
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    cls, sep = ("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])
    made.post_processor = processors.BertProcessing(sep, cls)
    made.decoder = decoders.WordPiece()
    made.add_special_tokens([AddedToken(t, special=True) for t in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")])
    made.enable_padding(length=40)  # what a file brings along must not count
    made.enable_truncation(7)
    return made


def bytes_bpe() -> Tokenizer:
    """As GPT-2: no special tokens, spaces inside tokens."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator([" ".join(WORDS)] * 4, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tokenizers")
    letters = list(string.ascii_lowercase + string.digits + string.punctuation)
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    entries += [w.lower() for w in WORDS if w.lower() not in entries]
    wordpiece({entry: i for i, entry in enumerate(entries)}).save(str(made / "small.json"))
    bytes_bpe().save(str(made / "bytes.json"))
    return made


def spec(max_length: int = 32, **fields: Any) -> TextSpec:
    return TextSpec(max_length, 0, "text-classification", **fields)


# ---- host and device


PROGRAM = """
import json, sys
from text import TextEncoder, TextSpec, read_rows
for given in sys.stdin:
    name, fields, rows = json.loads(given)
    encoder = TextEncoder(name, TextSpec.from_dict(fields))
    print(json.dumps([encoder.encode(row).tolist() for row in read_rows(rows)]), flush=True)
assert not [m for m in sys.modules if m.startswith("distilledge")]
"""


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    """A process of its own with a copy of the device's file, in which nothing of ours can be imported."""
    where = tmp_path_factory.mktemp("device")
    shutil.copy(Path(ondevice.__path__[0]) / "text.py", where)
    (where / "program.py").write_text(PROGRAM)
    isolated = "import sys; sys.path = [p for p in sys.path if 'distilledge' not in p]; sys.argv.pop(0)"
    run = f"{isolated}; sys.path.insert(0, {str(where)!r}); exec(open({str(where / 'program.py')!r}).read())"
    command = [sys.executable, "-c", run, "x"]
    started = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=where)
    with started:
        yield started
        assert started.stdin is not None
        started.stdin.close()
        assert started.wait(30) == 0


def there(device: subprocess.Popen[str], tokenizer: Path, own: TextSpec, rows: Path) -> list[list[int]]:
    assert device.stdin is not None
    assert device.stdout is not None
    device.stdin.write(json.dumps([str(tokenizer), own.to_dict(), str(rows)]) + "\n")
    device.stdin.flush()
    found: list[list[int]] = json.loads(device.stdout.readline())
    return found


ANYTHING = st.text(st.characters(exclude_categories=()), max_size=60)  # lone surrogates too
AWKWARD = st.sampled_from(
    [
        "",
        " ",
        "\x00",
        "\u2028a\u0085b\r\n",
        "مرحبا بالعالم",
        "👩‍👩‍👧‍👦🏳️‍🌈",
        "e\u0301",
        "\ufeff",
        "\ud83d\ude00",
        "\ude00\ud83d",
        "[SEP] [PAD]<pad>",
        "a" * 5000,
    ]
)
PROSE = st.lists(st.sampled_from([*WORDS, "😀", "\t", "don't", "[MASK]"]), max_size=80).map(" ".join)
TEXTS = st.one_of(ANYTHING, PROSE, AWKWARD, st.builds(str.__add__, ANYTHING, AWKWARD))
BATCH = 200


@pytest.mark.slow
@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(batch=st.lists(TEXTS, min_size=BATCH, max_size=BATCH), kind=st.sampled_from(["bert", "small", "bytes"]))
def test_ten_thousand_texts_are_the_same_ids_on_the_device(
    device: subprocess.Popen[str], folder: Path, shared: Path, batch: list[str], kind: str
) -> None:
    """50 batches of 200. ``bert``: the vocabulary that people use."""
    path = folder / f"{kind}.json"
    if kind == "bert" and not path.exists():
        vocabulary = (shared / "data" / "bert-vocab" / "vocab.txt").read_text(encoding="utf-8").splitlines()
        wordpiece({token: i for i, token in enumerate(vocabulary)}).save(str(path))
    own = spec(tokenizer_sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    encoder, rows = TextEncoder(path, own), folder / "rows.jsonl"
    write_rows([{"text": text} for text in batch], rows)
    here = [encoder.encode({"text": text}) for text in batch]
    assert all(ids.dtype == np.int32 and 1 <= len(ids) <= own.max_length for ids in here)
    assert all(0 <= ids.min() <= ids.max() < encoder.vocabulary for ids in here)
    assert there(device, path, own, rows) == [ids.tolist() for ids in here]


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(question=TEXTS, context=TEXTS, words=st.lists(TEXTS, max_size=8), longest=st.integers(4, 40))
def test_pairs_and_words_keep_to_the_length_and_to_their_places(
    folder: Path, question: str, context: str, words: list[str], longest: int
) -> None:
    for name in ("small", "bytes"):
        encoder = TextEncoder(folder / f"{name}.json", spec(longest))
        for row in ({"text": question, "context": context}, {"text": words}, {"text": question}):
            made = encoder.encode_aligned(row)
            assert made.ids.tolist() == encoder.encode(row).tolist()
            assert len(made.ids) == len(made.words) == len(made.offsets) == len(made.in_context) <= longest
            check_places(made, row)


def check_places(made: Any, row: dict[str, Any]) -> None:
    for word, (start, end), inside in zip(made.words, made.offsets, made.in_context, strict=True):
        assert start <= end
        if word is None:
            assert (start, end) == (0, 0)
        elif isinstance(row["text"], list):
            assert end <= len(row["text"][word])
        else:
            assert end <= len(row["context"] if inside else row["text"])


# ---- rules


def test_special_tokens_in_a_text_are_its_characters(folder: Path) -> None:
    encoder = TextEncoder(folder / "small.json", spec())
    ids = encoder.encode({"text": "[SEP] card [PAD]"})
    assert ids[0] == 2
    assert ids[-1] == 3
    assert not {0, 2, 3} & set(ids[1:-1].tolist())


def test_a_lone_half_of_a_pair_is_one_replacement(folder: Path, tmp_path: Path) -> None:
    encoder = TextEncoder(folder / "bytes.json", spec())
    for text in ("a\ud83db", "\ud83d\ude00"):
        replaced = "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text)
        assert encoder.encode({"text": text}).tolist() == encoder.encode({"text": replaced}).tolist()
        write_rows([{"text": text}], tmp_path / "rows.jsonl")
        assert read_rows(tmp_path / "rows.jsonl") == [{"text": replaced, "context": None}]


def test_the_context_is_cut_and_the_question_only_where_it_is_half(folder: Path) -> None:
    encoder = TextEncoder(folder / "small.json", spec(16))
    made = encoder.encode_aligned({"text": "lost card", "context": "the dog runs " * 9})
    assert made.cut
    assert len(made.ids) == 16
    assert made.ids.tolist().count(3) == 2
    assert [w for w, inside in zip(made.words, made.in_context, strict=True) if not inside and w is not None] == [0, 1]
    long = encoder.encode_aligned({"text": "card " * 30, "context": "the dog runs " * 9})
    assert len(long.ids) == 16
    assert any(long.in_context)
    assert not encoder.encode_aligned(ROW).cut


def test_offsets_leave_blanks_out(folder: Path) -> None:
    text = "my card  was lost"
    made = TextEncoder(folder / "bytes.json", spec()).encode_aligned({"text": text})
    pieces = [text[start:end] for start, end in made.offsets]
    assert "".join(pieces) == text.replace(" ", "")


def test_words_are_found_by_their_pieces(folder: Path) -> None:
    made = TextEncoder(folder / "small.json", spec()).encode_aligned({"text": ["dog", "", "zzz", "runs"]})
    assert made.words == (None, 0, 2, 2, 2, 3, None)
    assert made.offsets[2:5] == ((0, 1), (1, 2), (2, 3))


def test_nothing_is_one_pad(folder: Path) -> None:
    encoder = TextEncoder(folder / "bytes.json", spec())
    for row in ({"text": ""}, {"text": []}):
        assert encoder.encode(row).tolist() == [0]
        assert encoder.encode_aligned(row).words == (None,)


def test_padding_goes_to_the_smallest_bucket() -> None:
    own = spec(16, buckets=(4, 8, 16))
    for length, padded in ((1, 4), (4, 4), (5, 8), (9, 16), (16, 16)):
        ids = pad(np.full(length, 7, np.int32), own)
        assert (len(ids), int((ids == 7).sum()), ids.dtype) == (padded, length, np.int32)
    assert len(pad(np.full(5, 7, np.int32), spec(16))) == 5


@pytest.mark.parametrize(
    "row",
    [{}, {"text": None}, {"text": 3}, {"text": ["a", 3]}, {"text": ["a"], "context": "b"}, {"text": "a", "context": 1}],
)
def test_what_is_no_text_is_refused(folder: Path, row: dict[str, Any]) -> None:
    with pytest.raises(BadText):
        TextEncoder(folder / "small.json", spec()).encode(row)


def test_bad_lines_are_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for second, why in (("{", "line 2 is not JSON"), ("[1]", "line 2 is not an object")):
        path.write_text('{"text": "a"}\n' + second + "\n")
        with pytest.raises(BadText, match=why):
            read_rows(path)


def test_another_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(WrongTokenizer, match="expected sha256"):
        TextEncoder(folder / "small.json", spec(tokenizer_sha256="0" * 64))
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(WrongTokenizer, match="not a tokenizer"):
        TextEncoder(tmp_path / "bad.json", spec())


def test_the_spec_survives_json() -> None:
    own = spec(buckets=(8, 32), tokenizer_sha256="a")
    assert TextSpec.from_dict(json.loads(json.dumps(own.to_dict()))) == own
    assert own.to_dict()["kind"] == "text"
