"""One test for each bad input that a set of texts brings: its exit code, and a message that names file and line."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from distilledge.models.errors import DistilledgeError, GateFailedError, RejectedError
from distilledge.pipeline.data.content import content_hash, location, unlabelled_hash
from distilledge.pipeline.data.text_audit import truncation
from distilledge.pipeline.data.text_prepare import prepare_texts
from distilledge.pipeline.recipe import Columns, Data, MaxBad, Recipe, TaskName
from distilledge.pipeline.record import Splits, read_samples, read_texts
from distilledge.pipeline.steps import steps

CLASSES = ("leak", "noise")
TOLERANT = MaxBad(train=0.2, validation=0.2, test=0.2)
PARTS = ("train", "validation", "test")
Rows = list[list[str]]


def sentence(name: str, number: int, part: str = "") -> str:
    return f"{name} number {number} of {part or 'all'}: pump {number * 7} in hall {number * 3}, line {name}{part}"


def table(part: str = "", each: int = 12) -> Rows:
    """A header and ``each`` texts of two classes."""
    return [["text", "label"], *([sentence(name, n, part), name] for n in range(each) for name in CLASSES)]


def written(path: Path, rows: Sequence[Sequence[str]], *, separator: str = ",", encoding: str = "utf-8") -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    with path.open("w", newline="", encoding=encoding) as file:
        csv.writer(file, delimiter=separator, lineterminator="\n").writerows(rows)
    return path


def changed(path: Path, line: int, new: list[str]) -> Path:
    """A file of the table with line ``line`` (from 1) replaced."""
    rows = table()
    rows[line - 1] = new
    return written(path, rows)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return tmp_path / "data.csv"


@pytest.fixture
def given(tmp_path: Path) -> Path:
    for part in PARTS:
        written(tmp_path / "data" / f"{part}.csv", table(part))
    return tmp_path / "data"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def run(path: Path | str, out: Path, task: TaskName = "text-classification", **changes: Any) -> Splits:
    unlabelled = changes.pop("unlabelled", None)
    data = Data(path=str(path), **{"calibration": 12, **changes})
    return prepare_texts(data, task=task, seed=0, out=out, unlabelled=unlabelled)


def refused(path: Path | str, out: Path, task: TaskName = "text-classification", **changes: Any) -> DistilledgeError:
    with pytest.raises(RejectedError) as caught:
        run(path, out, task, **changes)
    assert caught.value.exit_code == 3
    assert caught.value.hint
    return caught.value


def bad_files(out: Path) -> dict[str, str]:
    lines = (out / "bad_files.jsonl").read_text().splitlines()
    return {record["path"]: record["reason"] for record in map(json.loads, lines)}


def findings(out: Path) -> dict[str, dict[str, Any]]:
    return {f["kind"]: f for f in json.loads((out / "audit.json").read_text())["findings"]}


def quarantines(path: Path, out: Path, origin: str, reason: str, task: TaskName = "text-classification") -> None:
    """Over the limit the run stops and says why; under it the text is left out and the run goes on."""
    error = refused(path, out, task, max_bad=MaxBad(train=0.0))
    assert f"{origin}: {reason}" in error.what
    assert "bad_files.jsonl" in error.hint
    assert "--set data.max_bad.train=" in error.hint
    assert reason in bad_files(out)[origin]
    splits = run(path, out, task, max_bad=TOLERANT)
    assert reason in bad_files(out)[origin]
    assert origin not in {s.path for s in read_samples(out)}
    assert any("1 texts cannot be used" in text for text in splits.warnings)
    assert json.loads((out / "audit.json").read_text())["bad"] == 1


# B1: nothing to read


@pytest.mark.parametrize("name", ["missing.csv", "picture.png", "folder"])
def test_b1_no_data_shows_the_expected_layout(tmp_path: Path, out: Path, name: str) -> None:
    path = tmp_path / name
    if name == "picture.png":
        path.write_bytes(b"\x89PNG")
    if name == "folder":
        written(path / "all.csv", table())
    error = refused(path, out)
    assert "ROOT/train.csv" in error.what
    if name == "folder":
        assert error.hint.endswith("folder/all.csv")


def test_b1_two_files_of_one_split(given: Path, out: Path) -> None:
    (given / "train.jsonl").write_text('{"text": "a", "label": "leak"}\n')
    assert "train.csv, train.jsonl" in refused(given, out).what


def test_b1_an_empty_file(plain: Path, out: Path) -> None:
    plain.write_text("text,label\n")
    assert "no texts in the file" in refused(plain, out).what


# B16: labels, columns, byte order marks, separators


def test_b16_unknown_label_is_named_with_its_line(given: Path, out: Path) -> None:
    rows = table("test")
    rows[2][1] = "niose"
    written(given / "test.csv", rows)
    error = refused(given, out)
    assert "unknown label 'niose' in test" in error.what
    assert "test.csv:3" in error.what
    assert error.hint == "did you mean noise"


def test_b16_a_label_that_occurs_once_in_an_uncut_set(plain: Path, out: Path) -> None:
    error = refused(changed(plain, 3, ["a pump is loud", "niose"]), out)
    assert "niose 1" in error.what
    assert "misspelt 'noise'" in error.hint


@pytest.mark.parametrize(
    ("header", "hint"),
    [
        (["text", "lable"], "--set data.columns.label=lable"),
        (["text", "intent"], "--set data.columns.label=intent"),
        (["sentence", "label"], "--set data.columns.text=sentence"),
        (["x", "label"], "add the column text"),
    ],
)
def test_b16_missing_column(plain: Path, out: Path, header: list[str], hint: str) -> None:
    error = refused(changed(plain, 1, header), out)
    assert "data.csv:1" in error.what
    assert hint in error.hint


@pytest.mark.parametrize(("label", "line"), [("", 5), ("  ", 7)])
def test_b16_no_label(plain: Path, out: Path, label: str, line: int) -> None:
    error = refused(changed(plain, line, ["some text", label]), out)
    assert "no label" in error.what
    assert f"data.csv:{line}" in error.what


def test_b16_byte_order_mark_is_taken_off(plain: Path, out: Path) -> None:
    assert run(written(plain, table(), encoding="utf-8-sig"), out).classes == CLASSES


@pytest.mark.parametrize(("separator", "name"), [(";", "semicolons"), ("\t", "tabs")])
def test_b16_other_separators_are_found_and_told(plain: Path, out: Path, separator: str, name: str) -> None:
    run(written(plain, table(), separator=separator), out)
    assert name in findings(out)["separator"]["message"]
    first = read_texts(out)[0][1].text
    assert first == sentence("leak", 0)


def test_b16_line_breaks_inside_quotes(plain: Path, out: Path) -> None:
    """The record after one is named by the line that it begins on; Unicode's own line breaks end no record."""
    rows = table()
    rows[1][0] = "two\nlines, and\u2028a third"
    run(written(plain, rows), out)
    origins = [sample.path for sample, _ in read_texts(out)]
    assert origins[:2] == ["data.csv:2", "data.csv:4"]
    assert read_texts(out)[0][1].text == rows[1][0]


@pytest.mark.parametrize(
    ("line", "what"),
    [("only one field", "1 fields, the header has 2"), ('"open,leak', "not CSV"), ('a "b" c,"le"ak', "not CSV")],
)
def test_b16_damaged_lines_are_named(plain: Path, out: Path, line: str, what: str) -> None:
    lines = written(plain, table()).read_text().splitlines()
    plain.write_text("\n".join([*lines[:4], line, *lines[4:]]) + "\n")
    error = refused(plain, out)
    assert what in error.what
    assert "data.csv:5" in error.what


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        ('{"text": "a"}', "no label"),
        ('{"text": "a", "label": 1.5}', "label is neither text nor a whole number"),
    ],
)
def test_b16_damaged_json_lines(tmp_path: Path, out: Path, line: str, what: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"text": "one", "label": "leak"}) + "\n" + line + "\n")
    error = refused(path, out)
    assert what in error.what
    assert "data.jsonl:2" in error.what


def test_b16_a_file_that_is_no_parquet(tmp_path: Path, out: Path) -> None:
    path = tmp_path / "data.parquet"
    path.write_bytes(b"PAR1 not really")
    assert "not a Parquet file" in refused(path, out).what


def test_b16_unknown_split_and_lines_without_one(plain: Path, out: Path) -> None:
    rows = [[*row, "split" if number == 0 else "train"] for number, row in enumerate(table())]
    rows[4][2] = "tset"
    error = refused(written(plain, rows), out)
    assert "unknown split 'tset': data.csv:5" in error.what
    assert error.hint == "did you mean test"
    rows[4][2] = ""
    assert "no split, while other lines have one: data.csv:5" in refused(written(plain, rows), out).what


# B17: empty, NUL, not UTF-8, very long


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty text"),
        ("  \t ", "empty text"),
        ("\u200b\u200e", "empty text"),
        ("a\0b", "NUL character"),
        ("word " * 210_000, "1,050,000 characters, more than data.max_characters 100,000"),
    ],
)
def test_b17_unusable_texts_are_set_aside(plain: Path, out: Path, text: str, reason: str) -> None:
    quarantines(changed(plain, 6, [text, "leak"]), out, "data.csv:6", reason)


def test_b17_bytes_that_are_not_utf8_in_a_file_that_is(plain: Path, out: Path) -> None:
    path = changed(plain, 6, ["bär", "leak"])
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:8], b"\xff\xfe broken,noise\n", *lines[9:]]))
    quarantines(path, out, "data.csv:9", "not UTF-8")


def test_b17_half_a_character_in_json(tmp_path: Path, out: Path) -> None:
    lines = [json.dumps({"text": text, "label": label}) for text, label in table()[1:]]
    lines[3] = r'{"text": "half \ud800", "label": "noise"}'
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(lines))
    quarantines(path, out, "data.jsonl:4", "not UTF-8")


def test_b17_another_encoding_is_not_guessed(plain: Path, out: Path) -> None:
    rows = table()
    rows[4][0] = "Öl läuft aus"
    error = refused(written(plain, rows, encoding="latin-1"), out)
    assert "byte 0xd6 is not UTF-8" in error.what
    assert "data.csv:5" in error.what
    assert "iconv -f LATIN1 -t UTF-8 data.csv" in error.hint
    assert "UTF-16" in refused(written(plain, rows, encoding="utf-16"), out).what


def test_b17_the_original_trec_file(shared: Path, tmp_path: Path, out: Path) -> None:
    """One byte of 5452 questions is Latin-1."""
    content = (shared / "data/trec/raw.TREC.train").read_bytes()
    lines = [line.split(b":", 1) for line in content.splitlines()]
    path = tmp_path / "trec.tsv"
    path.write_bytes(b"label\ttext\n" + b"".join(b"\t".join(line).replace(b'"', b"") + b"\n" for line in lines))
    number = next(n for n, line in enumerate(content.splitlines(), start=2) if b"\xf0" in line)
    error = refused(path, out)
    assert "byte 0xf0 is not UTF-8" in error.what
    assert f"trec.tsv:{number}" in error.what


def test_b17_bad_texts_are_judged_by_split(given: Path, out: Path) -> None:
    rows = table("test")
    rows[3][0] = ""
    written(given / "test.csv", rows)
    error = refused(given, out, max_bad=MaxBad(train=0.5))
    assert "1 of 24 test texts" in error.what
    assert "--set data.max_bad.test=" in error.hint


def test_b17_truncation_is_counted() -> None:
    found = truncation([5, 20, 64, 65, 300], 64)
    assert (found.kind, found.severity, found.count) == ("truncation", "warning", 2)
    assert "2 of 5 texts are longer than 64 tokens" in found.message
    assert truncation([5, 64], 64).severity == "info"
    assert truncation([], 64).count == 0


# B13: leakage


def leaks(path: Path, out: Path, *origins: str) -> None:
    with pytest.raises(GateFailedError) as caught:
        run(path, out)
    assert caught.value.exit_code == 5
    for origin in origins:
        assert origin in caught.value.what
    assert "allow_leakage" in caught.value.hint
    assert json.loads((out / "audit.json").read_text())["findings"][-1]["severity"] == "error"
    assert any("allowed" in text for text in run(path, out, allow_leakage=True).warnings)
    assert findings(out)["leakage"]["examples"]


@pytest.mark.parametrize("part", ["validation", "test"])
@pytest.mark.parametrize(
    "change",
    [str, str.upper, lambda t: f"  {t.replace(' ', '  ')}\n", lambda t: t.replace("1", "\uff11")],
    ids=["same", "case", "blanks", "width"],
)
def test_b13_the_same_text_in_two_splits(given: Path, out: Path, part: str, change: Any) -> None:
    rows = table(part)
    rows[4] = [change(sentence("noise", 10, "train")), "noise"]
    written(given / f"{part}.csv", rows)
    leaks(given, out, "train.csv:23", f"{part}.csv:5")


def test_b13_nearly_the_same_is_a_warning(given: Path, out: Path) -> None:
    words = " ".join(f"word{n}" for n in range(60))
    for part, text in (("train", words), ("test", words + " more")):
        rows = table(part)
        rows[2][0] = text
        written(given / f"{part}.csv", rows)
    splits = run(given, out)
    near = findings(out)["near_duplicates"]
    assert near["severity"] == "warning"
    assert near["count"] == 1
    assert "train train.csv:3 ~ test test.csv:3 (2 % of their 3-grams differ)" in near["examples"]
    assert any("look alike" in text for text in splits.warnings)


def test_b13_a_group_in_two_splits(given: Path, out: Path) -> None:
    for part in PARTS:
        rows = [[*row, "group" if n == 0 else f"{part}{n}"] for n, row in enumerate(table(part))]
        rows[5][2] = "machine-7" if part != "validation" else "other"
        written(given / f"{part}.csv", rows)
    with pytest.raises(GateFailedError) as caught:
        run(given, out)
    assert "test test.csv:6 shares group machine-7 with train train.csv:6" in caught.value.what


def test_b13_unlabelled_texts_that_are_tested_on_are_left_out(given: Path, tmp_path: Path, out: Path) -> None:
    extra = tmp_path / "extra.txt"
    extra.write_text(f"a new ticket\n\n{sentence('leak', 0, 'test')}\n{sentence('leak', 0, 'train')}\n")
    run(given, out, unlabelled=str(extra))
    samples = [(s.path, s.label) for s in read_samples(out, "unlabelled")]
    assert samples == [("extra.txt:1", -1), ("extra.txt:4", -1)]
    assert findings(out)["unlabelled_tested"]["examples"] == ["extra.txt:3"]
    assert refused(given, out, unlabelled=str(tmp_path / "none.txt")).code == "E3102"


# B14: duplicates and conflicts


def test_b14_duplicates_inside_a_split_are_reported(given: Path, out: Path) -> None:
    rows = table("train")
    written(given / "train.csv", [*rows, rows[1]])
    run(given, out)
    assert findings(out)["duplicates"]["examples"] == ["train.csv:2 = train.csv:26"]


def test_b14_duplicates_are_not_parted_by_a_cut_of_ours(plain: Path, out: Path) -> None:
    rows = table()
    copies = [[text.upper(), label] for text, label in rows[1:]]
    run(written(plain, rows + copies), out)
    splits = {sample.sha256: set() for sample in read_samples(out)}
    for sample in read_samples(out):
        splits[sample.sha256].add(sample.split)
    assert len(splits) == 24
    assert all(len(of) == 1 for of in splits.values())


def test_b14_conflicting_labels(plain: Path, out: Path) -> None:
    path = written(plain, [*table(), [sentence("leak", 0).upper(), "noise"]])
    error = refused(path, out)
    assert "data.csv:2 (leak) = data.csv:26 (noise)" in error.what
    assert "on_conflict" in error.hint
    run(path, out, on_conflict="quarantine")
    assert set(bad_files(out)) == {"data.csv:2", "data.csv:26"}
    run(path, out, on_conflict="keep")
    assert bad_files(out) == {}
    assert "kept" in findings(out)["conflicts"]["message"]


# B18: classes


def test_b18_classes_go_by_name_whatever_their_order(tmp_path: Path, out: Path) -> None:
    for part in PARTS:
        rows = table(part)
        written(tmp_path / "data" / f"{part}.csv", [rows[0], *(rows[1:] if part == "train" else rows[:0:-1])])
    splits = run(tmp_path / "data", out)
    for sample, row in read_texts(out):
        assert str(row.text).startswith(splits.classes[sample.label])


def test_b18_a_class_that_is_missing(given: Path, out: Path) -> None:
    written(given / "test.csv", [row for row in table("test") if row[1] != "noise"])
    error = refused(given, out)
    assert "test has no text of noise" in error.what
    written(given / "train.csv", [row for row in table("train") if row[1] != "noise"])
    assert "only one class" in refused(given / "train.csv", out).what


# B19: calibration


def test_b19_few_calibration_texts(plain: Path, tmp_path: Path, out: Path) -> None:
    splits = run(written(plain, table()), out, calibration=400)
    assert splits.calibration < 100
    assert any("texts for calibration" in text for text in splits.warnings)
    error = refused(written(tmp_path / "few.csv", table(each=5)), out)
    assert "at least 8" in error.what


# B20: what the cache depends on


def test_b20_the_hash_follows_the_files_of_texts_only(given: Path, tmp_path: Path) -> None:
    def digest(path: Path) -> str:
        return content_hash(Data(path=str(path)), "text-classification")

    before = digest(given)
    (given / "README.md").write_text("beside")
    assert digest(given.rename(tmp_path / "moved")) == before
    given = tmp_path / "moved"
    assert location(Data(path=str(given)), "text-classification") == "."
    rows = table("train")
    rows[1][0] += "!"
    written(given / "train.csv", rows)
    assert digest(given) != before
    alone = digest(given / "train.csv")
    written(given / "train.csv", table("train"))
    assert digest(given / "train.csv") != alone
    assert unlabelled_hash(str(given / "train.csv")) == digest(given / "train.csv")


def test_b20_generated_tickets_and_the_task_are_part_of_the_fingerprint() -> None:
    def fingerprint(task: TaskName, count: int) -> str:
        recipe = Recipe.model_validate({"name": "x", "task": task, "data": {"tickets": {"count": count}}})
        return steps(recipe, {})[0].fingerprint

    first = fingerprint("text-classification", 100)
    assert first == fingerprint("text-classification", 100)
    assert first != fingerprint("text-classification", 101)
    assert first != fingerprint("token-classification", 100)


# Words with tags, questions with answers


def conll(path: Path, sentences: list[list[tuple[str, str]]]) -> Path:
    path.write_text("-DOCSTART- -X- O\n\n" + "\n\n".join("\n".join(f"{w} X {t}" for w, t in s) for s in sentences))
    return path


def tagged(number: int) -> list[tuple[str, str]]:
    return [("pump", "B-PART"), (f"P{number}", "I-PART"), ("in", "O"), (f"hall{number}", "B-PLACE"), (".", "O")]


def test_tags_that_continue_nothing_are_counted(tmp_path: Path, out: Path) -> None:
    sentences = [tagged(n) for n in range(30)]
    sentences[4][2] = ("in", "I-PLACE")
    sentences[5][0] = ("pump", "I-PART")
    splits = run(conll(tmp_path / "data.conll", sentences), out, "token-classification")
    found = findings(out)["tags"]
    assert found["count"] == 2
    assert found["examples"][0] == "data.conll:27: I-PLACE after I-PART (word 3)"
    assert found["examples"][1] == "data.conll:33: I-PART after O (word 1)"
    assert splits.classes == ("O", "B-PART", "B-PLACE", "I-PART", "I-PLACE")


def test_a_word_without_a_tag(tmp_path: Path, out: Path) -> None:
    path = conll(tmp_path / "data.conll", [tagged(n) for n in range(12)])
    path.write_text(path.read_text() + "\nalone\n")
    error = refused(path, out, "token-classification")
    assert "a word without a tag: 'alone'" in error.what
    assert f"data.conll:{len(path.read_text().splitlines())}" in error.what


def lines_of(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(record) for record in records))
    return path


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "2 words, 1 tags"),
        ({"tokens": ["a", " "], "tags": ["O", "O"]}, "empty word (number 2)"),
        ({"tokens": [], "tags": []}, "empty text"),
    ],
)
def test_words_and_tags_that_do_not_fit(tmp_path: Path, out: Path, record: dict[str, Any], reason: str) -> None:
    records = [{"tokens": [w for w, _ in tagged(n)], "tags": [t for _, t in tagged(n)]} for n in range(30)]
    records[6] = record
    path = lines_of(tmp_path / "data.jsonl", records)
    quarantines(path, out, "data.jsonl:7", reason, "token-classification")


def test_an_unknown_tag_in_the_test_part(tmp_path: Path, out: Path) -> None:
    for part, start in (("train", 0), ("validation", 30), ("test", 60)):
        sentences = [tagged(start + n) for n in range(20)]
        if part == "test":
            sentences[1][3] = ("hall", "B-PLAEC")
        conll(tmp_path / f"{part}.conll", sentences)
    error = refused(tmp_path, out, "token-classification")
    assert "'B-PLAEC' in test" in error.what
    assert "test.conll:9" in error.what
    assert error.hint == "did you mean B-PLACE"


def questions() -> list[dict[str, Any]]:
    """30 questions about 15 contexts."""
    records = []
    for n in range(30):
        context = f"Pump {n // 2} stands in hall {n // 2} and leaks at {n // 2}0 bar since day {n // 2}."
        answer = f"hall {n // 2}" if n % 2 else f"Pump {n // 2}"
        record = {"text": "Where?" if n % 2 else "Which?", "context": context}
        records.append({**record, "answers": {"text": [answer], "answer_start": [context.index(answer)]}})
    return records


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ({"text": ["Valve 1"], "answer_start": [0]}, "answer 'Valve 1' is not in the context"),
        ({"text": ["4"], "answer_start": [0]}, "answer '4' occurs 4 times in the context, not at answer_start 0"),
        ({"text": ["4"]}, "answer '4' occurs 4 times in the context, not at answer_start None"),
    ],
)
def test_answers_that_are_not_there(tmp_path: Path, out: Path, answers: dict[str, Any], reason: str) -> None:
    records = questions()
    records[8]["answers"] = answers
    path = lines_of(tmp_path / "data.jsonl", records)
    quarantines(path, out, "data.jsonl:9", reason, "question-answering")


def test_an_answer_at_its_only_place_is_moved_there(tmp_path: Path, out: Path) -> None:
    records = questions()
    records[8]["answers"]["answer_start"] = [3]
    run(lines_of(tmp_path / "data.jsonl", records), out, "question-answering")
    assert findings(out)["answers_moved"]["examples"] == ["data.jsonl:9"]
    row = read_texts(out)[8][1]
    assert row.answers == ((0, "Pump 4"),)


def test_contexts_are_not_parted_by_a_cut_and_told_where_they_are(tmp_path: Path, out: Path) -> None:
    records = questions()
    run(lines_of(tmp_path / "data.jsonl", records), out, "question-answering")
    parts: dict[str | None, set[str]] = {}
    for sample, row in read_texts(out):
        parts.setdefault(row.context, set()).add(sample.split)
    assert len(parts) == 15
    assert all(len(of) == 1 for of in parts.values())
    torn = [{**record, "split": "train" if n < 15 else "test"} for n, record in enumerate(records)]
    run(lines_of(tmp_path / "data.jsonl", torn), out, "question-answering")
    assert findings(out)["shared_context"]["examples"] == ["train data.jsonl:15 = test data.jsonl:16"]


@pytest.mark.parametrize("answers", [17, {"text": ["a"], "answer_start": [1, 2]}, [{"text": 3}]])
def test_answers_of_another_shape(tmp_path: Path, out: Path, answers: Any) -> None:
    records = questions()
    records[8]["answers"] = answers
    error = refused(lines_of(tmp_path / "data.jsonl", records), out, "question-answering")
    assert "answers are not texts with starts" in error.what
    assert "data.jsonl:9" in error.what


def test_several_labels_go_by_the_separator(plain: Path, out: Path) -> None:
    rows = [[text, f"{label}; urgent" if n % 3 else label] for n, (text, label) in enumerate(table()[1:])]
    path = written(plain, [["text", "label"], *rows])
    splits = run(path, out, "multi-label-classification", label_separator=";")
    assert splits.classes == ("leak", "noise", "urgent")
    labels = {tuple(splits.classes[i] for i in row.labels) for _, row in read_texts(out)}
    assert labels == {("leak",), ("noise",), ("leak", "urgent"), ("noise", "urgent")}
    assert {s.label for s in read_samples(out)} == {0}


def test_columns_may_be_renamed(given: Path, out: Path) -> None:
    for part in PARTS:
        written(given / f"{part}.csv", [["q", "intent"], *table(part)[1:]])
    assert run(given, out, columns=Columns(text="q", label="intent")).classes == CLASSES
