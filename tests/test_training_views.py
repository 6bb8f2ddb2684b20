"""Views, their order and mixing, the picture cache, and the small functions around a step."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from distilledge.models.losses import one_hot
from distilledge.pipeline.recipe import Augment, RandAugment
from distilledge.pipeline.record import Sample
from distilledge.pipeline.training.average import Average
from distilledge.pipeline.training.counters import Purpose, epoch_order, generator
from distilledge.pipeline.training.evaluate import score
from distilledge.pipeline.training.mixing import Batch, mix
from distilledge.pipeline.training.objective import balanced_weights
from distilledge.pipeline.training.pictures import FromFiles, cache_key, cached, shrink
from distilledge.pipeline.training.schedule import lr_factor
from distilledge.pipeline.training.views import (
    Steps,
    ToInput,
    ViewRule,
    Views,
    crop_region,
    evaluation_batches,
    make_view,
    view_loader,
)
from distilledge.targets.ondevice.preprocess import InputSpec, preprocess

NOISE = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
COUNTERS = st.integers(0, 2**31 - 1)


def rule(resize: str = "stretch", seed: int = 0, size: int = 24, **augment: object) -> ViewRule:
    return ViewRule(InputSpec(size, size, resize=resize), Augment.model_validate(augment), seed)


# --- views are functions of (seed, epoch, index)


@given(COUNTERS, COUNTERS, COUNTERS, COUNTERS)
@settings(max_examples=25, deadline=None)
def test_a_view_depends_on_its_counters_alone(seed: int, epoch: int, index: int, elsewhere: int) -> None:
    everything = rule(seed=seed, vertical_flip=0.5, randaugment=RandAugment())
    first = make_view(NOISE, everything, epoch, index)
    torch.manual_seed(elsewhere)
    np.random.default_rng().random(3)
    assert np.array_equal(first, make_view(NOISE, everything, epoch, index))


def test_a_view_leaves_torch_s_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    make_view(NOISE, rule(randaugment=RandAugment()), 0, 0)
    assert torch.equal(torch.rand(2), expected)


def test_epochs_pictures_and_seeds_give_other_views() -> None:
    views = [make_view(NOISE, rule(seed=s), e, i) for s, e, i in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))]
    assert all(not np.array_equal(a, b) for n, a in enumerate(views) for b in views[:n])


@pytest.mark.parametrize("resize", ["stretch", "crop", "letterbox"])
def test_without_augmentation_the_view_is_what_evaluation_sees(resize: str, tmp_path: Path) -> None:
    Image.fromarray(NOISE).save(tmp_path / "a.png")
    plain = rule(resize, crop_scale=(1.0, 1.0), horizontal_flip=0.0)
    assert np.array_equal(make_view(NOISE, plain, 5, 7), preprocess(tmp_path / "a.png", plain.spec))


@given(
    st.integers(8, 200),
    st.integers(8, 200),
    st.sampled_from(["stretch", "crop"]),
    st.floats(0.05, 1),
    COUNTERS,
)
@settings(deadline=None)
def test_a_crop_lies_inside_and_keeps_its_share(width: int, height: int, resize: str, low: float, index: int) -> None:
    made = rule(resize, crop_scale=(low, 1.0))
    left, top, right, bottom = crop_region((width, height), made, generator(Purpose.VIEW, 0, 0, index))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    share = (right - left) * (bottom - top) / (width * height)
    assert share <= 1 + 1e-9
    if right - left < width - 1e-6 and bottom - top < height - 1e-6:  # no side was cut
        assert share >= low - 1e-9


def test_flips_happen_as_often_as_asked() -> None:
    made = rule(crop_scale=(1.0, 1.0), horizontal_flip=0.25)
    plain = make_view(NOISE, rule(crop_scale=(1.0, 1.0), horizontal_flip=0.0), 0, 0)
    views = [make_view(NOISE, made, 0, i) for i in range(400)]
    flipped = sum(np.array_equal(view, plain[:, ::-1]) for view in views)
    assert all(np.array_equal(v, plain) or np.array_equal(v, plain[:, ::-1]) for v in views)
    assert 70 <= flipped <= 130


# --- the order of an epoch


@given(st.integers(1, 200), st.integers(1, 64), COUNTERS, st.integers(0, 50))
@settings(max_examples=50, deadline=None)
def test_an_epoch_shows_every_picture_in_full_steps(pictures: int, size: int, seed: int, epoch: int) -> None:
    steps = Steps(np.zeros(pictures, np.int64), size, seed=seed, balanced=False)
    order = steps.order(epoch)
    assert order.shape == (len(steps), min(size, pictures))
    assert set(order.ravel().tolist()) == set(range(pictures))
    steps.epoch, steps.first = epoch, len(steps) // 2
    assert [[i for _, i in keys] for keys in steps] == order[len(steps) // 2 :].tolist()


@given(st.integers(1, 5), st.integers(1, 40), COUNTERS)
@settings(max_examples=30, deadline=None)
def test_processes_share_a_step(processes: int, size: int, seed: int) -> None:
    labels = np.zeros(97, np.int64)
    parts = [Steps(labels, size, seed=seed, balanced=False, rank=r, processes=processes) for r in range(processes)]
    for keys in zip(*parts, strict=True):
        assert len({len(part) for part in keys}) == 1
        assert len({key for part in keys for key in part}) == parts[0].step_size or len(labels) % parts[0].step_size


def test_balanced_sampling_draws_classes_equally() -> None:
    labels = np.array([0] * 90 + [1] * 9 + [2] * 1 + [-1] * 7)
    order = epoch_order(labels, 0, 0, balanced=True)
    counts = np.bincount(labels[order] + 1)
    assert counts[0] == 7  # each picture without a label once
    assert sorted(counts[1:]) == [33, 33, 34]
    drawn_of_1 = np.bincount(order[labels[order] == 1])[90:99]
    assert drawn_of_1.max() - drawn_of_1.min() <= 1


# --- mixing


def batch() -> Batch:
    pictures = torch.from_numpy(np.stack([np.full((10, 20, 3), 20 * i, np.uint8) for i in range(6)]))
    return Batch(pictures.permute(0, 3, 1, 2), one_hot(torch.tensor([0, 1, 2, 0, 1, -1]), 3))


@given(COUNTERS, st.sampled_from(["mixup", "cutmix"]))
@settings(max_examples=40, deadline=None)
def test_targets_are_mixed_as_the_pictures_are(step: int, name: str) -> None:
    """Even pictures of value 20 i: the mean value of a mixture says what its target must be."""
    plain = batch()
    found = mix(plain, Augment.model_validate({name: 1.0}), generator(Purpose.MIX, 0, 0, step))
    keep = generator(Purpose.MIX, 0, 0, step)
    keep.integers(1)
    share = keep.beta(1.0, 1.0)
    partner = keep.permutation(6)
    means = found.inputs.float().mean((1, 2, 3))
    for i in range(6):
        if partner[i] == i:
            continue
        part = float((means[i] - 20 * partner[i]) / (20 * i - 20 * partner[i]))
        expected = part * plain.targets[i] + (1 - part) * plain.targets[partner[i]]
        torch.testing.assert_close(found.targets[i], expected, atol=0.03, rtol=0)
        if name == "mixup":
            assert part == pytest.approx(share, abs=0.03)
    assert found.inputs.dtype == torch.uint8


def test_mixing_is_drawn_from_its_counters() -> None:
    both = Augment(mixup=0.5, cutmix=0.5)
    first, second, other = (mix(batch(), both, generator(Purpose.MIX, 0, 0, step)) for step in (1, 1, 2))
    assert torch.equal(first.inputs, second.inputs)
    assert not torch.equal(first.targets, other.targets)
    assert mix(batch(), Augment(), generator(Purpose.MIX, 0, 0, 0)).targets.equal(batch().targets)


# --- pictures and their cache


@pytest.fixture
def files(tmp_path: Path) -> tuple[list[Sample], Path]:
    samples = []
    for i in range(5):
        array = np.random.default_rng(i).integers(0, 256, (40 + 30 * i, 60, 3), dtype=np.uint8)
        Image.fromarray(array).save(tmp_path / f"{i}.png")
        samples.append(Sample(f"{i}.png", i % 2, "", "train", f"hash{i}", False))
    return samples, tmp_path


def test_the_cache_holds_what_the_files_give(files: tuple[list[Sample], Path]) -> None:
    samples, root = files
    spec = InputSpec(32, 32)
    source = FromFiles(samples, root, spec, fitted=False)
    key = cache_key(samples, spec, fitted=False)
    cache = cached(source, key, root / "cache", workers=0)
    assert min(cache[4].shape[:2]) == 37  # round(1.15 x 32); the sides keep their ratio
    assert cache[4].shape == (99, 37, 3)
    for i in range(5):
        assert np.array_equal(cache[i], source[i])
    assert key != cache_key(samples, InputSpec(33, 33), fitted=False)
    assert key != cache_key(samples[:-1], spec, fitted=False)
    assert key == cache_key(samples, InputSpec(32, 32, mean=(0.5, 0.5, 0.5)), fitted=False)
    cache.close()


def test_a_damaged_cache_is_not_believed(files: tuple[list[Sample], Path]) -> None:
    samples, root = files
    source = FromFiles(samples, root, InputSpec(32, 32), fitted=True)
    cached(source, "k", root / "cache", workers=0).close()
    path = root / "cache" / "k" / "pictures.bin"
    raw = bytearray(path.read_bytes())
    raw[5000] ^= 255
    path.write_bytes(raw)
    damaged = cached(source, "k", root / "cache", workers=0)  # of the right size: noticed where it is read
    assert all(np.array_equal(damaged[i], source[i]) for i in range(5))
    damaged.close()
    path.write_bytes(raw[:-1])
    rebuilt = cached(source, "k", root / "cache", workers=0)
    assert path.stat().st_size == len(raw)
    assert all(np.array_equal(rebuilt[i], source[i]) for i in range(5))
    rebuilt.close()


def test_a_killed_cache_leaves_nothing_behind(files: tuple[list[Sample], Path]) -> None:
    samples, root = files
    dead = root / "cache" / ".tmp-k-dead"
    dead.mkdir(parents=True)
    cached(FromFiles(samples, root, InputSpec(32, 32), fitted=True), "k", root / "cache", workers=0).close()
    assert not dead.exists()


def test_small_pictures_are_not_enlarged() -> None:
    assert shrink(Image.new("RGB", (20, 90)), 224).size == (20, 90)
    assert shrink(Image.new("RGB", (2000, 1000)), 100).size == (230, 115)


def test_evaluation_batches_are_the_device_s_pictures(files: tuple[list[Sample], Path]) -> None:
    samples, root = files
    spec = InputSpec(16, 16, resize="crop", crop_fraction=0.9)
    found = list(evaluation_batches(samples, root, spec, 2))
    assert [len(labels) for _, labels in found] == [2, 2, 1]
    pictures = torch.cat([p for p, _ in found]).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(pictures, np.stack([preprocess(root / s.path, spec) for s in samples]))
    assert torch.cat([labels for _, labels in found]).tolist() == [s.label for s in samples]


def test_loader_processes_give_the_same_views(files: tuple[list[Sample], Path]) -> None:
    samples, root = files
    made = rule(size=16)
    views = Views(FromFiles(samples, root, made.spec, fitted=False), made)
    found = []
    for workers in (0, 2):
        steps = Steps(np.zeros(5, np.int64), 2, seed=1, balanced=False)
        steps.epoch = 3
        loaded = list(view_loader(views, steps, workers=workers, pin=False))
        assert loaded[0].inputs.is_contiguous(memory_format=torch.channels_last)
        found.append(loaded)
    for one, other in zip(*found, strict=True):
        assert torch.equal(one.inputs, other.inputs)
        assert torch.equal(one.indices, other.indices)


# --- inputs, averages, rates, weights


def test_inputs_are_normalised_and_resized() -> None:
    spec = InputSpec(12, 12, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0))
    views = torch.from_numpy(make_view(NOISE, rule(size=24), 0, 0)).permute(2, 0, 1)[None]
    own = ToInput(InputSpec(24, 24, mean=spec.mean, std=spec.std))(views)
    for channel in range(3):
        expected = (views[0, channel] / 255 - spec.mean[channel]) / spec.std[channel]
        torch.testing.assert_close(own[0, channel], expected)
    half = ToInput(InputSpec(12, 12))(views)
    by_pillow = np.asarray(Image.fromarray(views[0].permute(1, 2, 0).numpy()).resize((12, 12), Image.BILINEAR))
    assert np.abs(half[0].permute(1, 2, 0).numpy() * 255 - by_pillow).max() <= 1.01


def test_an_average_follows() -> None:
    model = nn.BatchNorm1d(2)
    average = Average(model, decay=0.5)
    model.weight.data.fill_(3.0)
    model.running_mean.fill_(1.0)
    model.num_batches_tracked.fill_(9)
    average.update(model, 0)  # decay min(0.5, 1 / 10)
    torch.testing.assert_close(average.model.weight.data, torch.full((2,), 0.1 * 1 + 0.9 * 3))
    torch.testing.assert_close(average.model.running_mean, torch.full((2,), 0.9))
    assert average.model.num_batches_tracked == 9
    average.update(model, 10_000)  # decay 0.5
    torch.testing.assert_close(average.model.weight.data, torch.full((2,), 0.5 * 2.8 + 0.5 * 3))


@given(st.integers(1, 500), st.integers(0, 600), st.floats(0, 1))
def test_the_rate_rises_then_falls_to_its_last_value(steps: int, warmup: int, last: float) -> None:
    factors = [lr_factor(i, steps, warmup, last) for i in range(steps)]
    assert all(0 < f <= 1 or math.isclose(f, last) for f in factors)
    rising = factors[:warmup]
    assert rising == sorted(rising)
    assert factors[warmup:] == sorted(factors[warmup:], reverse=True)
    if steps > warmup + 1:
        assert factors[-1] == pytest.approx(last)
        assert factors[warmup] == pytest.approx(1)


def test_balanced_weights_make_classes_weigh_the_same() -> None:
    labels = torch.tensor([0] * 6 + [1] * 3 + [-1] * 4)
    found = balanced_weights(labels, 3)
    assert found == pytest.approx([9 / (3 * 6), 9 / (3 * 3), 0.0])
    assert found[0] * 6 == pytest.approx(found[1] * 3)


def test_scores_are_those_of_sklearn() -> None:
    from sklearn.metrics import accuracy_score, balanced_accuracy_score, log_loss

    random = np.random.default_rng(0)
    logits, labels = random.normal(0, 2, (200, 4)).astype(np.float32), random.integers(0, 4, 200)
    found = score(logits, labels)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert found["accuracy"] == accuracy_score(labels, logits.argmax(1))
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, logits.argmax(1)))
    assert found["loss"] == pytest.approx(log_loss(labels, probabilities), rel=1e-5)
    assert json.dumps(found)
