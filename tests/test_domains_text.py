"""Domain adaptation of texts: how a target is read and audited, what is refused, the pairs of a step, the feature."""

from __future__ import annotations

import importlib
import json
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from made_texts import PARTS, PLACES, SYMPTOMS, TIMES

from distilledge.models import text
from distilledge.models.errors import DistilledgeError, GateFailedError, RejectedError, UsageError
from distilledge.models.features import FeatureTap
from distilledge.pipeline.chain import Chain
from distilledge.pipeline.data.text_prepare import prepare_texts
from distilledge.pipeline.recipe import Recipe
from distilledge.pipeline.recipe_check import check_recipe
from distilledge.pipeline.record import Splits, read_samples, read_texts
from distilledge.pipeline.steps import steps
from distilledge.pipeline.store import Store, Stored
from distilledge.pipeline.suggest import propose
from distilledge.pipeline.suggest_look import facts_of
from distilledge.pipeline.training.adaptation import head_width
from distilledge.pipeline.training.text_domain_feed import TextPairs
from distilledge.pipeline.training.text_feed import LengthSteps

TELEGRAM = {
    "leak": "{} : drips , puddle of oil",
    "noise": "{} : grinding , very loud",
    "no power": "{} : dead , no reaction to switch",
    "overheating": "{} : hot , cannot touch",
    "vibration": "{} : shaking , loose screws",
}
"""The same symptoms in the words of another plant: a made shift."""
CLASSES = ("leak", "noise", "overheating")
Pair = tuple[str, str]


def sentences(count: int, *, first: int = 0, of_target: bool = False) -> list[Pair]:
    """(text, label) of so many different tickets of each class, from number ``first`` on."""
    places = sorted(product(PARTS, PLACES, TIMES), key=lambda of: hash_of(" ".join(of)))[first : first + count]
    found = []
    for label, (part, place, time) in product(CLASSES, places):
        if of_target:
            found.append((f"{time} {place} - {TELEGRAM[label].format(part)}", label))
        else:
            found.append((f"{place} : {SYMPTOMS[label].format(part)} , since {time} .", label))
    return found


def hash_of(name: str) -> int:
    return int.from_bytes(name.encode()[::-1]) % 10_007


class Files(NamedTuple):
    """Files of a source with labels and splits of its own to come, of unlabelled and of labelled texts of a target."""

    source: Path
    target: Path
    test: Path


def table(path: Path, rows: list[Any], header: tuple[str, ...] = ("text", "label")) -> Path:
    lines = [json.dumps(dict(zip(header, row, strict=True))) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def files(root: Path, *, source: int = 20, learned: int = 12, tested: int = 6) -> Files:
    free = [words for words, _ in sentences(learned, of_target=True)]
    (root / "target.txt").write_text("\n".join(free) + "\n", encoding="utf-8")
    return Files(
        table(root / "source.jsonl", sentences(source, first=40)),
        root / "target.txt",
        table(root / "test.jsonl", sentences(tested, first=90, of_target=True)),
    )


def recipe_of(given: Files, **data: Any) -> Recipe:
    target = {"path": str(given.target), "test": str(given.test)}
    own = {"path": str(given.source), "calibration": 8, "target": target, **data}
    return Recipe.model_validate({"name": "t", "task": "text-classification", "data": own})


def prepared(root: Path, given: Files, **data: Any) -> tuple[Splits, Path]:
    out = root / "store" / "data-0"
    out.mkdir(parents=True, exist_ok=True)
    made = recipe_of(given, **data)
    return prepare_texts(made.data, task=made.task, seed=0, out=out), out


def refused(root: Path, given: Files, **data: Any) -> DistilledgeError:
    with pytest.raises(DistilledgeError) as error:
        prepared(root, given, **data)
    return error.value


def test_texts_of_the_target_are_learned_from_without_labels_and_scored_with(tmp_path: Path) -> None:
    splits, out = prepared(tmp_path, files(tmp_path))
    free, test = read_texts(out, "target"), read_texts(out, "test")
    assert [row.text for _, row in free] == [words for words, _ in sentences(12, of_target=True)]
    assert {s.label for s, _ in free} == {-1}
    assert [(row.text, splits.classes[s.label]) for s, row in test] == sentences(6, first=90, of_target=True)
    assert splits.counts["test"] == dict.fromkeys(CLASSES, 6)
    own = read_texts(out, "source-test")
    assert {splits.classes[s.label] for s, _ in own} == set(CLASSES)
    assert all("since" in str(row.text) for _, row in own)
    assert {s.split for s in read_samples(out) if s.calibration} == {"target"}  # where the student will run
    assert len({s.path for s in read_samples(out)}) == len(read_samples(out))
    assert free[0][0].path == "target/target.txt:1"
    assert test[0][0].path == "target-test/test.jsonl:1"
    audit = json.loads((out / "audit.json").read_text())
    assert audit["texts_per_split"]["target"] == 36


def test_files_are_calibrated_and_compared_on_texts_of_the_target(tmp_path: Path) -> None:
    given = files(tmp_path)
    splits, out = prepared(tmp_path, given)
    chain = Chain(recipe_of(given), Store(tmp_path / "store"), (), lambda _: None)
    chain.done["data"] = Stored(splits, out, "", False, 0.0)
    learned = [words for words, _ in sentences(12, of_target=True)]
    parts = [[row.text for row in texts] for _, _, texts in (chain.calibration(), chain.compared())]
    assert len(parts[0]) == 8
    assert sorted(parts[0] + parts[1]) == sorted(learned)
    assert [s.path for s in chain.compared()[0]] == [s.path for s in read_samples(out, "target") if not s.calibration]
    prepared(tmp_path, given, calibration=36)  # then none is left to compare with
    assert {s.split for s in chain.compared()[0]} == {"validation"}


def test_labels_of_a_table_are_not_read(tmp_path: Path) -> None:
    given = files(tmp_path)
    rows = [(words, "of no class") for words, _ in sentences(12, of_target=True)]
    splits, out = prepared(tmp_path, given._replace(target=table(tmp_path / "all.jsonl", rows)))
    assert {s.label for s in read_samples(out, "target")} == {-1}
    assert splits.classes == CLASSES
    rows[3] = ("   ", "x")
    given = given._replace(target=table(tmp_path / "all.jsonl", rows))
    assert refused(tmp_path, given).code == "E3113"
    _, out = prepared(tmp_path, given, max_bad={"train": 0.1})
    bad = [json.loads(line) for line in (out / "bad_files.jsonl").read_text().splitlines()]
    assert bad == [{"path": "target/all.jsonl:4", "split": "target", "reason": "empty text"}]
    assert len(read_samples(out, "target")) == 35


def test_one_file_brings_both_parts_of_the_target(tmp_path: Path) -> None:
    rows = [(words, "", "train") for words, _ in sentences(8, of_target=True)]  # no label, and none is wanted
    rows += [(*row, "test") for row in sentences(4, first=90, of_target=True)]
    both = table(tmp_path / "both.jsonl", rows, ("text", "label", "split"))
    given = files(tmp_path)
    target = {"path": str(both)}
    _, out = prepared(tmp_path, given, target=target)
    assert [len(read_samples(out, part)) for part in ("target", "test")] == [24, 12]  # type: ignore[arg-type]
    assert {s.label for s in read_samples(out, "test")} == {0, 1, 2}
    table(both, rows[:24], ("text", "label", "split"))
    assert refused(tmp_path, given, target=target).code == "E3690"
    table(both, rows[24:], ("text", "label", "split"))
    assert refused(tmp_path, given, target=target).code == "E3691"
    table(both, rows, ("text", "label", "split"))
    _, out = prepared(tmp_path, given, target={"path": str(both), "test": str(both)})  # named twice: the same
    assert [len(read_samples(out, part)) for part in ("target", "test")] == [24, 12]  # type: ignore[arg-type]


@pytest.mark.parametrize("where", ["target", "train", "validation"])
def test_a_test_text_that_is_learned_from_is_found_whatever_its_case_and_blanks(tmp_path: Path, where: str) -> None:
    given = files(tmp_path)
    words, label = sentences(1, first=90, of_target=True)[0]
    copy = "  " + words.upper().replace(" ", "  ")
    if where == "target":
        with given.target.open("a", encoding="utf-8") as file:
            file.write(copy + "\n")
    else:
        parts = ("train", "train", "train", "validation", "test")
        rows = [(*row, parts[i % 5]) for i, row in enumerate(sentences(20, first=40))]
        table(given.source, [*rows, (copy, label, where)], ("text", "label", "split"))
    with pytest.raises(GateFailedError, match="E5101") as error:
        prepared(tmp_path, given)
    assert error.value.exit_code == 5
    assert "test target-test/test.jsonl:1" in error.value.what
    splits, _ = prepared(tmp_path, given, allow_leakage=True)
    assert any("texts are in two splits (allowed)" in line for line in splits.warnings)


def test_a_test_text_in_the_sources_test_part_is_learned_from_by_nobody(tmp_path: Path) -> None:
    given = files(tmp_path)
    parts = ("train", "train", "train", "validation", "test")
    rows = [(*row, parts[i % 5]) for i, row in enumerate(sentences(20, first=40))]
    same = (*sentences(1, first=90, of_target=True)[0], "test")
    table(given.source, [*rows, same], ("text", "label", "split"))
    _, out = prepared(tmp_path, given)
    assert len(read_samples(out, "source-test")) == 13


def test_nearly_the_same_text_is_said(tmp_path: Path) -> None:
    given = files(tmp_path)
    words, _ = sentences(1, first=90, of_target=True)[0]
    with given.target.open("a", encoding="utf-8") as file:
        file.write(f"{words} again\n")
    splits, _ = prepared(tmp_path, given, near_duplicate_jaccard=0.6)
    assert any("texts in two splits look alike" in line for line in splits.warnings)


def test_what_cannot_be_a_target_is_refused(tmp_path: Path) -> None:
    given = files(tmp_path)
    rows = [(words, {"noise": "nose"}.get(label, label)) for words, label in sentences(6, first=90, of_target=True)]
    error = refused(tmp_path, given._replace(test=table(tmp_path / "other.jsonl", rows)))
    assert (error.code, error.hint) == ("E3533", "did you mean noise")
    assert refused(tmp_path, given, target={"path": "synthetic", "test": str(given.test)}).code == "E3692"
    rows = [(words, "leak") for words, _ in sentences(6, first=90, of_target=True)]
    splits, _ = prepared(tmp_path, given._replace(test=table(tmp_path / "other.jsonl", rows)))
    assert any("classes without a test text of the target: noise, overheating" in line for line in splits.warnings)
    with pytest.raises(RejectedError, match="E3103"):
        prepared(tmp_path, given, target={"path": str(tmp_path / "nowhere.txt"), "test": str(given.test)})


def recipe(task: str = "text-classification", **teacher: Any) -> Recipe:
    own = {"name": "t", "task": task, "data": {"target": {"path": "x"}}, "teacher": teacher}
    return Recipe.model_validate(own)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (recipe(strategy="adabn"), "BatchNorm, which text models do not have"),
        (recipe("token-classification", strategy="dann"), "not of token-classification"),
        (recipe("multi-label-classification"), "not of multi-label-classification"),
        (recipe(strategy="coral", training={"early_stopping": 1}), "early_stopping"),
    ],
)
def test_what_cannot_be_meant_is_said(made: Recipe, said: str) -> None:
    with pytest.raises(UsageError, match="E2016") as error:
        check_recipe(made)
    assert said in f"{error.value.what} {error.value.hint}"


def test_a_target_of_texts_contradicts_nothing() -> None:
    for name in ("dann", "coral", "mmd", "fine-tune"):
        check_recipe(recipe(strategy=name))


def test_the_fingerprint_knows_the_targets_texts_but_not_where_they_lie(tmp_path: Path) -> None:
    given = files(tmp_path)
    before = steps(recipe_of(given), {})[0]
    moved = given._replace(target=given.target.rename(tmp_path / "target2.txt"))
    moved.target.rename(given.target)
    with given.target.open("a", encoding="utf-8") as file:
        file.write("one more\n")
    after = steps(recipe_of(given), {})[0]
    assert set(before.inputs["target"]) == {"path", "test"}
    assert before.inputs["target"]["test"] == after.inputs["target"]["test"]
    assert before.fingerprint != after.fingerprint
    plain = Recipe.model_validate({"name": "t", "task": "text-classification"})
    assert all("target" not in json.dumps(s.inputs) for s in steps(plain, {}) if s.kind in ("data", "teacher"))


def test_mmd_is_proposed_where_a_recipe_names_a_target_of_texts(tmp_path: Path) -> None:
    given = files(tmp_path)
    made = propose(facts_of(recipe_of(given), given.source))
    assert made.strategy == "mmd"
    assert str(given.target) in made.lines
    assert "adabn" not in "".join(made.also)  # it is of pictures
    plain = recipe_of(given, target=None)
    assert propose(facts_of(plain, given.source)).strategy != "mmd"
    assert propose(facts_of(plain, given.source, target="x.txt")).strategy == "mmd"


# --- steps


def pairs(targets: int) -> tuple[LengthSteps, TextPairs, Any]:
    random = np.random.default_rng(0)
    lengths, others = random.integers(4, 40, 50), random.integers(4, 40, targets)
    labels = np.arange(50) % 3
    own = LengthSteps(lengths, labels, 4, seed=5, balanced=False, rank=0, processes=1)
    return own, TextPairs(own, others, labels=labels, seed=5), others


@pytest.mark.parametrize("targets", [7, 50, 200])
def test_each_step_holds_the_sources_batch_and_as_many_of_the_target(targets: int) -> None:
    own, made, _ = pairs(targets)
    order = made.order(3)
    assert order.shape == (len(made), made.step_size) == (13, 8)
    np.testing.assert_array_equal(order[:, ::2], own.order(3))  # the batches of source-only
    partners = order[:, 1::2] - 50
    assert partners.min() >= 0
    counts = np.bincount(partners.ravel(), minlength=targets)
    assert counts.max() - counts.min() <= 1
    np.testing.assert_array_equal(order, made.order(3))
    assert not np.array_equal(order, made.order(4))


def test_both_halves_of_a_step_are_of_like_length() -> None:
    own, made, others = pairs(200)
    order = made.order(0)
    mine = own._lengths[order[:, ::2]].mean(1)
    theirs = others[order[:, 1::2] - 50].mean(1)
    assert np.corrcoef(mine, theirs)[0, 1] > 0.8


# --- the feature


def test_the_losses_look_at_the_pooled_states_that_the_head_is_given() -> None:
    config = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    net = text.from_config(
        "bert",
        config,
        task="text-classification",
        classes=3,
        vocabulary_size=20,
        max_length=8,
        pooling="mean",
        pad_id=0,
    ).eval()
    ids = torch.tensor([[2, 5, 6, 3, 0], [2, 7, 8, 9, 3]])
    with FeatureTap(net, embedding=True) as tap:
        embedding = tap.outputs(net(ids)).embedding
    hidden, _ = net.hidden(ids)
    assert embedding is not None
    assert embedding.shape == (2, head_width(net))
    torch.testing.assert_close(embedding[0], hidden[0, :4].mean(0))  # padding is not pooled
    torch.testing.assert_close(net.head(embedding), net(ids))


# --- what was measured


def test_the_page_has_the_table_that_was_recorded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    recorded = json.loads((root / "benchmarks" / "results" / "domain_text.json").read_text(encoding="utf-8"))
    page = (root / "docs" / "domains.md").read_text(encoding="utf-8")
    assert importlib.import_module("domain_text").markdown(recorded) in page
    assert {"dann", "coral", "mmd", "source-only"} <= {row["method"] for row in recorded["rows"]}
    assert recorded["conditions"]["made"]
    assert not recorded["conditions"]["quick"]
