"""Zero- and few-shot heads, CLIP and 4-bit adapters: against numpy and transformers' own, and in small trainings."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_clip import LONGEST, SIDE, made_clip, tokenizer
from made_texts import made_rows
from scipy import stats as reference
from test_text_training import recipe as text_recipe
from test_training import SPLITS_VALUE, data, folders, picture, rows
from test_training import recipe as training_recipe
from torch import nn
from typer.testing import CliRunner

from distilledge.models import text, vision
from distilledge.models.clip_net import ClipNet, ensembled
from distilledge.models.clip_prompts import TEMPLATES, is_clip, prompts_of
from distilledge.models.clip_weights import architecture_of, image_classifier, read_clip, text_embeddings
from distilledge.models.errors import MissingPackageError, RejectedError, UsageError
from distilledge.models.few_shot import Prototypes, TipAdapter, with_head
from distilledge.models.neighbours import Features
from distilledge.models.transfer import head_module, layer_groups
from distilledge.pipeline import checkpoint as checkpoints
from distilledge.pipeline.cli import app
from distilledge.pipeline.data.text_prepare import prepare_texts
from distilledge.pipeline.interrupt import Interrupted
from distilledge.pipeline.recipe import Recipe
from distilledge.pipeline.recipe_check import check_recipe
from distilledge.pipeline.recipe_strategy import FeatureExtraction
from distilledge.pipeline.record import Checkpoint, read_samples, read_texts
from distilledge.pipeline.shots import HEADS, Bank, interval, permuted, student
from distilledge.pipeline.training import evaluate
from distilledge.pipeline.training.clip_start import encoded
from distilledge.pipeline.training.events import ProgressEvent, silent
from distilledge.pipeline.training.few_shot import GRID, base_head, few_shot_head, searched, training_loss
from distilledge.pipeline.training.teacher import finetune
from distilledge.pipeline.training.views import ToInput, evaluation_batches
from distilledge.pipeline.transfer import strategy_inputs

__all__ = ["data"]
"""The fixture, for pytest."""

CLASSES = ("flat", "rows", "columns")


def samples(count: int = 30, width: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features of two sets, and the one-hot labels of the first."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    centres = random.normal(0, 1, (3, width))
    train = centres[labels] + random.normal(0, 0.7, (count, width))
    other = random.normal(0, 1, (9, width))
    return torch.tensor(train, dtype=torch.float32), torch.tensor(other, dtype=torch.float32), torch.eye(3)[labels]


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


# --- class means and the cache


def test_euclidean_prototypes_are_snells() -> None:
    train, other, targets = samples()
    head = Prototypes(6, 3, distance="euclidean", temperature=1.0).fill(train, targets)
    means = np.stack([train.numpy()[targets.argmax(1) == c].mean(0) for c in range(3)])
    distances = ((other.numpy()[:, None] - means[None]) ** 2).sum(2)
    logits = head(other).numpy()
    assert np.allclose(softmax(logits), softmax(-distances), atol=1e-5)
    left = logits + distances  # what all classes share
    assert np.allclose(left, left[:, :1], atol=1e-4)


def test_cosine_prototypes_are_means_of_directions() -> None:
    train, other, targets = samples()
    head = Prototypes(6, 3, distance="cosine", temperature=0.1).fill(100 * train, targets)
    own = unit(train.numpy().astype(np.float64))
    means = unit(np.stack([own[targets.argmax(1) == c].mean(0) for c in range(3)]))
    assert np.allclose(head(other).numpy(), unit(other.numpy()) @ means.T / 0.1, atol=1e-4)


@pytest.mark.parametrize("own", [True, False])
def test_tip_adapter_is_zhangs(own: bool) -> None:
    train, other, targets = samples()
    base = nn.Linear(6, 3) if own else None
    given = FeatureExtraction(head="tip-adapter", alpha=1.7, beta=3.0, temperature=0.1)
    head = few_shot_head(given, train, targets, base, CLASSES)
    assert isinstance(head, TipAdapter)
    keys, asked, values = unit(train.numpy()), unit(other.numpy()), targets.numpy()
    if base is None:
        means = unit(np.stack([keys[values.argmax(1) == c].mean(0) for c in range(3)]))
        first = asked @ means.T / 0.1
    else:
        first = base(other).detach().numpy()
    votes = np.zeros((len(other), 3))
    for i, row in enumerate(asked):
        for key, value in zip(keys, values, strict=True):
            votes[i] += np.exp(-3.0 * (1 - row @ key)) * value
    with torch.no_grad():
        assert np.allclose(head(other).numpy(), first + 1.7 * votes, atol=1e-4)


def test_no_sample_finds_itself_in_the_cache() -> None:
    train, _, targets = samples(12)
    given = FeatureExtraction(head="tip-adapter", alpha=2.0)
    head = few_shot_head(given, train, targets, None, CLASSES)
    found = head.left_out(train).detach()
    without = TipAdapter(head.base, 11, 6, 3, alpha=2.0, beta=5.5).fill(train[1:], targets[1:])
    assert torch.allclose(found[0], without(train[:1]).detach()[0], atol=1e-5)
    expected = -(targets * found.log_softmax(1)).sum(1).mean()
    assert training_loss(head, train, targets) == pytest.approx(float(expected))


def test_the_search_takes_the_best_of_its_grid() -> None:
    train, _, targets = samples(60, seed=2)
    held, _, truth = samples(60, seed=2)
    held, labels = (
        held + 0.8 * torch.randn(held.shape, generator=torch.Generator().manual_seed(1)),
        truth.argmax(1).numpy(),
    )
    head = few_shot_head(FeatureExtraction(head="tip-adapter", alpha=1e-6), train, targets, None, CLASSES)
    assert isinstance(head, TipAdapter)
    asked: list[tuple[float, float, float, float]] = []

    def score(logits: np.ndarray) -> dict[str, float]:
        found = evaluate.score(logits, labels)
        asked.append((found["accuracy"], -found["loss"], head.alpha, head.beta))
        return found

    searched(head, held, score)
    assert len(asked) == 1 + len(GRID[0]) * len(GRID[1])
    assert asked[0][2:] == (1e-6, 5.5)
    assert (head.alpha, head.beta) == max(asked)[2:] != asked[0][2:]
    assert head.settings()["alpha"] == head.alpha


@pytest.mark.parametrize("kind", ["prototypes", "tip-adapter"])
@pytest.mark.parametrize("base", ["head", "prototypes"])
def test_a_head_is_built_again_from_what_is_recorded(kind: str, base: str) -> None:
    train, other, targets = samples(width=256)
    given = FeatureExtraction(head=kind, base=base, distance="euclidean")
    model = vision.create("test_efficientnet", classes=3, size=32)
    place = head_module(model)
    own = base_head(given, model, model.get_submodule(place))
    assert (own is not None) == (base == "head")
    head = few_shot_head(given, train, targets, own, CLASSES)
    recorded = json.loads(json.dumps({kind: head.settings()}))
    again = with_head(vision.create("test_efficientnet", classes=3, size=32), recorded).get_submodule(place)
    again.load_state_dict(head.state_dict())
    with torch.no_grad():
        assert torch.equal(again(other), head(other))


def test_a_class_without_samples_is_named() -> None:
    train, _, targets = samples()
    targets[:, 0] += targets[:, 2]
    targets[:, 2] = 0
    with pytest.raises(RejectedError, match="no training samples of 'columns'"):
        few_shot_head(FeatureExtraction(head="prototypes"), train, targets, None, CLASSES)


# --- k shots


def test_draws_are_nested_and_repeat() -> None:
    labels = np.array([0, 1, 2] * 10)
    once, again, other = permuted(labels, 5, 0), permuted(labels, 5, 0), permuted(labels, 5, 1)
    assert all(np.array_equal(a, b) for a, b in zip(once, again, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(once, other, strict=True))
    assert all(sorted(own) == list(np.flatnonzero(labels == c)) for c, own in enumerate(once))


def test_the_interval_is_students() -> None:
    low, high = interval([0.5, 0.6, 0.7])
    half = 4.302652729911275 * 0.1 / np.sqrt(3)  # t table, 2 degrees of freedom
    assert (low, high) == (pytest.approx(0.6 - half), pytest.approx(0.6 + half))
    assert interval([0.5]) == (None, None)
    for freedom in (1, 2, 3, 4, 9, 19, 30):
        assert student(freedom) == pytest.approx(reference.t.ppf(0.975, freedom), rel=1e-7)


@pytest.mark.parametrize("head", list(HEADS))
def test_every_head_tells_clear_classes_apart(head: str) -> None:
    """Five shots of three clusters that hardly overlap; labels that say nothing give chance."""
    random = np.random.default_rng(1)
    labels = np.arange(300) % 3
    centres = 3 * np.eye(3, 8)
    train, test = (torch.tensor(centres[labels] + random.normal(0, 0.4, (300, 8)), dtype=torch.float32) for _ in "ab")
    bank = Bank(train, labels, test, labels, CLASSES, nn.Identity(), nn.Identity())
    rows = np.concatenate([own[:5] for own in permuted(labels, 0, 0)])
    right = HEADS[head](bank, rows, FeatureExtraction()).argmax(1) == labels
    assert right.mean() > 0.99
    shuffled = bank._replace(truth=random.permutation(labels))
    chance = HEADS[head](shuffled, rows, FeatureExtraction()).argmax(1) == shuffled.truth
    assert 0.2 < chance.mean() < 0.47


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("schema: 1\nname: r\n")
    for arguments, said in ((["--k", "five"], "no list of counts"), (["--head", "trees"], "choose from linear, knn")):
        found = CliRunner().invoke(app, ["shots", str(tmp_path / "r.yaml"), *arguments])
        assert found.exit_code == 2
        assert said in " ".join(found.output.replace("│", " ").split())


def test_the_page_has_the_recorded_shots(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    shots = importlib.import_module("shots")
    page = (root / "docs" / "shots.md").read_text(encoding="utf-8")
    recorded = json.loads((root / "benchmarks" / "results" / "shots.json").read_text(encoding="utf-8"))
    assert page == shots.filled(page, recorded)
    assert recorded["bars"] == shots.bars_of(recorded["rows"])
    for row in recorded["rows"]:
        draws = [float(value) for value in row["draws"].split()]
        assert (row["low"], row["high"]) == pytest.approx(interval(draws), abs=2e-4)


# --- CLIP


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("clip") / "tiny"
    return folder, made_clip(folder)


def test_prompts_name_the_classes() -> None:
    made = prompts_of(("rolled-in_scale", "Cr"), TEMPLATES["single"], {"Cr": "fine cracks"})
    assert made == {"rolled-in_scale": ["a photo of a rolled in scale."], "Cr": ["a photo of a fine cracks."]}
    assert all(t.count("{}") == 1 for templates in TEMPLATES.values() for t in templates)
    assert is_clip("clip:openai/clip-vit-base-patch32")
    assert not is_clip("vit_base_patch16_clip_224.openai")


@pytest.mark.parametrize("old_end", [False, True])
def test_a_head_of_class_names_answers_as_transformers_clip(old_end: bool, tmp_path: Path) -> None:
    """One template: exactly ``logits_per_image``. The tokenizer is read from its file by both."""
    theirs = made_clip(tmp_path / "c", old_end=old_end)
    read = read_clip(str(tmp_path / "c"), trust_pickle=False)
    prompts = prompts_of(CLASSES, TEMPLATES["single"], {})
    ids = encoded(read, [t for texts in prompts.values() for t in texts])
    net = image_classifier(read, architecture_of(read, prompts), text_embeddings(read, ids).reshape(3, 1, -1)).eval()
    pictures = torch.randn(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    given = [tokenizer().encode(f"a photo of a {name}.").ids for name in CLASSES]
    with torch.no_grad():
        expected = theirs(input_ids=torch.tensor(given), pixel_values=pictures).logits_per_image
        found = net(pictures)
    assert expected.std() > 0.05
    assert torch.allclose(found, expected, atol=1e-4, rtol=1e-4)
    again = ClipNet(json.loads(json.dumps(net.architecture)))
    again.load_state_dict(net.state_dict())
    with torch.no_grad():
        assert torch.equal(again.eval()(pictures), found)
    assert again.architecture["prompts"]["rows"] == ["a photo of a rows."]


def test_an_ensemble_is_the_mean_of_directions(clip: tuple[Path, Any]) -> None:
    read = read_clip(str(clip[0]), trust_pickle=False)
    prompts = prompts_of(CLASSES, ("a photo of {}.", "a close-up of the small {}.", "itap of a {}."), {})
    ids = encoded(read, [t for texts in prompts.values() for t in texts])
    assert len({len(row) for row in ids}) > 1
    found = ensembled(text_embeddings(read, ids).reshape(3, 3, -1)).numpy()
    for place, texts in enumerate(prompts.values()):
        own = []
        for words in texts:
            row = torch.tensor([tokenizer().encode(words).ids])
            with torch.no_grad():
                own.append(clip[1].get_text_features(input_ids=row).pooler_output[0].numpy().astype(np.float64))
        mean = unit(np.stack(own)).mean(0)
        assert np.allclose(found[place], mean / np.linalg.norm(mean), atol=1e-5)


def test_a_long_prompt_is_cut_and_keeps_its_end(clip: tuple[Path, Any]) -> None:
    read = read_clip(str(clip[0]), trust_pickle=False)
    (ids,) = encoded(read, ["a photo of the flat rows of the small columns of a large bad photo of the flat ."])
    assert len(ids) == LONGEST
    assert ids[-1] == tokenizer().token_to_id("<|endoftext|>")
    with pytest.raises(RejectedError, match="the tokenizer does not fit"):
        text_embeddings(read, [ids[:-1]])


def test_clip_is_a_model_like_any_other(clip: tuple[Path, Any]) -> None:
    read = read_clip(str(clip[0]), trust_pickle=False)
    net = ClipNet(architecture_of(read, prompts_of(CLASSES, TEMPLATES["single"], {})))
    groups = layer_groups(net)
    assert len(groups) == 4  # the stem, two blocks, the head
    assert groups[-1] == ("head.weight",)
    assert "projection.weight" in groups[-2]
    assert sorted(n for names in groups for n in names) == sorted(n for n, _ in net.named_parameters())
    net.eval()
    seen = Features(net)(torch.randn(2, 3, SIDE, SIDE))
    assert torch.allclose(seen.norm(dim=1), torch.ones(2), atol=1e-5)
    assert vision.profile(net, SIDE).parameters == sum(p.numel() for p in net.parameters())


def test_files_that_are_not_clip_are_refused(clip: tuple[Path, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(RejectedError, match="its model_type is bert"):
        read_clip(str(tmp_path), trust_pickle=False)
    with pytest.raises(RejectedError, match="cannot get it from the hub"):
        read_clip("nobody/no-clip", trust_pickle=False)


def recipe(**teacher: Any) -> Recipe:
    own = {"model": "clip:some/clip", "weights": "hub", "input": {"size": SIDE}, **teacher}
    return Recipe.model_validate({"name": "t", "teacher": own, "student": {"model": "test_efficientnet"}})


@pytest.mark.parametrize(
    ("teacher", "said"),
    [
        ({"model": "deit_tiny_patch16_224", "strategy": "zero-shot"}, "strategy zero-shot is of CLIP"),
        ({"model": "deit_tiny_patch16_224", "prompts": {"templates": "single"}}, "prompts are of CLIP models"),
        ({"weights": "none"}, "a CLIP teacher is made of its weights"),
        ({"model": "clip"}, "weights: hub needs a name"),
        ({"strategy": "ewc"}, "which CLIP has none of"),
        ({"prompts": {"templates": ["a photo"]}}, "does not hold {} once"),
        ({"prompts": {"templates": []}}, "templates is empty"),
        ({"strategy": {"name": "feature-extraction", "arguments": {"tuned": True}}}, ""),
        ({"strategy": {"name": "feature-extraction", "arguments": {"head": "knn", "tuned": True}}}, "nothing to tune"),
    ],
)
def test_contradictions_are_named(teacher: dict[str, Any], said: str) -> None:
    if not said:
        check_recipe(recipe(**teacher))
        return
    with pytest.raises(UsageError, match=said):
        check_recipe(recipe(**teacher))


def test_prompts_are_part_of_a_clip_teachers_name_and_of_no_other() -> None:
    plain = recipe(model="deit_tiny_patch16_224").teacher
    assert strategy_inputs(plain) == {}
    one, other = strategy_inputs(recipe().teacher), strategy_inputs(recipe(prompts={"templates": ["{}"]}).teacher)
    assert one["prompts"][0] == list(TEMPLATES["ensemble"])
    assert one != other


# --- adapters on a 4-bit base


def test_without_bitsandbytes_the_way_to_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from distilledge.models import qlora

    monkeypatch.setattr(qlora.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match="bitsandbytes, which is not installed") as caught:
        qlora.add(vision.create("test_vit", classes=3, size=32), 2, 4.0)
    assert caught.value.exit_code == 4
    assert caught.value.hint == 'pip install "distilledge[qlora]"'


TINY = {
    "llama": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4},
    "gpt2": {"n_embd": 64, "n_head": 4, "n_layer": 2},
    "bert": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4},
    "t5": {"d_model": 64, "d_ff": 96, "num_layers": 2, "num_heads": 4, "d_kv": 16},
}


def adapted(kind: str, **settings: Any) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    """A small network, it with 4-bit base and adapters that do something, an input."""
    from distilledge.models import qlora

    torch.manual_seed(3)
    if kind == "vit":
        net: nn.Module = vision.create("test_vit", classes=3, size=32)
        given = torch.randn(2, 3, 32, 32)
    else:
        sizes: Any = TINY[kind]
        net = text.from_config(
            kind, sizes, task="text-classification", classes=3, vocabulary_size=60, max_length=12, pad_id=0
        )
        given = torch.randint(1, 60, (3, 9))
        given[1, 5:] = 0
    made = qlora.add(net, 4, 8.0, **settings)
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return net.eval(), made.eval(), given


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "t5", "vit"])
@pytest.mark.parametrize("settings", [{}, {"quant_type": "fp4", "double_quant": False, "adapters": "attention"}])
def test_a_merged_4_bit_model_is_its_base_and_its_adapters(kind: str, settings: dict[str, Any]) -> None:
    """Every tensor against numpy: dequantised by bitsandbytes from W itself, plus 2 B A; and the same answers."""
    pytest.importorskip("bitsandbytes", reason="4-bit layers need bitsandbytes")
    import bitsandbytes as bnb

    from distilledge.models import qlora

    net, made, given = adapted(kind, **settings)
    merged = qlora.merge(made).eval()
    with torch.no_grad():
        assert torch.allclose(merged(given), made(given), atol=1e-5)
        assert (merged(given) - net(given)).abs().max() > 1e-3
    before, after = net.state_dict(), merged.state_dict()
    assert before.keys() == after.keys()
    trained = dict(made.named_parameters())
    chosen = [f"{name}.weight" for name in qlora.quantised_names(net)]
    assert len(chosen) >= 8
    for name, tensor in before.items():
        if name not in chosen:
            assert torch.equal(after[name], tensor), name
            continue
        weight = tensor.T.contiguous() if kind == "gpt2" else tensor
        four, double = settings.get("quant_type", "nf4"), settings.get("double_quant", True)
        packed, state = bnb.functional.quantize_4bit(weight, quant_type=four, compress_statistics=double)
        expected = bnb.functional.dequantize_4bit(packed, state).numpy().astype(np.float64)
        assert 1e-4 < np.abs(expected - weight.numpy()).max() < 0.5 * weight.abs().max()
        place = name.removesuffix(".weight")
        if f"{place}.lora_B.default.weight" in trained:
            b, a = (trained[f"{place}.lora_{x}.default.weight"].detach().numpy().astype(np.float64) for x in "BA")
            expected = expected + 8.0 / 4 * b @ a
        found = after[name].T if kind == "gpt2" else after[name]
        assert np.allclose(found.numpy(), expected, atol=1e-6), name


def test_the_levels_of_nf4_are_the_papers() -> None:
    """Dettmers et al. 2023, appendix E: each number becomes the largest of its 64 times one of sixteen levels."""
    bnb = pytest.importorskip("bitsandbytes", reason="4-bit layers need bitsandbytes")
    below = (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635)
    middle = (-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725)
    above = (0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023)
    levels = np.array((*below, *middle, *above, 1.0))
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    packed, state = bnb.functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=False)
    found = bnb.functional.dequantize_4bit(packed, state).numpy()
    scale = np.abs(weight.numpy()).max(1, keepdims=True)
    nearest = levels[np.abs(weight.numpy()[..., None] / scale[..., None] - levels).argmin(-1)] * scale
    assert np.allclose(found, nearest, atol=1e-6)


def test_gradients_reach_the_adapters_alone_and_the_state_has_no_base() -> None:
    pytest.importorskip("bitsandbytes", reason="4-bit layers need bitsandbytes")
    _, made, given = adapted("gpt2")
    made.train()(given).square().sum().backward()
    with_gradient = {n for n, p in made.named_parameters() if p.grad is not None and bool(p.grad.abs().sum() > 0)}
    assert len([n for n in with_gradient if "lora_" in n]) == 16
    assert not [n for n in with_gradient if "base_layer" in n]
    state = made.state_dict()
    assert not [n for n in state if "base_layer" in n]
    made.load_state_dict(state)


# --- whole trainings and runs


ZERO_SHOT = """
schema: 1
name: zero
data: {path: pictures, calibration: 8, allow_leakage: true, on_conflict: keep}
teacher:
  model: clip:tiny/clip
  weights: hub
  input: {size: 32}
  strategy: zero-shot
  prompts: {templates: ["a photo of {}.", "a close-up of the small {}."], names: {rows: rows of the flat}}
student: {model: test_efficientnet, input: {size: 32}, training: {epochs: 1, batch_size: 16}}
distill: {unlabelled: more, hard_weight: 0, control: false}
export: {targets: [{runtime: onnx, precisions: [fp32]}]}
verify: {samples: 6}
measure: {samples: 8, min_seconds: 0, launches: 1, end_to_end: 1, warmup: 1}
gate: {on_fail: report}
"""


def cached_clip(home: Path) -> Any:
    """A Hugging Face cache with the tiny CLIP under a hub name; the model as transformers reads it."""
    repository = home / "hub" / "models--tiny--clip"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("b" * 40)
    return made_clip(repository / "snapshots" / ("b" * 40))


def draw_pictures(folder: Path) -> None:
    for label, name in enumerate(CLASSES):
        for split, count in (("train", 6), ("validation", 3), ("test", 4)):
            (folder / "pictures" / split / name).mkdir(parents=True)
            for index in range(count):
                seed = 1000 * label + {"train": 0, "validation": 100, "test": 200}[split] + index
                picture(label, seed).save(folder / "pictures" / split / name / f"{index}.png")
    (folder / "more").mkdir()
    for index in range(9):
        picture(index % 3, 5000 + index).save(folder / "more" / f"{index}.png")


def command(folder: Path, home: Path, *words: str) -> str:
    """In a process of its own: where the Hugging Face cache lies is read when the library is imported."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGINGFACE_", "XDG_"))}
    environment |= {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    call = [sys.executable, "-m", "distilledge.pipeline.cli", *words]
    done = subprocess.run(call, env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_a_zero_shot_teacher_labels_a_folder_and_is_exported_like_any_other(tmp_path: Path) -> None:
    """Its ONNX file answers as transformers' own CLIP with the mean of the prompts; then shots of the same recipe."""
    theirs = cached_clip(tmp_path / "home")
    draw_pictures(tmp_path)
    (tmp_path / "zero.yaml").write_text(ZERO_SHOT)
    command(tmp_path, tmp_path / "home", "run", "zero.yaml", "--work", "work")
    runs = json.loads((tmp_path / "work" / "runs" / "zero" / "run.json").read_text())
    places = {stage["name"]: tmp_path / "work" / stage["path"] for stage in runs["stages"]}
    made = Checkpoint.model_validate_json((places["teacher"] / "value.json").read_bytes())
    assert made.architecture["clip"]["prompts"]["rows"][0] == "a photo of rows of the flat."
    assert sum(s.split == "unlabelled" for s in read_samples(places["data"])) == 9
    test, spec = read_samples(places["data"], "test"), checkpoints.spec(made)
    words = made.architecture["clip"]["prompts"].values()
    with torch.no_grad():
        given = [[torch.tensor([tokenizer().encode(w).ids]) for w in own] for own in words]
        texts = [[theirs.get_text_features(input_ids=ids).pooler_output[0].numpy() for ids in own] for own in given]
        each = np.stack([unit(np.stack(own)).mean(0) for own in texts])
        batches = evaluation_batches(test, tmp_path / "pictures", spec, 16)  # type: ignore[arg-type]
        pixels = torch.cat([ToInput(spec)(pictures) for pictures, _ in batches])  # type: ignore[arg-type]
        seen = theirs.get_image_features(pixel_values=pixels).pooler_output.numpy()
    expected = unit(seen) @ unit(each).T * float(theirs.logit_scale.detach().exp())
    scores = json.loads((places["score"] / "value.json").read_text())["items"]
    own = next(item for item in scores if item["role"] == "teacher")
    assert np.allclose(np.load(places["score"] / own["logits"]), expected, atol=1e-2)
    found = json.loads(
        command(tmp_path, tmp_path / "home", "shots", "zero.yaml", "--k", "1,4", "--draws", "3", "--json")
    )
    named = next(shot for shot in found["shots"] if shot["head"] == "zero-shot")
    right = expected.argmax(1) == np.array([s.label for s in test])
    assert (named["k"], named["low"], named["value"]) == (0, None, pytest.approx(right.mean()))
    assert {(s["head"], s["k"]) for s in found["shots"]} == {("zero-shot", 0), *((h, k) for h in HEADS for k in (1, 4))}


@pytest.mark.slow
@pytest.mark.parametrize(
    "given",
    [
        {"head": "prototypes"},
        {"head": "prototypes", "distance": "euclidean"},
        {"head": "tip-adapter"},
        {"head": "tip-adapter", "tuned": True, "search": True},
    ],
)
def test_few_shot_teachers_are_saved_and_read_back(given: dict[str, Any], data: Path, tmp_path: Path) -> None:
    own = training_recipe(teacher={"epochs": 3, "lr": 1e-3}).model_dump(mode="json", by_alias=True)
    own["teacher"] |= {"strategy": {"name": "feature-extraction", "arguments": given}, "model": "test_efficientnet"}
    out, partial = folders(tmp_path)
    made = finetune(Recipe.model_validate(own), SPLITS_VALUE, data, out, partial, silent)
    model, spec = checkpoints.load(made, out), checkpoints.spec(made)
    held = read_samples(data, "validation")
    with torch.no_grad():
        batches = evaluation_batches(held, data, spec, 8)  # type: ignore[arg-type]
        right = [(model(ToInput(spec)(x)).argmax(1) == y).float() for x, y in batches]  # type: ignore[arg-type]
    assert float(torch.cat(right).mean()) == pytest.approx(made.validation["accuracy"])
    curve = rows(out)
    assert len(curve) == (3 if given.get("tuned") else 1)
    if given.get("tuned"):
        assert curve[-1]["train_loss"] < curve[0]["train_loss"]
        keys = model.get_submodule("classifier").keys
        assert not torch.allclose(keys.norm(dim=1), torch.ones(len(keys)), atol=1e-6)  # type: ignore[arg-type]


def decoder(kind: str, folder: Path) -> None:
    """A tiny GPT-2 or LLaMA as transformers saves it; its tokenizer has no padding token of its own."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    special = ["<|endoftext|>"] if kind == "gpt2" else ["<unk>", "<s>", "</s>"]
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=380, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    words.train_from_iterator([row.text for row in made_rows("text-classification", 200)[0]], trainer)
    torch.manual_seed(0)
    if kind == "gpt2":
        model: Any = GPT2LMHeadModel(GPT2Config(vocab_size=380, n_positions=48, **TINY[kind]))
    else:
        config = LlamaConfig(vocab_size=380, num_key_value_heads=2, max_position_embeddings=48, **TINY[kind])
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    words.save(str(folder / "tokenizer.json"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("strategy", ["lora", "qlora"])
def test_decoders_are_teachers_with_adapters(kind: str, strategy: str, tmp_path: Path) -> None:
    """They learn through adapters and head alone, and the merged file gives what validation was told."""
    if strategy == "qlora":
        pytest.importorskip("bitsandbytes", reason="4-bit layers need bitsandbytes")
    decoder(kind, tmp_path / "teacher")
    folder = tmp_path / "store" / "data-0"
    folder.mkdir(parents=True)
    given = text_recipe(teacher={"text": {"max_length": 48}})
    splits = prepare_texts(given.data, task=given.task, seed=0, out=folder)
    own = given.model_dump(mode="json", by_alias=True)
    text_part = {**own["teacher"]["text"], "tokenizer": "model", "config": {}, "vocabulary": None, "max_length": 40}
    own["teacher"] |= {"strategy": strategy, "model": kind, "weights": str(tmp_path / "teacher"), "text": text_part}
    own["teacher"]["training"] |= {"epochs": 3, "lr": 5e-3}
    out, partial = folders(tmp_path)
    made = finetune(Recipe.model_validate(own), splits, folder, out, partial, silent)
    net = checkpoints.load(made, out)
    assert isinstance(net, text.TextNet)
    assert net.pooling == "last"
    assert not [name for name in net.state_dict() if "lora" in name or "base_layer" in name]
    assert rows(out)[-1]["train_loss"] < 0.93 * rows(out)[0]["train_loss"]
    encoder = checkpoints.encoder(made, out)
    held = read_texts(folder, "validation")
    with torch.no_grad():
        alone = [net(torch.tensor([encoder.encode({"text": row.text, "context": None}).tolist()])) for _, row in held]
    right = [int(z.argmax()) == sample.label for z, (sample, _) in zip(alone, held, strict=True)]
    assert np.mean(right) == pytest.approx(made.validation["accuracy"])  # without padding, as it was with it


@pytest.mark.slow
def test_a_killed_training_makes_its_4_bit_base_again(data: Path, tmp_path: Path) -> None:
    """The state holds adapters and head alone; interrupted and resumed, it ends with the same bits, merged."""
    pytest.importorskip("bitsandbytes", reason="4-bit layers need bitsandbytes")
    own = training_recipe(teacher={"epochs": 3, "ema": 0.8}).model_dump(mode="json", by_alias=True)
    own["teacher"]["strategy"] = {"name": "qlora", "arguments": {"rank": 2, "compute": "bf16"}}
    made = Recipe.model_validate(own)

    def interrupt(event: ProgressEvent) -> None:
        if (event.epoch, event.step) == (2, 2):
            os.kill(os.getpid(), signal.SIGINT)

    whole, partial = folders(tmp_path, "whole")
    found = finetune(made, SPLITS_VALUE, data, whole, partial, silent)
    out, partial = folders(tmp_path, "cut")
    with pytest.raises(Interrupted):
        finetune(made, SPLITS_VALUE, data, out, partial, interrupt)
    finetune(made, SPLITS_VALUE, data, out, partial, silent)
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    names = set(checkpoints.load(found, whole).state_dict())
    assert names == set(vision.create("test_vit", classes=3, size=32).state_dict())
    assert rows(whole)[-1]["train_loss"] < rows(whole)[0]["train_loss"]
