"""Formats of texts, splits, near-duplicates, the generated tickets, and recipes drafted for sets of texts."""

from __future__ import annotations

import csv
import hashlib
import json
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from distilledge.models.errors import RejectedError
from distilledge.pipeline.data.text_alike import near_texts, rows_per_band, shingles, signatures, similarity
from distilledge.pipeline.data.text_audit import histogram, strata, tag_faults
from distilledge.pipeline.data.text_describe import describe_text, is_text
from distilledge.pipeline.data.text_files import TextRecord
from distilledge.pipeline.data.text_formats import TEXT_FORMATS, detect_text, read_corpus, text_listing
from distilledge.pipeline.data.text_prepare import prepare_texts
from distilledge.pipeline.data.text_rows import Entry, fault, normalise, parse
from distilledge.pipeline.data.ticket_phrases import INTENTS, SEVERITIES
from distilledge.pipeline.data.tickets import joined, ticket, tickets
from distilledge.pipeline.init import draft
from distilledge.pipeline.recipe import METRICS, Columns, Data, Recipe, TaskName, Tickets
from distilledge.pipeline.recipe_check import check_recipe
from distilledge.pipeline.recipe_file import load_recipe
from distilledge.pipeline.record import Splits, read_samples, read_texts

SMALL = Data(tickets=Tickets(count=300), calibration=12)
TEXT_TASKS: tuple[TaskName, ...] = tuple(task for task in METRICS if task != "image-classification")
Records = list[dict[str, Any]]


def run(data: Data, out: Path, task: TaskName = "text-classification", seed: int = 0) -> Splits:
    out.mkdir(exist_ok=True)
    return prepare_texts(data, task=task, seed=seed, out=out)


def records(task: TaskName, count: int = 300) -> Records:
    return list(tickets(Tickets(count=count), task))


# Formats: every entry of the table, and every kind of file, brings the same texts


def as_jsonl(rows: Records, root: Path) -> Path:
    path = root / "data.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def as_csv(rows: Records, root: Path) -> Path:
    path = root / f"data.{'tsv' if 'answers' in rows[0] else 'csv'}"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        for row in rows:
            plain = "label" in row and isinstance(row["label"], list)
            cells = {k: json.dumps(v) if isinstance(v, list | dict) else v for k, v in row.items()}
            writer.writerow({**cells, "label": "|".join(row["label"])} if plain else cells)
    return path


def as_parquet(rows: Records, root: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), root / "data.parquet")
    return root / "data.parquet"


def as_huggingface(rows: Records, root: Path) -> Path:
    datasets.Dataset.from_list(rows).save_to_disk(str(root / "hf"))
    return root / "hf"


def as_synthetic(rows: Records, root: Path) -> Path:
    return Path("synthetic")


WRITERS = {
    "jsonl": as_jsonl,
    "csv": as_csv,
    "parquet": as_parquet,
    "huggingface": as_huggingface,
    "synthetic": as_synthetic,
}


@pytest.mark.parametrize("task", TEXT_TASKS)
@pytest.mark.parametrize("kind", sorted(WRITERS))
def test_every_format_brings_the_same_texts(tmp_path: Path, kind: str, task: TaskName) -> None:
    path = WRITERS[kind](records(task), tmp_path)
    data = SMALL.model_copy(update={"path": str(path)})
    assert detect_text(data) == {"huggingface": "huggingface", "synthetic": "synthetic"}.get(kind, "manifest")
    listed = [parse(record, task, data) for record in text_listing(data, task).records]
    wanted = [parse(TextRecord("x", n, row), task, data) for n, row in enumerate(records(task))]
    shown = [[(e.row.label, e.text, e.context, e.labels, e.answers, e.key) for e in of] for of in (listed, wanted)]
    assert shown[0] == shown[1]
    assert len(shown[0]) == 300


def test_the_table_of_formats_is_covered() -> None:
    assert set(TEXT_FORMATS) == {"manifest", "folder", "huggingface", "synthetic"}


@pytest.mark.parametrize("task", TEXT_TASKS)
def test_what_the_stage_leaves(tmp_path: Path, task: TaskName) -> None:
    """Every contract of the files in one place, for each task."""
    splits = run(SMALL, tmp_path / "out", task)
    pairs = read_texts(tmp_path / "out")
    assert splits.synthetic
    assert splits.root == "."
    assert len(pairs) == 300
    assert splits.calibration == sum(s.calibration for s, _ in pairs)
    assert {s.split for s, _ in pairs if s.calibration} == {"train"}
    parts = Counter(s.split for s, _ in pairs)
    assert parts["test"] == pytest.approx(45, abs=12)
    assert parts["validation"] == pytest.approx(45, abs=12)
    for sample, row in pairs:
        plain = row.text if isinstance(row.text, str) else " ".join(row.text)
        text = plain if row.context is None else f"{plain}\n{row.context}"
        assert sample.sha256 == hashlib.sha256(normalise(text).encode()).hexdigest()
    audit = json.loads((tmp_path / "out/audit.json").read_text())
    assert audit["texts"] == sum(audit["lengths"]["words"]["counts"]) == 300
    assert audit["texts_per_split"] == dict(parts)
    assert (tmp_path / "out/bad_files.jsonl").read_text() == ""


def test_classes_and_labels_of_each_task(tmp_path: Path) -> None:
    one = run(SMALL, tmp_path / "one", "text-classification")
    assert one.classes == tuple(sorted(INTENTS))
    rows = {f"tickets:{n}": row for n, row in enumerate(records("text-classification"), start=1)}
    assert all(one.classes[s.label] == rows[s.path]["label"] for s in read_samples(tmp_path / "one"))
    many = run(SMALL, tmp_path / "many", "multi-label-classification")
    assert many.classes == tuple(sorted([*INTENTS, *(f"severity-{name}" for name in SEVERITIES)]))
    assert all(len(row.labels) == 2 for _, row in read_texts(tmp_path / "many"))
    words = run(SMALL, tmp_path / "words", "token-classification")
    assert words.classes == ("O", "B-LOCATION", "B-PART", "B-VALUE", "I-LOCATION", "I-PART", "I-VALUE")
    assert all(len(row.labels) == len(row.text) for _, row in read_texts(tmp_path / "words"))
    run(SMALL, tmp_path / "questions", "question-answering")
    for _, row in read_texts(tmp_path / "questions"):
        ((start, answer),) = row.answers
        assert (row.context or "")[start:].startswith(answer)


def test_labels_of_huggingface_go_by_name(tmp_path: Path) -> None:
    names = ["zebra", "ant", "bee"]
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=names),
            "many": datasets.Sequence(datasets.ClassLabel(names=names)),
        }
    )
    content = {
        "text": [f"text number {n} of an animal" for n in range(60)],
        "label": [n % 3 for n in range(60)],
        "many": [[n % 3, (n + 1) % 3] for n in range(60)],
    }
    part = datasets.Dataset.from_dict(content, features=features)
    part.save_to_disk(str(tmp_path / "hf"))
    part.to_parquet(str(tmp_path / "data.parquet"))
    for path in (tmp_path / "hf", tmp_path / "data.parquet"):
        data = Data(path=str(path), calibration=12)
        splits = run(data, tmp_path / "out")
        assert splits.classes == ("ant", "bee", "zebra")
        first = read_samples(tmp_path / "out")[0]
        assert splits.classes[first.label] == "zebra"
        several = data.model_copy(update={"columns": Columns(label="many")})
        splits = run(several, tmp_path / "out", "multi-label-classification")
        labels = read_texts(tmp_path / "out")[0][1].labels
        assert [splits.classes[label] for label in labels] == ["ant", "zebra"]


def test_huggingface_splits_and_an_unlabelled_one(tmp_path: Path) -> None:
    rows = records("text-classification", 400)
    parts = {"train": rows[:240], "validation": rows[240:300], "test": rows[300:360], "unlabelled": rows[360:]}
    named = {name: datasets.Dataset.from_list(part) for name, part in parts.items()}
    named["unlabelled"] = named["unlabelled"].remove_columns(["label"])
    datasets.DatasetDict(named).save_to_disk(str(tmp_path / "hf"))
    run(Data(path=str(tmp_path / "hf"), calibration=12), tmp_path / "out")
    samples = read_samples(tmp_path / "out")
    assert Counter(s.split for s in samples) == {name: len(part) for name, part in parts.items()}
    assert samples[0].path == "train:1"
    assert {s.label for s in samples if s.split == "unlabelled"} == {-1}


def test_shards_of_a_split_and_a_validation_part_cut_from_train(tmp_path: Path) -> None:
    rows = records("text-classification", 200)
    for name, part in (
        ("train-00000-of-00002", rows[:80]),
        ("train-00001-of-00002", rows[80:150]),
        ("test", rows[150:]),
    ):
        as_parquet(part, tmp_path).rename(tmp_path / f"{name}.parquet")
    run(Data(path=str(tmp_path), calibration=12), tmp_path / "out")
    counts = Counter((s.split, s.path.split("-")[0].split(".")[0]) for s in read_samples(tmp_path / "out"))
    assert counts["test", "test"] == 50
    assert counts["train", "train"] + counts["validation", "train"] == 150
    assert counts["validation", "train"] == pytest.approx(150 * 0.15 / 0.85, abs=6)


def test_a_corpus_for_pretraining(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one text\n\n  another \n", encoding="utf-8")
    assert read_corpus(str(tmp_path / "a.txt"), Columns()) == ["one text", "another"]
    path = as_jsonl([{"text": "one"}, {"text": " "}, {"text": "two"}], tmp_path)
    assert read_corpus(str(path), Columns()) == ["one", "two"]
    with pytest.raises(RejectedError, match="no column"):
        read_corpus(str(path), Columns(text="body"))


def test_words_and_questions_without_labels(tmp_path: Path) -> None:
    extra = tmp_path / "extra.txt"
    extra.write_text("The pump leaks .\n")
    out = tmp_path / "out"
    out.mkdir()
    prepare_texts(SMALL, task="token-classification", seed=0, out=out, unlabelled=str(extra))
    sample, row = read_texts(out, "unlabelled")[0]
    assert (sample.label, row.text, row.labels) == (-1, ("The", "pump", "leaks", "."), ())
    with pytest.raises(RejectedError, match="questions need contexts"):
        prepare_texts(SMALL, task="question-answering", seed=0, out=out, unlabelled=str(extra))
    path = as_jsonl([{"text": "Which?", "context": "The pump."}], tmp_path)
    prepare_texts(SMALL, task="question-answering", seed=0, out=out, unlabelled=str(path))
    assert read_texts(out, "unlabelled")[0][1].context == "The pump."


# Splits


@settings(max_examples=12, deadline=None)
@given(
    counts=st.lists(st.integers(6, 30), min_size=2, max_size=4),
    copies=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=8),
    seed=st.integers(0, 9),
)
def test_any_set_is_cut_by_class_and_group(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int], copies: list[tuple[int, int]], seed: int
) -> None:
    root = tmp_path_factory.mktemp("any")
    rows = [
        {"text": f"c{c} x{c}y{n} z{n * 31} w{c}v{n * 7}", "label": f"c{c}"}
        for c, of in enumerate(counts)
        for n in range(of)
    ]
    rows += [dict(rows[(at + 6 * c) % len(rows)]) for at, c in copies]
    data = Data(path=str(as_jsonl(rows, root)), calibration=12)
    run(data, root / "out", seed=seed)
    samples = read_samples(root / "out")
    parts: dict[str, set[str]] = {}
    for sample in samples:
        parts.setdefault(sample.sha256, set()).add(sample.split)
    assert all(len(of) == 1 for of in parts.values())
    seen = {(s.split, s.label) for s in samples}
    assert len(seen) == 3 * len(counts)
    first = (root / "out/samples.jsonl").read_bytes()
    assert run(data, root / "out", seed=seed).data_hash
    assert (root / "out/samples.jsonl").read_bytes() == first


def test_strata_go_by_the_rarest_label() -> None:
    rows = [("a", "b"), ("a",), ("a", "c"), ("c", "b"), ()]
    entries = [Entry(parse_row(labels), "x", labels=labels) for labels in rows]
    assert strata(entries, "multi-label-classification") == ["b", "a", "c", "b", ""]
    tags = [("O", "B-X", "I-X"), ("O", "O"), ("B-Y", "O", "B-X")]
    entries = [Entry(parse_row(labels), labels, labels=labels) for labels in tags]
    assert strata(entries, "token-classification") == ["X", "O", "Y"]


def parse_row(labels: tuple[str, ...]) -> Any:
    entry = parse(TextRecord("x", 1, {"text": "x", "label": list(labels)}), "multi-label-classification", Data())
    assert isinstance(entry, Entry)
    return entry.row


# Normalised texts


@given(st.text())
def test_normalised_texts_stay_as_they_are(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
    assert once == once.strip()


@given(st.text(st.characters(codec="ascii"), max_size=40), st.sampled_from([" ", "\t", "\n", "\u3000", "\u00a0 "]))
def test_case_width_and_blanks_do_not_count(text: str, blank: str) -> None:
    wide = "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)
    for same in (text.upper(), wide, f" {text}\r\n", blank.join(text.split(" "))):
        assert normalise(same) == normalise(text)
    if any(c.isalnum() for c in text):
        assert normalise(text) != normalise(text + "x")


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_text_is_at_fault_only_if_nothing_of_it_shows(text: str) -> None:
    shows = any(not unicodedata.category(c).startswith(("C", "Z")) for c in text)
    why = fault(text, 10**6)
    assert (why is None) == (shows and "\0" not in text)


# Near-duplicates


WORD = st.sampled_from([f"w{n}" for n in range(12)])


@given(st.lists(st.lists(WORD, min_size=1, max_size=25), min_size=1, max_size=12), st.floats(0.3, 1.0))
@settings(max_examples=60, deadline=None)
def test_near_texts_are_what_their_shingles_say(words: list[list[str]], jaccard: float) -> None:
    """No pair is wrong, and none that share a signature is missed; equal texts are no pairs."""
    texts = [" ".join(of) for of in words]
    parts = ["train" if n % 2 else "test" for n in range(len(texts))]
    pairs, cut = near_texts(texts, parts, jaccard, {"train"})
    assert not cut
    grams = [shingles(text) for text in texts]
    for pair in pairs:
        assert texts[pair.first] != texts[pair.second]
        assert parts[pair.first] != parts[pair.second] or parts[pair.first] == "train"
        assert similarity(grams[pair.first], grams[pair.second]) >= jaccard
        assert pair.distance == round(100 * (1 - similarity(grams[pair.first], grams[pair.second])))
    found = {frozenset((texts[p.first], texts[p.second])) for p in pairs}
    for a in range(len(texts)):
        for b in range(a):
            if grams[a] == grams[b] and texts[a] != texts[b] and parts[a] != parts[b]:
                assert frozenset((texts[a], texts[b])) in found


@given(st.sets(st.integers(0, 2**64 - 1), min_size=1, max_size=80), st.floats(0.0, 1.0))
@settings(max_examples=40, deadline=None)
def test_signatures_estimate_the_overlap(items: set[int], share: float) -> None:
    first = frozenset(items)
    second = frozenset(list(items)[: max(1, int(share * len(items)))]) | {2**64 - 3}
    a, b = signatures([first, second])
    estimate, exact = float(np.mean(a == b)), similarity(first, second)
    assert abs(estimate - exact) <= 6 * np.sqrt(max(exact * (1 - exact), 1 / 128) / 128)


@pytest.mark.parametrize("jaccard", [0.3, 0.5, 0.8, 0.9])
def test_pairs_at_the_threshold_are_found(jaccard: float) -> None:
    """200 pairs of texts of 400 words each, one of them with its tail changed: no more are missed than promised."""
    rng = np.random.default_rng(7)
    texts, parts = [], []
    kept = round(400 * 2 * jaccard / (1 + jaccard)) + 3
    for number in range(60):
        words = [f"{number}x{n}" for n in rng.integers(0, 10**6, 400)]
        other = [f"{number}y{n}" for n in rng.integers(0, 10**6, 400 - kept)]
        texts += [" ".join(words), " ".join(words[:kept] + other)]
        parts += ["train", "test"]
    near = sum(similarity(shingles(a), shingles(b)) >= jaccard for a, b in zip(texts[::2], texts[1::2], strict=True))
    assert near == 60
    assert len(near_texts(texts, parts, jaccard, set())[0]) >= 57


def test_bands_keep_their_promise() -> None:
    for jaccard in (0.1, 0.5, 0.9, 0.99):
        rows = rows_per_band(jaccard)
        assert (1 - jaccard**rows) ** (128 // rows) <= 0.01
    assert rows_per_band(1.0) == 128


def test_no_texts_no_pairs() -> None:
    assert near_texts([], [], 0.9, {"all"}) == ([], False)


# The audit's numbers


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=50))
def test_histograms_count_everything(values: list[int]) -> None:
    found = histogram(values)
    assert sum(found["counts"]) == len(values)
    assert (found["min"], found["max"]) == (min(values), max(values))


@given(st.lists(st.sampled_from(["O", "B-X", "I-X", "B-Y", "I-Y"]), max_size=12))
def test_tags_made_of_whole_entities_have_no_faults(tags: list[str]) -> None:
    repaired = []
    for tag in tags:
        before = repaired[-1] if repaired else "O"
        repaired.append(f"B-{tag[2:]}" if tag.startswith("I-") and before[2:] != tag[2:] else tag)
    assert tag_faults(repaired) == []
    assert len(tag_faults(tags)) == sum(
        tag.startswith("I-") and (last == "O" or last[2:] != tag[2:])
        for last, tag in zip(["O", *tags], tags, strict=False)
    )


# Generated tickets


def test_tickets_depend_on_seed_and_number_alone() -> None:
    options = Tickets()
    assert ticket(5, options) == ticket(5, options.model_copy(update={"count": 7}))
    assert ticket(5, options) != ticket(6, options)
    assert ticket(5, options) != ticket(5, options.model_copy(update={"seed": 1}))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1), st.integers(0, 2**40))
def test_any_ticket_holds_its_entities(number: int, difficulty: float, seed: int) -> None:
    found = ticket(number, Tickets(difficulty=difficulty, seed=seed))
    assert tag_faults(found.tags) == []
    assert len(found.tags) == len(found.words)
    assert set(found.spans) == {"PART", "LOCATION", "VALUE"}
    for kind, (first, last) in found.spans.items():
        assert found.tags[first] == f"B-{kind}"
        assert set(found.tags[first + 1 : last]) <= {f"I-{kind}"}
        assert found.tags[last : last + 1] != (f"I-{kind}",)
    text, starts = joined(found.words)
    assert all(text.startswith(word, start) for word, start in zip(found.words, starts, strict=True))
    assert "{" not in text


def accuracy(difficulty: float) -> float:
    rows = list(tickets(Tickets(difficulty=difficulty), "text-classification"))
    texts, labels = [row["text"] for row in rows], [row["label"] for row in rows]
    vectors = TfidfVectorizer().fit(texts[:1900])
    model = LogisticRegression(C=10, max_iter=1000).fit(vectors.transform(texts[:1900]), labels[:1900])
    return float(model.score(vectors.transform(texts[1900:]), labels[1900:]))


@pytest.mark.slow
def test_a_bag_of_words_reads_nine_tickets_of_ten() -> None:
    assert 0.86 <= accuracy(0.3) <= 0.94
    assert accuracy(1.0) < 0.8
    assert accuracy(0.0) > 0.98


def test_no_word_gives_an_intent_away() -> None:
    rows = list(tickets(Tickets(), "text-classification"))
    having: dict[str, Counter[str]] = {}
    for row in rows:
        for word in set(row["text"].lower().split()):
            having.setdefault(word, Counter())[row["label"]] += 1
    totals = Counter(row["label"] for row in rows)
    for word, of in having.items():
        label, hits = of.most_common(1)[0]
        precision, recall = hits / of.total(), hits / totals[label]
        assert 2 * precision * recall / (precision + recall) < 0.7, word


def test_questions_are_about_the_affected_part() -> None:
    """Also where a misleading clause names another part first."""
    rows = records("question-answering", 900)
    asked = [row for row in rows if "part" in row["text"].lower() or "ticket" in row["text"].lower()]
    later = 0
    for row in asked:
        answer, (start,) = row["answers"]["text"][0], row["answers"]["answer_start"]
        assert row["context"].startswith(answer, start)
        later += any(mark in row["context"][:start] for mark in ("it is not that", "It is not that", "old ticket"))
    assert later > 5


# Drafted recipes


def loaded(text: str, folder: Path, *, smoke: bool = False) -> Recipe:
    path = folder / "drafted.yaml"
    path.write_text(text, encoding="utf-8")
    recipe = load_recipe(path, smoke=smoke)
    check_recipe(recipe)
    return recipe


@pytest.mark.parametrize("task", TEXT_TASKS)
@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "huggingface"])
def test_the_task_is_guessed_and_the_draft_loads(tmp_path: Path, kind: str, task: TaskName) -> None:
    path = WRITERS[kind](records(task, 120), tmp_path)
    assert is_text(path)
    text = draft(path)
    recipe = loaded(text, tmp_path)
    assert recipe.task == task
    assert recipe.metric == ("balanced_accuracy" if task == "text-classification" else METRICS[task][0])  # 120 vary
    assert recipe.data.path == str(path)
    assert recipe.student.model == "teacher"
    assert recipe.student.text.layers == (0, 2, 4)
    assert recipe.student.text.max_length == recipe.teacher.text.max_length == 128
    assert recipe.data.calibration == 84
    assert loaded(text, tmp_path, smoke=True).student.training.epochs == 1
    assert loaded(draft(path, explain=True), tmp_path) == recipe
    run(recipe.data, tmp_path / "out", recipe.task)


def test_balanced_texts_are_judged_by_accuracy(tmp_path: Path) -> None:
    recipe = loaded(draft(as_jsonl(records("text-classification", 600), tmp_path)), tmp_path)
    assert recipe.metric == "accuracy"
    assert recipe.student.training.sampling == "shuffle"


def test_unbalanced_texts_other_columns_and_separators(tmp_path: Path) -> None:
    rows = [{"message": f"text {n} {n * 7} of it", "topic": "rare" if n % 8 == 0 else "usual"} for n in range(80)]
    text = draft(as_jsonl(rows, tmp_path))
    recipe = loaded(text, tmp_path)
    assert recipe.metric == "balanced_accuracy"
    assert recipe.student.training.sampling == "balanced"
    assert (recipe.data.columns.text, recipe.data.columns.label) == ("message", "topic")
    assert recipe.student.text.max_length == 16
    assert "few texts of rare 10" in text
    rows = [{"x": f"a longer text {n} {n * 7}", "y": f"{'a' if n % 2 else 'b'};c" if n % 3 else "c"} for n in range(80)]
    recipe = loaded(draft(as_jsonl(rows, tmp_path)), tmp_path)
    assert recipe.task == "multi-label-classification"
    assert recipe.data.label_separator == ";"
    assert (recipe.data.columns.text, recipe.data.columns.label) == ("x", "y")


def test_what_the_run_would_stop_at_is_noted(tmp_path: Path) -> None:
    rows = [
        {**row, "split": "test" if n < 40 else "train"} for n, row in enumerate(records("text-classification", 120))
    ]
    rows.append({**rows[0], "split": "train"})
    other = next(row["label"] for row in rows if row["label"] != rows[1]["label"])
    rows.append({**rows[1], "label": other, "split": "test"})
    text = draft(as_jsonl(rows, tmp_path))
    assert "1 texts are in two splits" in text
    assert "1 equal texts carry different labels" in text
    assert "splits are given by the data: test, train" in text


def test_pictures_are_not_taken_for_texts(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("file,label\na.png,x\n")
    assert not is_text(tmp_path / "m.csv")
    assert not is_text("synthetic")
    assert not is_text(tmp_path / "nowhere")
    (tmp_path / "train").mkdir()
    assert not is_text(tmp_path)


ANY = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
SOUND = st.tuples(ANY, st.sampled_from("aß字"), ANY).map("".join)
"""With something that can be read."""


@given(st.lists(SOUND, min_size=12, max_size=20))
@settings(max_examples=15, deadline=None)
def test_any_texts_give_a_recipe(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    assume(all(fault(text, 10**6) is None for text in texts))
    folder = tmp_path_factory.mktemp("any")
    rows = [{"text": text, "label": f"c{n % 2}"} for n, text in enumerate(texts)]
    found = describe_text(as_jsonl(rows, folder))
    assert found["texts"] == {"all": len(rows)}
    assert loaded(draft(folder / "data.jsonl"), folder).task == "text-classification"


# Real sets


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "column", "classes", "counts", "twice"),
    [("banking77", "category", 77, (10003, 3080), 7), ("trec", "coarse", 6, (5452, 500), 11)],
)
def test_real_sets(
    shared: Path, tmp_path: Path, name: str, column: str, classes: int, counts: tuple[int, int], twice: int
) -> None:
    path = shared / "data" / name
    text = draft(path)
    assert f"{twice} texts are in two splits" in text
    recipe = loaded(text, tmp_path)
    assert recipe.task == "text-classification"
    assert recipe.data.columns.label == column
    data = recipe.data.model_copy(update={"allow_leakage": True, "on_conflict": "keep"})
    splits = run(data, tmp_path / "out")
    assert len(splits.classes) == classes
    parts = Counter(s.split for s in read_samples(tmp_path / "out"))
    assert (parts["train"] + parts["validation"], parts["test"]) == counts
    assert set(splits.counts["validation"].values()) & {0} == set()
    found = {f["kind"]: f["count"] for f in json.loads((tmp_path / "out/audit.json").read_text())["findings"]}
    assert found["leakage"] == twice
