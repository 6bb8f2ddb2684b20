"""What a training on texts reads: targets of every task, batches of like length, tokenizers; and recipes that clash."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from distilledge.models.errors import RejectedError, UsageError
from distilledge.models.tasks import IGNORED
from distilledge.pipeline.recipe import Recipe, TextAugment
from distilledge.pipeline.recipe_check import check_models, check_recipe
from distilledge.pipeline.record import Sample, TextRow
from distilledge.pipeline.training import text_tokenizer
from distilledge.pipeline.training.language_feed import hold_out
from distilledge.pipeline.training.text_augment import Changed
from distilledge.pipeline.training.text_feed import (
    TARGETS,
    LengthSteps,
    Padded,
    collate_ids,
    collate_targets,
    encode,
    plain,
)
from distilledge.pipeline.training.text_start import buckets
from distilledge.targets.ondevice.text import TextEncoder, TextSpec

WORDS = ["the", "pump", "in", "hall", "two", "leaks", "oil", "where", "?", "press", "##ure", "valve", "since", "monday"]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join([*text_tokenizer.SPECIAL, *WORDS]) + "\n")
    return path


def encoder(vocabulary: Path, task: str, length: int = 16) -> TextEncoder:
    path = vocabulary.parent / "tokenizer.json"
    path.write_text(text_tokenizer.of_file(str(vocabulary)), encoding="utf-8")
    return TextEncoder(path, TextSpec(length, 0, task))


def sample(label: int = 0) -> Sample:
    return Sample("train.csv:2", label, "", "train" if label >= 0 else "unlabelled", "", False)


def target(
    vocabulary: Path, task: str, row: TextRow, *, label: int = 0, length: int = 16, classes: int = 4
) -> list[int]:
    encoded = encoder(vocabulary, task, length).encode_aligned(plain(row))
    found = TARGETS[task](sample(label), row, encoded, classes)
    assert found.dtype == np.int64
    return found.tolist()  # type: ignore[return-value]


# --- targets


def test_classes(vocabulary: Path) -> None:
    row = TextRow(text="the pump leaks")
    assert target(vocabulary, "text-classification", row, label=3) == 3
    assert target(vocabulary, "text-classification", row, label=-1) == -1


def test_sets_of_labels(vocabulary: Path) -> None:
    task = "multi-label-classification"
    assert target(vocabulary, task, TextRow(text="oil", labels=(0, 2))) == [1, 0, 1, 0]
    assert target(vocabulary, task, TextRow(text="oil")) == [0, 0, 0, 0]
    assert target(vocabulary, task, TextRow(text="oil"), label=-1) == [-1, -1, -1, -1]


@pytest.mark.parametrize(
    ("label", "length", "expected"),
    [
        (0, 16, [IGNORED, 1, IGNORED, 2, 0, IGNORED]),  # [CLS] press ##ure valve in [SEP]
        (-1, 16, [IGNORED, -1, IGNORED, -1, -1, IGNORED]),
        (0, 4, [IGNORED, 1, IGNORED, IGNORED]),  # the other words were cut off
    ],
)
def test_tags(label: int, length: int, expected: list[int], vocabulary: Path) -> None:
    """A word's tag stands at its first piece; special tokens and other pieces are not looked at."""
    row = TextRow(text=("pressure", "valve", "in"), labels=(1, 2, 0))
    assert target(vocabulary, "token-classification", row, label=label, length=length) == expected


CONTEXT = "the pump in hall two leaks oil since monday"
# [CLS] where ? [SEP] the pump in hall two leaks oil since monday [SEP]
#   0     1   2   3    4   5   6   7    8    9    10   11    12    13


@pytest.mark.parametrize(
    ("answers", "length", "expected"),
    [
        (((CONTEXT.index("hall"), "hall two"),), 16, [7, 8]),
        (((CONTEXT.index("monday"), "monday"),), 16, [12, 12]),
        (((0, CONTEXT),), 16, [4, 12]),
        (((CONTEXT.index("hall"), "hall two "),), 16, [7, 8]),  # a blank has no token
        (((CONTEXT.index("ump"), "ump"),), 16, [5, 5]),  # inside a word
        ((), 16, [0, 0]),  # no answer
        (((CONTEXT.index("monday"), "monday"),), 12, [-1, -1]),  # cut off
        (((CONTEXT.index("leaks"), "leaks oil since"),), 12, [-1, -1]),  # its end is cut off
        (((CONTEXT.index("leaks"), "leaks oil"),), 12, [9, 10]),  # just whole
        (((CONTEXT.index("hall"), "hall two"), (0, "the pump")), 16, [7, 8]),  # the first counts
    ],
)
def test_answers(answers: Any, length: int, expected: list[int], vocabulary: Path) -> None:
    row = TextRow(text="where ?", context=CONTEXT, answers=answers)
    assert target(vocabulary, "question-answering", row, length=length) == expected


def test_unlabelled_questions(vocabulary: Path) -> None:
    row = TextRow(text="where ?", context=CONTEXT, answers=((0, "the"),))
    assert target(vocabulary, "question-answering", row, label=-1) == [-1, -1]


def test_encode_counts_what_is_cut(vocabulary: Path) -> None:
    made = encoder(vocabulary, "text-classification", 5)
    pairs = [(sample(n), TextRow(text="oil " * n)) for n in range(1, 6)]
    found = encode(pairs, made, "text-classification", 9)
    assert (len(found), found.cut) == (5, 2)
    assert [len(ids) for ids in found.ids] == [3, 4, 5, 5, 5]
    assert found.labels.tolist() == [1, 2, 3, 4, 5]
    several = encode([*pairs, (sample(-1), TextRow(text="oil"))], made, "multi-label-classification", 2)
    assert several.labels.tolist() == [0, 0, 0, 0, 0, -1]


# --- batches


def test_collate() -> None:
    ids = collate_ids([np.array(row, np.int32) for row in ([5, 6, 7], [8])], 9)
    assert ids.dtype == torch.int64
    assert ids.tolist() == [[5, 6, 7], [8, 9, 9]]
    assert collate_targets([np.array(3), np.array(-1)]).tolist() == [3, -1]
    assert collate_targets([np.array([0, 1]), np.array([1, 1])]).tolist() == [[0, 1], [1, 1]]
    ragged = [np.array([IGNORED, 2, IGNORED]), np.array([1])]
    assert collate_targets(ragged).tolist() == [[IGNORED, 2, IGNORED], [1, IGNORED, IGNORED]]


def steps_of(lengths: np.ndarray, step_size: int, seed: int = 0, **rest: Any) -> LengthSteps:
    options = {"balanced": False, "rank": 0, "processes": 1, **rest}
    return LengthSteps(lengths, np.zeros(len(lengths), np.int64), step_size, seed=seed, **options)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=200), st.integers(1, 33), st.integers(0, 5))
def test_every_text_is_in_every_epoch(lengths: list[int], step_size: int, epoch: int) -> None:
    made = steps_of(np.array(lengths), step_size)
    order = made.order(epoch)
    assert order.shape == (len(made), made.step_size)
    counts = np.bincount(order.ravel(), minlength=len(lengths))
    assert counts.min() == 1
    assert (counts - 1).sum() == order.size - len(lengths)  # the start again, until the last step is full
    assert np.array_equal(order, steps_of(np.array(lengths), step_size).order(epoch))


def test_like_lengths_go_together_in_random_order() -> None:
    lengths = np.random.default_rng(0).integers(3, 128, 2000)
    padded = {}
    for name, made in (("sorted", steps_of(lengths, 16)), ("random", None)):
        order = made.order(0) if made else np.random.default_rng(1).permutation(2000).reshape(-1, 16)
        padded[name] = (lengths[order].max(1, keepdims=True) - lengths[order]).sum() / lengths[order].sum()
    assert padded["sorted"] < 0.15 < 0.5 < padded["random"]
    made = steps_of(lengths, 16)
    first, second = made.order(0), made.order(1)
    assert not np.array_equal(first, second)
    means = lengths[first].mean(1)
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3, "short steps come at any time"
    assert not np.array_equal(first, steps_of(lengths, 16, seed=1).order(0))


def test_processes_share_a_step() -> None:
    lengths = np.arange(40)
    whole = [[i for _, i in keys] for keys in steps_of(lengths, 8)]
    parts = [[[i for _, i in keys] for keys in steps_of(lengths, 8, rank=r, processes=2)] for r in (0, 1)]
    for step, (first, second) in enumerate(zip(*parts, strict=True)):
        assert sorted(first + second) == sorted(whole[step])
        assert len(first) == len(second) == 4


def test_padded_goes_on_where_it_stopped() -> None:
    ids = [np.full(n + 1, n, np.int32) for n in range(12)]
    steps = steps_of(np.array([len(i) for i in ids]), 4)
    loader = Padded(ids, steps, 99, pin=False)
    whole = list(loader)
    steps.first = 1
    rest = list(loader)
    assert len(rest) == len(whole) - 1
    for a, b in zip(whole[1:], rest, strict=True):
        assert torch.equal(a.inputs, b.inputs)
        assert torch.equal(a.indices, b.indices)
    first = whole[0]
    for row, index in zip(first.inputs, first.indices.tolist(), strict=True):
        assert row.tolist() == [index] * (index + 1) + [99] * (first.inputs.shape[1] - index - 1)


@pytest.mark.parametrize("count", [1, 2, 19, 60, 2399, 40_000])
def test_few_texts_of_a_corpus_are_kept_to_validate_on(count: int) -> None:
    learned, kept = hold_out([np.zeros(1, np.int32)] * count)
    assert kept
    assert learned
    if count > 1:
        assert sorted(learned + kept) == list(range(count))
        assert len(kept) <= max(1, count * 0.1)
    assert len(kept) <= 1100


@pytest.mark.parametrize(
    ("longest", "expected"), [(16, (16,)), (10, (10,)), (64, (16, 32, 64)), (100, (16, 32, 64, 100))]
)
def test_buckets(longest: int, expected: tuple[int, ...]) -> None:
    assert buckets(longest) == expected


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5", "bert"])
def test_padding_behind_a_text_without_tokens_changes_nothing(kind: str) -> None:
    """It is one pad itself; tokenizers of decoders add nothing to it."""
    from distilledge.models import text

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    net = text.from_config(
        kind, sizes, task="text-classification", classes=3, vocabulary_size=20, max_length=8, pad_id=1
    ).eval()
    with torch.no_grad():
        found = [net(torch.full((1, length), 1)) for length in (1, 2, 8)]
    assert (found[0] - found[1]).abs().max() < 1e-6
    assert (found[0] - found[2]).abs().max() < 1e-6


# --- changed copies


def test_copies_are_changed_and_texts_are_not() -> None:
    special = text_tokenizer.Special(pad=0, unknown=1, separator=3, mask=4, others=(0, 1, 2, 3, 4))
    made = Changed(TextAugment(copies=1, replace=0.0, mask=0.5), special, count=2, seed=0, language=None)
    ids = torch.tensor([[2, *range(5, 25), 3, 0, 0]] * 2)
    found = made(ids, 0, [1, 3])
    assert torch.equal(found[0], ids[0]), "index 1 is a text"
    masked = found[1] == 4
    assert 4 <= int(masked.sum()) <= 16
    assert torch.equal(found[1][~masked], ids[1][~masked])
    assert torch.equal(found[1][[0, 21, 22, 23]], ids[1][[0, 21, 22, 23]]), "special tokens and padding stay"
    assert torch.equal(made(ids, 0, [1, 3]), found)
    assert not torch.equal(made(ids, 1, [1, 3]), found), "otherwise in each epoch"
    shorter = made(ids[1:, :22], 0, [3])
    assert torch.equal(shorter[0], found[1, :22]), "whatever stands beside it"


def test_words_are_replaced_by_words() -> None:
    """Never by a special token: padding inside of a text would hide it."""
    from distilledge.models import text

    special = text_tokenizer.Special(pad=0, unknown=1, separator=3, mask=4, others=(0, 1, 2, 3, 4))
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    net = text.from_config(
        "bert", sizes, task="masked-language-modelling", classes=2, vocabulary_size=26, max_length=24, pad_id=0
    ).eval()
    with torch.no_grad():
        net.head.bias[:5] = 50.0  # it would say nothing but special tokens
    made = Changed(TextAugment(copies=1, replace=1.0, mask=0.0), special, count=1, seed=0, language=net)
    ids = torch.tensor([[2, *range(5, 25), 3, 0, 0]])
    found = made(ids, 0, [1])
    assert torch.equal(found[0, [0, 21, 22, 23]], ids[0, [0, 21, 22, 23]])
    assert int(found[0, 1:21].min()) >= 5
    assert not torch.equal(found, ids)
    assert torch.equal(found, made(ids, 0, [1]))


# --- tokenizers


TEXTS = ["The pump leaks oil.", "Überdruck im Ventil!", "the belt is loose", "ein Ventil ist undicht", "42 bar"] * 8


def test_learned_twice_is_the_same_file() -> None:
    first = text_tokenizer.learned(TEXTS, 200)
    assert first == text_tokenizer.learned(iter(TEXTS), 200)
    fields = json.loads(first)
    assert fields["padding"] is None
    assert fields["truncation"] is None
    assert [t["content"] for t in fields["added_tokens"]] == list(text_tokenizer.SPECIAL)
    made = Tokenizer.from_str(first)
    assert text_tokenizer.size(first) == made.get_vocab_size() <= 200
    assert made.encode("the pump").tokens == ["[CLS]", "the", "pump", "[SEP]"]
    assert made.encode("uberdruck").tokens == made.encode("Überdruck").tokens
    assert "[UNK]" not in made.encode("pumpe lebt").tokens, "letters that were seen make any word"


@pytest.mark.slow
def test_learned_does_not_depend_on_the_process() -> None:
    """Hash tables differ from process to process."""
    import subprocess
    import sys

    code = "from distilledge.pipeline.training.text_tokenizer import learned; import hashlib, sys;"
    code += f"print(hashlib.sha256(learned({TEXTS!r}, 120).encode()).hexdigest())"
    found = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(3)
    }
    assert len(found) == 1


def test_bert_vocabulary_of_published_weights(shared: Path) -> None:
    path = shared / "data" / "bert-vocab" / "vocab.txt"
    found = text_tokenizer.of_file(str(path))
    made = Tokenizer.from_str(found)
    assert text_tokenizer.size(found) == 30522
    assert made.encode("Hello world!").ids == [101, 7592, 2088, 999, 102]
    assert made.encode("embeddings").tokens[1:-1] == ["em", "##bed", "##ding", "##s"]
    special = text_tokenizer.special(found)
    assert special == (0, 100, 102, 103, (0, 100, 101, 102, 103))


def bpe(special: list[str]) -> str:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=300, special_tokens=special, show_progress=False))
    return made.to_str()


def unigram(special: list[str]) -> str:
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=100, special_tokens=special, unk_token="<unk>", show_progress=False)
    made.train_from_iterator(TEXTS, trainer)
    made.post_processor = processors.TemplateProcessing("$A </s>", None, [("</s>", made.token_to_id("</s>"))])
    return made.to_str()


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (lambda: text_tokenizer.learned(TEXTS, 200), (0, 1, 3, 4, (0, 1, 2, 3, 4))),
        (lambda: bpe(["<s>", "<pad>", "</s>", "<unk>", "<mask>"]), (1, 3, 2, 4, (0, 1, 2, 3, 4))),  # RoBERTa
        (lambda: bpe(["<|endoftext|>"]), (0, 0, None, None, (0,))),  # GPT-2
        (lambda: bpe(["<unk>", "<s>", "</s>"]), (2, 0, 2, None, (0, 1, 2))),  # LLaMA: no padding of its own
        (lambda: bpe(["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]), (3, 0, 2, 4, (0, 1, 2, 3, 4))),  # ModernBERT
        (lambda: unigram(["<pad>", "</s>", "<unk>"]), (0, 2, 1, None, (0, 1, 2))),  # T5
    ],
    ids=["bert", "roberta", "gpt2", "llama", "modernbert", "t5"],
)
def test_special_tokens(made: Any, expected: tuple[Any, ...]) -> None:
    assert tuple(text_tokenizer.special(made())) == expected


def test_a_tokenizer_that_cannot_pad_is_refused() -> None:
    with pytest.raises(RejectedError, match="E3621") as refused:
        text_tokenizer.special(bpe(["<s>"]))
    assert (refused.value.exit_code, bool(refused.value.hint)) == (3, True)


def test_a_model_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(RejectedError, match="E3622") as refused:
        text_tokenizer.of_model("bert", str(tmp_path))
    assert (refused.value.exit_code, "text.tokenizer" in refused.value.hint) == (3, True)


def test_the_model_s_own_tokenizer_is_taken(tmp_path: Path) -> None:
    made = Tokenizer.from_str(text_tokenizer.learned(TEXTS, 200))
    made.enable_padding(length=40)
    made.enable_truncation(7)
    made.save(str(tmp_path / "tokenizer.json"))
    for model, weights in (("bert", str(tmp_path)), (str(tmp_path), "hub")):
        assert text_tokenizer.of_model(model, weights) == text_tokenizer.learned(TEXTS, 200)


@pytest.mark.parametrize(
    ("name", "content", "code", "exit_code"),
    [
        ("nowhere.json", None, "E3623", 3),
        ("words.txt", b"[PAD]\n[UNK]\nthe\n", "E2621", 2),
        ("tokenizer.json", b"{", "E3625", 3),
        ("tokenizer.json", b"{}", "E3625", 3),
        ("tokenizer.json", b"[1, 2]", "E3625", 3),
        ("spiece.model", b"\x80\x81\xff", "E3625", 3),
    ],
)
def test_files_that_are_no_tokenizer(
    name: str, content: bytes | None, code: str, exit_code: int, tmp_path: Path
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises((RejectedError, UsageError), match=code) as refused:
        text_tokenizer.of_file(str(path))
    assert (refused.value.exit_code, bool(refused.value.hint)) == (exit_code, True)
    if name == "tokenizer.json":
        with pytest.raises(RejectedError, match=code):
            text_tokenizer.of_model("bert", str(tmp_path))


# --- recipes that clash


def text_recipe(**fields: Any) -> Recipe:
    base = {"name": "t", "task": "text-classification", "teacher": {"model": "bert"}, "student": {"model": "bert"}}
    return Recipe.model_validate({**base, **fields})


CLASHES: dict[str, tuple[dict[str, Any], str]] = {
    "metric of another task": ({"metric": "entity_f1"}, "metric entity_f1 is not one of text-classification"),
    "accuracy of answers": ({"task": "question-answering", "metric": "accuracy"}, "choose from answer_f1, exact_match"),
    "losses of pictures": ({"distill": {"losses": [{"name": "hint"}]}}, "loss hint looks at feature maps of pictures"),
    "embeddings of pictures": ({"distill": {"losses": [{"name": "relational"}]}}, "loss relational looks at feature"),
    "losses of texts": (
        {"task": "image-classification", "distill": {"losses": [{"name": "hidden"}]}},
        "loss hidden looks at states of text models",
    ),
    "pretraining on pictures": (
        {"task": "image-classification", "teacher": {"pretraining": {"objective": "mlm"}}},
        "teacher.pretraining.objective: mlm is of texts",
    ),
    "copies of pictures": (
        {"task": "image-classification", "distill": {"augment_text": {}}},
        "distill.augment_text is of text tasks",
    ),
    "a teacher of a teacher": ({"teacher": {"model": "teacher"}}, "model: teacher is for students of text tasks"),
    "layers of pictures": (
        {"task": "image-classification", "student": {"model": "teacher"}},
        "model: teacher is for students of text tasks",
    ),
    "balanced tags": (
        {"task": "token-classification", "student": {"model": "bert", "training": {"sampling": "balanced"}}},
        "student.training balances classes, but a sample of token-classification has several",
    ),
    "buckets that hold too much": (
        {"student": {"model": "bert", "text": {"max_length": 32, "buckets": [16, 64]}}},
        "student.text.buckets are longer than max_length 32",
    ),
    "no language model to learn from": (
        {"student": {"model": "bert", "pretraining": {"losses": [{"name": "kl"}]}}},
        "student.pretraining.losses compare with the teacher's language model, which the recipe does not train",
    ),
    "an unknown loss before the task": (
        {
            "teacher": {"model": "bert", "pretraining": {}},
            "student": {"model": "bert", "pretraining": {"losses": [{"name": "klx"}]}},
        },
        "student.pretraining.losses.0: unknown loss 'klx'",
    ),
    "an argument before the task": (
        {
            "teacher": {"model": "bert", "pretraining": {}},
            "student": {
                "model": "bert",
                "pretraining": {"losses": [{"name": "kl", "arguments": {"temperature": -1}}]},
            },
        },
        "student.pretraining.losses.0: ",
    ),
    "a teacher without a teacher": (
        {"teacher": {"model": "bert", "text": {"tokenizer": "teacher"}}},
        "teacher.text.tokenizer: teacher is for students",
    ),
    "sizes of what is there already": (
        {"student": {"model": "bert", "weights": "hub", "text": {"config": {"hidden_size": 32}}}},
        "student.text.config is of models without weights of their own",
    ),
    "heads of a narrower student": (
        {"student": {"model": "teacher", "text": {"config": {"hidden_size": 32, "num_attention_heads": 2}}}},
        "student.text.config of a student made from the teacher has no num_attention_heads",
    ),
    "layers of no teacher": (
        {"student": {"model": "bert", "text": {"layers": [0]}}},
        "student.text.layers are of students made from the teacher",
    ),
    "warm-up before the task": (
        {"teacher": {"model": "bert", "pretraining": {"training": {"epochs": 1, "warmup_epochs": 3}}}},
        "teacher.pretraining.training.warmup_epochs 3 exceeds epochs 1",
    ),
}


@pytest.mark.parametrize("case", CLASHES)
def test_recipes_that_clash(case: str) -> None:
    fields, words = CLASHES[case]
    with pytest.raises(UsageError, match="E2016") as refused:
        check_recipe(text_recipe(**fields))
    assert words in str(refused.value)
    assert (refused.value.exit_code, bool(refused.value.hint)) == (2, True)


def test_a_sound_recipe_is_let_through() -> None:
    made = text_recipe(
        teacher={"model": "bert", "pretraining": {}},
        student={"model": "teacher", "pretraining": {"losses": [{"name": "kl"}, {"name": "hidden_cosine"}]}},
        distill={"losses": [{"name": "value_relation"}], "augment_text": {}},
    )
    check_recipe(made)
    check_models(made)


def test_an_unknown_architecture_names_near_ones() -> None:
    with pytest.raises(UsageError, match=r"E2431.*'robberta'.*teacher\.model") as refused:
        check_models(text_recipe(teacher={"model": "robberta"}))
    assert "roberta" in refused.value.hint
