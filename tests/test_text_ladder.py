"""The quantization ladder for texts: its rungs, its rules, and a climb in each runtime and through the whole chain."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from launched import TEXTS, distilledge
from made_texts import CLASSES, made_encoder, made_rows

from distilledge.models import text
from distilledge.models.errors import UsageError
from distilledge.pipeline.compress.calibration import audit
from distilledge.pipeline.compress.climb import choose
from distilledge.pipeline.compress.judge import Ground
from distilledge.pipeline.compress.ladder import RUNGS, Bench
from distilledge.pipeline.compress.ladder_text import FASTEST_FIRST, ISLANDS, TEXT_RUNGS
from distilledge.pipeline.compress.ledger import Tried
from distilledge.pipeline.compress.stage import Climb, Student, climb_runtime, unleaked
from distilledge.pipeline.export import finished
from distilledge.pipeline.recipe import Budget, Recipe
from distilledge.pipeline.recipe_check import check_recipe
from distilledge.pipeline.record import Sample
from distilledge.pipeline.stats import Estimate
from distilledge.pipeline.steps import climbs, steps
from distilledge.targets import TARGETS, get
from distilledge.targets.base import TextDeployable
from distilledge.targets.devices.local import LocalDevice
from distilledge.targets.ranges import observe
from distilledge.targets.samples import Samples
from distilledge.targets.scheme import LayerError

TEXT = {"name": "a", "task": "text-classification"}


# --- rungs ------------------------------------------------------------------------------------------------------------


def bench(runtime: str, layers: int = 12) -> Bench:
    """What the rungs ask for, without a file."""
    errors = [LayerError(name=f"l{i}", kind="MatMul", place=(7 * i) % layers, sqnr_db=i, kl=0) for i in range(layers)]
    names = tuple(f"l{place}" for place in range(layers))
    target = SimpleNamespace(NAME=runtime, layer_names=lambda _path: names)
    return cast(Bench, SimpleNamespace(target=target, fp32=Path("fp32"), layers=errors, seen={}))


def test_every_runtime_has_a_first_int8_for_texts_and_no_rung_is_unknown_to_recipes() -> None:
    assert set(FASTEST_FIRST) == set(TARGETS)
    assert set(TEXT_RUNGS) <= set(RUNGS)
    for runtime, precisions in FASTEST_FIRST.items():
        assert [a.precision for a in TEXT_RUNGS["ptq"](bench(runtime))] == list(precisions)


@pytest.mark.parametrize("runtime", TARGETS)
def test_islands_are_the_worst_layers_in_the_fastest_int8(runtime: str) -> None:
    made = list(TEXT_RUNGS["islands"](bench(runtime)))
    assert [a.scheme.islands for a in made] == [("l0",), ("l0", "l7"), ("l0", "l2", "l7", "l9")]
    assert {a.precision for a in made} == {FASTEST_FIRST[made[0].source and get(runtime).NAME][0]}
    assert not list(TEXT_RUNGS["islands"](bench(runtime, layers=1)))


def test_smoothing_is_openvinos_and_litert_has_no_ranges() -> None:
    tried = [a.scheme for a in TEXT_RUNGS["ranges"](bench("openvino"))]
    assert {s.smooth for s in tried} == {None, 0.5, -1.0}
    assert [s.words for s in tried] == [", SmoothQuant 0.5", ", no SmoothQuant", ", asymmetric activations"]
    assert [a.scheme.ranges_name for a in TEXT_RUNGS["ranges"](bench("onnx"))] == ["percentile", "MSE"]
    assert not list(TEXT_RUNGS["ranges"](bench("tflite")))


def tried(precision: Any, agreement: float) -> Tried:
    return Tried(
        rung="a", recipe="", precision=precision, outcome="undecided", reason="", drop=Estimate(value=0.0),
        agreement=agreement, answers=2, size_mb=1.0, seconds=0.0,
    )  # fmt: skip


def test_dynamic_int8_is_int8() -> None:
    assert choose([tried("w8", 0.99), tried("w8dyn", 0.9)]) == 1
    assert choose([tried("w8a8", 0.9), tried("w8dyn", 0.95)]) == 1


def test_ranges_of_texts_of_several_lengths() -> None:
    rows = [np.full((1, n), n, np.int32) for n in (3, 3, 5, 4, 4, 4)]
    shapes: list[tuple[int, ...]] = []

    def tensors(some: np.ndarray) -> dict[str, np.ndarray]:
        shapes.append(some.shape)
        return {"x": some.astype(np.float32)}

    seen = observe(tensors, rows)["x"]
    assert seen.high.tolist() == [3, 3, 5, 4, 4, 4]
    assert sum(shape[0] for shape in shapes) == len(rows)
    assert len(seen.values) == sum(row.size for row in rows)


# --- recipes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "climbed"), [("w8dyn", True), ("w8a8", True), ("fp16", False)])
def test_texts_climb_where_int8_of_either_kind_is_asked_for(precision: str, climbed: bool) -> None:
    export = {"targets": [{"runtime": "onnx", "precisions": ["fp32", precision]}]}
    recipe = Recipe.model_validate({**TEXT, "compress": {"climb": True}, "export": export})
    assert climbs(recipe, "student", ["fp32", precision]) == climbed
    if climbed:
        check_recipe(recipe)
    else:
        with pytest.raises(UsageError, match="w8a8 or w8dyn"):
            check_recipe(recipe)
    assert not climbs(recipe.model_copy(update={"task": "image-classification"}), "student", ["w8dyn"])


def test_rungs_that_are_empty_in_a_runtime_need_one_that_is_not() -> None:
    with pytest.raises(UsageError, match=r"compress\.rungs: of texts"):
        check_recipe(Recipe.model_validate({**TEXT, "compress": {"climb": True, "rungs": ["ranges", "bias"]}}))


def test_the_lengths_that_files_are_timed_at_are_part_of_the_climb() -> None:
    card = {"machine": "x86_64", "cpu_flags": []}
    data = {"path": "synthetic", "tickets": {"count": 60}}
    made = [
        {s.name: s for s in steps(Recipe.model_validate({**TEXT, **more, "data": data}), card)}["export-student-onnx"]
        for more in (
            {},
            {"measure": {"lengths": [16]}},
            {"compress": {"climb": True}},
            {"compress": {"climb": True}, "measure": {"lengths": [16]}},
        )
    ]
    assert made[0].fingerprint == made[1].fingerprint
    assert len({step.fingerprint for step in made}) == 3
    assert "lengths" not in made[2].inputs["compress"]["measure"]


def samples(many: int) -> list[Sample]:
    splits: list[Any] = ["train"] * (many // 2) + ["validation"] * (many - many // 2)
    return [
        Sample(f"a.csv:{i}", 0, "", splits[i], hashlib.sha256(str(i).encode()).hexdigest(), i < many // 2)
        for i in range(many)
    ]


def test_allowed_leakage_is_not_calibrated_on() -> None:
    given = samples(8)
    held = [*given[4:], given[1]._replace(split="test")]
    climb = Climb(cast(Ground, None), given[:4], Samples((), text=True), held)
    assert unleaked(climb) == [0, 2, 3]


def test_the_auditor_counts_classes_only_where_a_sample_has_one() -> None:
    chosen = [s._replace(label=i % 2) for i, s in enumerate(samples(8)[:4])]
    assert audit(chosen, ("a", "b", "c"), {}).missing == ("c",)
    several = audit(chosen, (), {})
    assert (several.pictures, several.per_class, several.missing) == (4, {}, ())


# --- climbs -----------------------------------------------------------------------------------------------------------


def student(runtime: str, task: str, folder: Path) -> tuple[Student, Any]:
    """A small BERT with weights large enough that int8 shows, its tokenizer and fp32 file."""
    target, encoder = get(runtime), made_encoder(folder, task, 32)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    torch.manual_seed(0)
    net = text.from_config(
        "bert", sizes, task=task, classes=len(CLASSES[task]), vocabulary_size=encoder.vocabulary, max_length=32,
        pad_id=0, sep_id=3,
    )  # fmt: skip
    for parameter in net.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    spec = encoder.spec.to_dict() | {"buckets": () if target.ANY_LENGTH else (16, 32)}
    deployable = TextDeployable(
        input_spec=spec, max_length=32, pad_id=0, buckets=spec["buckets"], classes=CLASSES[task]
    )
    path = target.export(net.eval(), deployable, folder)
    fp32 = finished(target, [path, folder / "tokenizer.json"], "fp32", "as exported", deployable, 0.0)
    return Student(target, net, deployable, fp32, folder), encoder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("runtime", "task", "rungs"),
    [
        ("onnx", "token-classification", ("ptq", "ranges", "islands", "w8")),
        ("openvino", "question-answering", ("ptq", "ranges", "islands")),
        ("tflite", "text-classification", ("ptq", "islands")),
    ],
)
def test_every_rung_makes_a_file_that_answers(runtime: str, task: str, rungs: tuple[str, ...], tmp_path: Path) -> None:
    one, _ = student(runtime, task, tmp_path)
    rows, labels = made_rows(task, 40)
    given = [s._replace(label=label) for s, label in zip(samples(40), labels, strict=True)]
    texts = [{"text": r.text if isinstance(r.text, str) else list(r.text), "context": r.context} for r in rows]
    calibration, inputs = Samples(tuple(texts[:20]), text=True), Samples(tuple(texts[20:]), text=True)
    recipe = Recipe.model_validate({"name": "a", "task": task, "compress": {"climb": True, "rungs": rungs}})
    too_small = Budget(max_size_mb=1e-6)  # so that every rung is tried, and none is timed
    ground = Ground(recipe, too_small, LocalDevice(), given[20:], inputs, rows[20:])
    (out := tmp_path / "out").mkdir()
    taken, ledger = climb_runtime(one, Climb(ground, given[:20], calibration, given[20:]), out)
    fastest = FASTEST_FIRST[one.target.NAME]
    assert tuple(t.precision for t in ledger.tried if t.rung == "ptq") == fastest
    assert {t.rung for t in ledger.tried} == set(rungs)
    islands = [t for t in ledger.tried if t.rung == "islands"]
    assert [(len(t.islands), t.precision) for t in islands] == [(n, fastest[0]) for n in ISLANDS]
    assert all(t.recipe.endswith(f"{len(t.islands)} layers in float") for t in islands)
    assert len({t.recipe for t in ledger.tried}) == len(ledger.tried)
    assert ledger.outcome == "fails"
    assert max(t.agreement for t in ledger.tried) >= 0.5
    assert len(ledger.layers) >= 13
    assert ledger.layers[0].sqnr_db < 60
    assert taken.files[-1] == "tokenizer.json"
    assert [hashlib.sha256((out / name).read_bytes()).hexdigest() for name in taken.files] == list(taken.sha256)
    assert bool(ledger.audit.per_class) == (task == "text-classification")


RECIPE = """
schema: 1
name: made
task: text-classification
data:
  path: synthetic
  tickets: {count: 150, difficulty: 0.0}
  splits: {train: 0.5, validation: 0.2, test: 0.3}
  calibration: 16
teacher:
  model: bert
  weights: none
  text:
    max_length: 48
    tokenizer: train
    config: {hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 64}
  training: {epochs: 3, batch_size: 16, lr: 5e-3}
student:
  model: teacher
  text: {layers: [0], max_length: 48}
  training: {epochs: 3, batch_size: 16, lr: 5e-3}
distill: {control: false, losses: [{name: kl}]}
export: {targets: [{runtime: onnx, precisions: [fp32, w8a8, w8dyn]}]}
compress: {climb: true, max_slowdown: 100}
verify: {samples: 8, min_agreement_fp32: 0.0, min_agreement_int8: 0.0, min_cosine_int8: 0.3}
measure: {quick: true, samples: 16, end_to_end: 4, warmup: 2, lengths: [8, 24]}
budgets: {default: {max_drop_points: 20, max_drop_points_fp32: 20}}
gate: {on_fail: report}
"""


@pytest.mark.slow
def test_the_chain_ships_one_int8_file_and_its_ledger(tmp_path: Path) -> None:
    (tmp_path / "made.yaml").write_text(RECIPE, encoding="utf-8")
    done = distilledge("run", "made.yaml", "--json", cwd=tmp_path, imports=TEXTS)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)["report"]
    ((runtime, ledger),) = report["ledgers"]
    taken = ledger["tried"][ledger["taken"]]
    assert (runtime, taken["rung"], taken["precision"]) == ("onnx", "ptq", "w8dyn")
    assert taken["p50_ratio"]["value"] > 0
    made = {f["precision"] for f in report["files"] if f["role"] == "student"}
    assert made == {"fp32", "w8dyn"}  # static int8 was asked for too: the ladder makes one file in place of both
    assert "validation texts" in (tmp_path / "distilledge-work/runs/made/report.md").read_text(encoding="utf-8")
    shutil.rmtree(tmp_path / "distilledge-work")
