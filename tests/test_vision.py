"""Models by name, weights good and bad, parameter groups, cost."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save, save_file
from torch import nn
from torch.nn.functional import cross_entropy

from distilledge.models import vision
from distilledge.models.errors import RejectedError, UsageError
from distilledge.models.vision_catalogue import CATALOGUE
from distilledge.models.vision_names import build

TINY = "test_efficientnet"


def state_of(name: str = TINY, classes: int = 4, size: int = 160) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return vision.create(name, classes=classes, size=size).state_dict()


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.safetensors"
    save_file(state_of(), path)
    return path


def equal(model: nn.Module, state: dict[str, torch.Tensor]) -> set[str]:
    """Names of the model's tensors that are those of ``state``."""
    return {k for k, v in model.state_dict().items() if k in state and torch.equal(v, state[k])}


# ---- names


@pytest.mark.parametrize(
    "name", ["resnet50", "resnet50.a1_in1k", "mobilenetv1_025", "vit_base_patch16_clip_224.openai"]
)
def test_known_names_pass(name: str) -> None:
    vision.check_name(name)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("tf_efficientnet_lite9", "tf_efficientnet_lite0"),
        ("mobilenetv1_02", "mobilenetv1_025"),
        ("resnet50.a1", "a1_in1k"),
    ],
)
def test_unknown_names_are_refused_with_near_ones(name: str, near: str) -> None:
    with pytest.raises(UsageError, match=name) as caught:
        vision.check_name(name)
    assert caught.value.exit_code == 2
    assert near in caught.value.hint


def test_input_defaults_belong_to_the_weights() -> None:
    assert vision.input_defaults("mobilenetv1_025").mean == (0.5, 0.5, 0.5)
    assert vision.input_defaults("mobilenetv1_025").size == 128
    assert vision.input_defaults("tf_efficientnet_lite0").std == (0.5, 0.5, 0.5)
    assert vision.input_defaults("deit_tiny_patch16_224").mean == (0.485, 0.456, 0.406)
    assert vision.input_defaults("vit_base_patch16_clip_224.openai").mean[0] == pytest.approx(0.48145466)


@pytest.mark.parametrize("name", vision.VARIANTS)
def test_variants_run_and_their_relative_exists(name: str) -> None:
    vision.check_name(vision.VARIANTS[name].near)
    model = vision.create(name, classes=3, size=64).eval()
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "test_vit"])
def test_transformers_take_another_size(name: str) -> None:
    model = vision.create(name, classes=3, size=96).eval()
    assert model(torch.zeros(1, 3, 96, 96)).shape == (1, 3)


@pytest.mark.parametrize(("name", "size"), [("deit_tiny_patch16_224", 100), ("swin_tiny_patch4_window7_224", 99)])
def test_impossible_sizes_are_refused(name: str, size: int) -> None:
    with pytest.raises(UsageError, match=str(size)) as caught:
        vision.create(name, classes=3, size=size)
    assert "224" in caught.value.hint


def test_head_can_be_named_and_reset() -> None:
    model = vision.create("deit_tiny_distilled_patch16_224", classes=3, size=224)
    assert vision.head_names(model) == ("head", "head_dist")
    model = vision.create(TINY, classes=3, size=64).eval()
    vision.reset_head(model, 9)
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 9)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["mobilenetv1_025", "tf_efficientnet_lite0", "resnet18", "mobilenetv3_small_100", "deit_tiny_patch16_224"]
)
def test_a_new_head_starts_at_ln_of_the_classes(name: str) -> None:
    torch.manual_seed(0)
    model = vision.create(name, classes=7, size=64)
    pictures, labels = torch.randn(14, 3, 64, 64), torch.arange(14) % 7
    with torch.no_grad():
        assert cross_entropy(model(pictures), labels).item() == pytest.approx(math.log(7), rel=0.1)
        vision.reset_head(model, 14)
        assert cross_entropy(model(pictures), labels).item() == pytest.approx(math.log(14), rel=0.1)


# ---- good weights


def test_a_fitting_file_is_loaded_whole(good: Path) -> None:
    model = vision.create(TINY, classes=4, size=64, weights=str(good))
    assert equal(model, load_file(good)) == set(model.state_dict())
    loaded = vision.load_weights(model, good)
    assert (loaded.head, loaded.sha256) == ("kept", hashlib.sha256(good.read_bytes()).hexdigest())


@pytest.mark.parametrize("change", ["other classes", "no head", "half a head"])
def test_a_head_that_does_not_fit_is_new_and_said_to_be(
    change: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = state_of(classes=4)
    if change == "no head":
        state = {k: v for k, v in state.items() if not k.startswith("classifier")}
    if change == "half a head":
        del state["classifier.bias"]
    save_file(state, tmp_path / "w.safetensors")
    classes = 7 if change == "other classes" else 4
    with caplog.at_level(logging.INFO):
        model = vision.create(TINY, classes=classes, size=64, weights=str(tmp_path / "w.safetensors"))
    heads = {"classifier.weight", "classifier.bias"}
    assert equal(model, state) >= set(model.state_dict()) - heads
    assert "classifier.weight" not in equal(model, state)
    assert "new head" in caplog.text


def test_position_embeddings_are_resampled(tmp_path: Path) -> None:
    state = state_of("test_vit", size=160)
    save_file(state, tmp_path / "w.safetensors")
    model = vision.create("test_vit", classes=4, size=96, weights=str(tmp_path / "w.safetensors"))
    assert set(model.state_dict()) - equal(model, state) == {"pos_embed"}
    assert state["pos_embed"].shape != model.state_dict()["pos_embed"].shape


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "file", "classes", "size", "head"),
    [
        ("mobilenetv1_025", "mobilenetv1_025_tfqat/model.safetensors", 1000, 128, "kept"),
        ("mobilenetv1_025", "mobilenetv1_025_tfqat/model.safetensors", 7, 96, "new"),
        ("tf_efficientnet_lite0", "tf_efficientnet_lite0/backbone.safetensors", 7, 128, "new"),
        ("tf_efficientnet_lite0", "tf_efficientnet_lite0/model_flowers5.safetensors", 5, 224, "kept"),
        ("mobilenetv2_100_same", "mobilenetv2_100_tfqat/model.safetensors", 1000, 224, "kept"),
        ("deit_tiny_patch16_224", "deit_tiny_patch16_224/model.safetensors", 1000, 224, "kept"),
        ("deit_tiny_patch16_224", "deit_tiny_patch16_224/model.safetensors", 7, 128, "new"),
    ],
)
def test_real_weights_load_strictly(name: str, file: str, classes: int, size: int, head: str, shared: Path) -> None:
    path = str(shared / "weights" / file)
    model = vision.create(name, classes=classes, size=size, weights=path)
    own, theirs = set(model.state_dict()), load_file(path)
    changed = {k for k in own - equal(model, theirs) if not k.endswith("num_batches_tracked")}
    heads = {f"{h}.{p}" for h in vision.head_names(model) for p in ("weight", "bias")}
    expected = (heads if head == "new" else set()) | (
        {"pos_embed"} if size == 128 and name.startswith("deit") else set()
    )
    assert changed - {"head.bias", "classifier.bias"} == expected - {"head.bias", "classifier.bias"}


# ---- bad weights: B29, B32, B34


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def twice(data: bytes) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].rstrip()
    name, entry = next((k, v) for k, v in json.loads(header).items() if k != "__metadata__")
    header = header[:-1] + b"," + json.dumps({name: entry}).encode()[1:]
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (truncated, "not a valid safetensors file"),
        (lambda data: data[:5], "truncated"),
        (lambda data: data[:100], "truncated"),
        (lambda _: b"", "empty"),
        (lambda _: b"<!DOCTYPE html><html>404</html>" * 20, "HTML"),
        (lambda _: pickle.dumps({"a": 1}), "pickle"),
        (lambda data: b"\xff" * 8 + data[8:], "truncated"),
        (lambda data: data[:8] + b"\x00" + data[9:], "not a valid safetensors file"),
        (twice, "duplicate tensor"),
    ],
)
def test_damaged_safetensors_are_refused_with_their_hash(damage: Any, says: str, good: Path) -> None:
    good.write_bytes(damage(good.read_bytes()))
    with pytest.raises(RejectedError, match=says) as caught:
        vision.create(TINY, classes=4, size=64, weights=str(good))
    assert (caught.value.code, caught.value.exit_code) == ("E3403", 3)
    assert hashlib.sha256(good.read_bytes()).hexdigest() in caught.value.what


def spoil_nan(state: dict[str, torch.Tensor]) -> None:
    state["conv_stem.weight"][0, 0, 0, 0] = float("nan")


def spoil_inf(state: dict[str, torch.Tensor]) -> None:
    state["bn1.running_var"][0] = float("inf")


def spoil_shape(state: dict[str, torch.Tensor]) -> None:
    state["conv_stem.weight"] = state["conv_stem.weight"][:, :, :1].contiguous()


def spoil_head_width(state: dict[str, torch.Tensor]) -> None:
    state["classifier.weight"] = state["classifier.weight"][:, 1:].contiguous()


def spoil_missing(state: dict[str, torch.Tensor]) -> None:
    del state["conv_stem.weight"]


def spoil_extra(state: dict[str, torch.Tensor]) -> None:
    state["blocks.99.weight"] = torch.zeros(1)


def spoil_kind(state: dict[str, torch.Tensor]) -> None:
    state["conv_stem.weight"] = state["conv_stem.weight"].to(torch.int8)


@pytest.mark.parametrize(
    ("spoil", "code", "says"),
    [
        (spoil_nan, "E3406", r"conv_stem\.weight"),
        (spoil_inf, "E3406", r"bn1\.running_var"),
        (spoil_shape, "E3408", r"misshapen: conv_stem\.weight \(.*\) instead of"),
        (spoil_head_width, "E3408", r"misshapen: classifier\.weight"),
        (spoil_missing, "E3408", r"missing: conv_stem\.weight"),
        (spoil_extra, "E3408", r"unexpected: blocks\.99\.weight"),
        (spoil_kind, "E3408", r"not floating-point: conv_stem\.weight"),
    ],
)
def test_tensors_that_do_not_fit_are_named(spoil: Any, code: str, says: str, tmp_path: Path) -> None:
    state = state_of()
    spoil(state)
    (tmp_path / "w.safetensors").write_bytes(save(state))
    with pytest.raises(RejectedError, match=says) as caught:
        vision.create(TINY, classes=4, size=64, weights=str(tmp_path / "w.safetensors"))
    assert caught.value.code == code


def test_a_file_for_another_transformer_is_refused(good: Path) -> None:
    with pytest.raises(RejectedError, match="do not fit"):
        vision.create("test_vit", classes=4, size=160, weights=str(good))


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
def test_pickles_are_refused_unless_trusted(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"w{suffix}"
    state = state_of()
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    with pytest.raises(RejectedError, match="pickle") as caught:
        vision.create(TINY, classes=4, size=64, weights=str(path))
    assert (caught.value.exit_code, "trust_pickle: true" in caught.value.hint) == (3, True)
    model = vision.create(TINY, classes=4, size=64, weights=str(path), trust_pickle=True)
    assert equal(model, state) == set(state)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("pwned",)


@pytest.mark.parametrize("content", [Bomb(), {"model": 3}, [1, 2]])
def test_even_a_trusted_pickle_runs_no_code(content: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content, "w.pt")
    with pytest.raises(RejectedError, match="not a file of tensors"):
        vision.create(TINY, classes=4, size=64, weights="w.pt", trust_pickle=True)
    assert not Path("pwned").exists()


@pytest.mark.parametrize(("name", "code"), [("none.safetensors", "E3401"), ("w.npz", "E3402")])
def test_absent_and_unknown_files_are_refused(name: str, code: str, tmp_path: Path) -> None:
    (tmp_path / "w.npz").write_bytes(b"x")
    with pytest.raises(RejectedError, match=name) as caught:
        vision.create(TINY, classes=4, size=64, weights=str(tmp_path / name))
    assert caught.value.code == code


# ---- the hub


def offline(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def test_hub_weights_come_from_the_cache_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "models--timm--test_efficientnet.r160_in1k"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    state = state_of(classes=1000)
    save_file(state, snapshot / "model.safetensors")
    offline(tmp_path, monkeypatch)
    model = vision.create(TINY, classes=7, size=64, weights="hub")
    assert set(model.state_dict()) - equal(model, state) <= {"classifier.weight", "classifier.bias"}


def test_hub_weights_that_are_not_there_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offline(tmp_path, monkeypatch)
    with pytest.raises(RejectedError, match=r"timm/test_efficientnet\.r160_in1k") as caught:
        vision.create(TINY, classes=7, size=64, weights="hub")
    assert "hf download timm/test_efficientnet.r160_in1k model.safetensors" in caught.value.hint


def test_models_without_hub_weights_say_so() -> None:
    with pytest.raises(UsageError, match="no weights for mobilenetv1_025"):
        vision.create("mobilenetv1_025", classes=7, size=64, weights="hub")


# ---- parameter groups


GROUPED = ["test_efficientnet", "test_vit", "test_convnext", "resnet18", "mobilenetv1_025"]


@pytest.mark.parametrize("name", GROUPED)
def test_groups_hold_every_parameter_once_and_the_head_has_the_full_rate(name: str) -> None:
    model = vision.create(name, classes=3, size=160)
    groups = vision.parameter_groups(model, lr=0.1, weight_decay=0.05, layer_decay=0.5)
    place = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters())) == len(place)
    rates = {n: place[id(p)][0] for n, p in model.named_parameters()}
    heads = tuple(vision.head_names(model))
    assert {r for n, r in rates.items() if n.startswith(heads)} == {0.1}
    assert min(rates.values()) < 0.1 * 0.5**2
    assert next(iter(rates.values())) == min(rates.values())
    for n, p in model.named_parameters():
        assert place[id(p)][1] == (0 if p.ndim <= 1 or n in ("pos_embed", "cls_token") else 0.05)


@pytest.mark.parametrize("name", GROUPED)
def test_without_layer_decay_there_are_two_groups(name: str) -> None:
    model = vision.create(name, classes=3, size=160)
    groups = vision.parameter_groups(model, lr=0.1, weight_decay=0.05, layer_decay=1.0)
    assert sorted((g["lr"], g["weight_decay"]) for g in groups) == [(0.1, 0.0), (0.1, 0.05)]


def test_a_frozen_backbone_leaves_only_the_head_and_its_statistics_still() -> None:
    model = vision.create(TINY, classes=3, size=64)
    groups = vision.parameter_groups(model, lr=0.1, weight_decay=0.05, freeze_backbone=True)
    assert [tuple(p.shape) for g in groups for p in g["params"]] == [
        tuple(p.shape) for p in model.get_submodule("classifier").parameters()
    ]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    vision.train_mode(model, freeze_backbone=True)
    model(torch.randn(4, 3, 64, 64)).sum().backward()
    assert equal(model, before) == set(before)
    assert {n for n, p in model.named_parameters() if p.grad is not None} == {"classifier.weight", "classifier.bias"}
    vision.parameter_groups(model, lr=0.1, weight_decay=0.05)
    assert all(p.requires_grad for p in model.parameters())


# ---- cost


@pytest.mark.parametrize(
    ("name", "gmacs", "parameters"),
    [("tf_efficientnet_lite0", 0.39, 4.65), ("resnet50", 4.1, 25.6), ("deit_tiny_patch16_224", 1.26, 5.7)],
)
def test_cost_is_the_published_one(name: str, gmacs: float, parameters: float) -> None:
    with torch.device("meta"):
        model = build(name, classes=1000, size=224)
    cost = vision.profile(model, 224)
    assert cost.macs / 1e9 == pytest.approx(gmacs, rel=0.03)
    assert cost.parameters / 1e6 == pytest.approx(parameters, rel=0.01)


def test_counting_leaves_the_model_as_it_is() -> None:
    model = vision.create(TINY, classes=3, size=64).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert vision.profile(model, 128).macs > 3.5 * vision.profile(model, 64).macs
    assert model.training
    assert all(p.device.type == "cpu" for p in model.parameters())
    assert equal(model, before) == set(before)


@pytest.mark.parametrize(
    ("name", "verdict", "says"),
    [
        ("tf_efficientnet_lite0", "good", "ReLU"),
        ("resnet18", "good", "ReLU"),
        ("mobilenetv3_small_100", "fair", "hard-swish"),
        ("semnasnet_100", "fair", "squeeze-excite"),
        ("efficientnet_b0", "poor", "SiLU"),
        ("deit_tiny_patch16_224", "poor", "LayerNorm"),
        ("convnext_tiny", "poor", "LayerNorm"),
    ],
)
def test_int8_friendliness_follows_the_layers(name: str, verdict: str, says: str) -> None:
    with torch.device("meta"):
        found, reason = vision.int8_friendliness(build(name, classes=10, size=224))
    assert found == verdict
    assert says in reason


@pytest.mark.slow
@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda e: e.name)
def test_the_catalogue_counts_right(entry: Any) -> None:
    assert entry.size == vision.input_defaults(entry.name).size
    with torch.device("meta"):
        model = build(entry.name, classes=1000, size=entry.size)
    assert vision.profile(model, entry.size) == (entry.parameters, entry.macs)


@pytest.mark.slow
def test_every_card_is_complete() -> None:
    cards = vision.catalogue()
    assert len({c.name for c in cards}) == len(cards) == len(CATALOGUE)
    assert {c.role for c in cards} == {"teacher", "student"}
    assert all(bool(c.license) == c.hub_weights for c in cards)
