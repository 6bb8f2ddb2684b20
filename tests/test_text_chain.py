"""The whole chain of texts through the command line: other architectures, words and answers, real questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from launched import TEXTS, distilledge
from ruamel.yaml import YAML
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from distilledge.pipeline.data.tickets import tickets
from distilledge.pipeline.recipe import Tickets

pytestmark = pytest.mark.slow

RECIPE = """
schema: 1
name: {kind}
task: {task}
data:
  path: synthetic
  tickets: {{count: {count}, difficulty: 0.0}}
  splits: {{train: 0.5, validation: 0.2, test: 0.3}}
  calibration: 16
teacher:
  model: {model}
  weights: {weights}
  text: {teacher_text}
  training: {{epochs: {epochs}, batch_size: 16, lr: 5e-3}}
student:
  model: teacher
  text: {{layers: [0], max_length: {length}, buckets: [{length}]}}
  training: {{epochs: {epochs}, batch_size: 16, lr: 5e-3}}
distill: {{control: false, losses: [{losses}]}}
export: {{targets: [{targets}]}}
verify: {{samples: 8, min_agreement_fp32: 0.0, min_agreement_int8: 0.0, min_cosine_int8: 0.3}}
measure: {{quick: true, samples: 16, end_to_end: 4, warmup: 2}}
budgets: {{default: {{max_drop_points: 20, max_drop_points_fp32: 20}}}}
gate: {{on_fail: report}}
"""
INT8 = {"onnx": "w8dyn", "openvino": "w8a8", "tflite": "w8dyn"}


def recipe(kind: str, runtimes: tuple[str, ...], **changes: Any) -> str:
    targets = ", ".join(f"{{runtime: {r}, precisions: [fp32, {INT8[r]}]}}" for r in runtimes)
    fields = {
        "kind": kind,
        "task": "text-classification",
        "model": kind,
        "weights": "none",
        "count": 150,
        "length": 48,
        "epochs": 3,
        "losses": "{name: kl}",
    }
    fields |= changes
    length = fields["length"]
    fields.setdefault("teacher_text", f"{{max_length: {length}, buckets: [{length}]}}")
    return RECIPE.format(**fields, targets=targets)


def run(tmp_path: Path, text: str) -> dict[str, Any]:
    """The report of a finished run, and what it scored: file name -> mean of the metric."""
    (tmp_path / "made.yaml").write_text(text, encoding="utf-8")
    done = distilledge("run", "made.yaml", "--json", cwd=tmp_path, imports=TEXTS)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


# --- teachers from small configurations


def words() -> list[str]:
    return [row["text"] for row in tickets(Tickets(count=150, difficulty=0.0), "text-classification")]


def byte_level(special: list[str], vocabulary: int = 400) -> Tokenizer:
    """As GPT-2's."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    made.train_from_iterator(words(), trainer)
    return made


def pieces(special: list[str], unknown: str) -> Tokenizer:
    """As sentencepiece's."""
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token=unknown, show_progress=False)
    made.train_from_iterator(words(), trainer)
    return made


def between(made: Tokenizer, first: str, last: str) -> Tokenizer:
    """With special tokens around each text."""
    single = " ".join(part for part in (first, "$A", last) if part)
    pair = " ".join(part for part in (first, "$A", last, "$B", last) if part)
    ids = [(name, made.token_to_id(name)) for name in (first, last) if name]
    made.post_processor = processors.TemplateProcessing(single, pair, ids)
    return made


def gpt2() -> tuple[Tokenizer, Any]:
    config = transformers.GPT2Config(vocab_size=400, n_positions=48, n_embd=32, n_layer=2, n_head=2)
    return byte_level(["<|endoftext|>"]), transformers.GPT2LMHeadModel(config)


def t5() -> tuple[Tokenizer, Any]:
    config = transformers.T5Config(vocab_size=320, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2)
    made = between(pieces(["<pad>", "</s>", "<unk>"], "<unk>"), "", "</s>")
    return made, transformers.T5ForConditionalGeneration(config)


def llama() -> tuple[Tokenizer, Any]:
    config = transformers.LlamaConfig(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    made = between(byte_level(["<unk>", "<s>", "</s>"]), "<s>", "")
    return made, transformers.LlamaForCausalLM(config)


def modernbert() -> tuple[Tokenizer, Any]:
    config = transformers.ModernBertConfig(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        layer_types=["full_attention", "sliding_attention"],
        local_attention=8,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        cls_token_id=2,
        sep_token_id=3,
    )
    made = between(byte_level(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]), "[CLS]", "[SEP]")
    return made, transformers.ModernBertForMaskedLM(config)


TEACHERS = {"gpt2": gpt2, "t5": t5, "llama": llama, "modernbert": modernbert}


FILES = ("teacher {} fp32", "student {} fp32", "student {} {}")


def check(report: dict[str, Any], runtimes: tuple[str, ...], metric: str) -> dict[str, dict[str, Any]]:
    """Every file was scored, timed and compared rung by rung with torch; returns them by name."""
    files = {file["name"]: file for file in report["files"]}
    assert set(files) == {name.format(r, INT8[r]) for r in runtimes for name in FILES}
    for file in files.values():
        assert 0 <= file["metric"]["value"] <= 100
        assert file["p50"]["value"] > 0
    assert report["recipe"]["metric"] == metric
    assert report["outcome"] in ("pass", "fail", "inconclusive")
    rungs = [rung for parity in report["parities"] for rung in parity["rungs"]]
    assert len(rungs) == 5 * len(runtimes)
    assert all(rung["holds"] for rung in rungs)
    floats = [rung for rung in rungs if rung["reference"].startswith("torch")]
    assert all(rung["agreement"] == 1 for rung in floats)
    return files


@pytest.mark.parametrize(
    ("kind", "runtimes"),
    [
        ("gpt2", ("onnx",)),
        ("t5", ("tflite",)),
        ("llama", ("openvino",)),
        ("modernbert", ("openvino",)),
    ],
)
def test_a_published_teacher_of_another_architecture(kind: str, runtimes: tuple[str, ...], tmp_path: Path) -> None:
    """Its directory as transformers writes it, a student of its first layer, every file judged.

    One runtime each: that every architecture is the same in every runtime is shown in ``test_text_targets.py``.
    """
    torch.manual_seed(0)
    tokenizer, model = TEACHERS[kind]()
    model.save_pretrained(tmp_path / "teacher")
    tokenizer.save(str(tmp_path / "teacher" / "tokenizer.json"))
    found = run(tmp_path, recipe(kind, runtimes, weights=tmp_path / "teacher", epochs=3))
    files = check(found["report"], runtimes, "accuracy")
    sizes = {name: file["size_mb"] for name, file in files.items()}
    for runtime in runtimes:
        assert sizes[f"student {runtime} {INT8[runtime]}"] < sizes[f"student {runtime} fp32"]
        assert sizes[f"student {runtime} fp32"] < sizes[f"teacher {runtime} fp32"]
    teacher = next(c for c in found["report"]["checkpoints"] if c["role"] == "teacher")
    assert teacher["input_spec"]["buckets"] == [48]


SCRATCH = "{{tokenizer: train, vocabulary: 300, max_length: {0}, buckets: [{0}], config: {{hidden_size: 32, "
SCRATCH += "num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 64}}}}"


@pytest.mark.parametrize(
    ("task", "metric", "others", "runtimes", "least"),
    [
        ("token-classification", "entity_f1", {"accuracy"}, ("tflite",), 20.0),
        ("question-answering", "answer_f1", {"exact_match"}, ("onnx",), 5.0),
    ],
)
def test_words_and_answers(
    task: str, metric: str, others: set[str], runtimes: tuple[str, ...], least: float, tmp_path: Path
) -> None:
    changes = {"model": "bert", "length": 80, "teacher_text": SCRATCH.format(80), "count": 240, "epochs": 8}
    found = run(tmp_path, recipe(task, runtimes, task=task, losses="{name: kl}, {name: hidden}", **changes))
    files = check(found["report"], runtimes, metric)
    for file in files.values():
        assert set(file["others"]) == others
        assert file["metric"]["value"] > least, file["name"]
    for runtime in runtimes:
        drop = (
            files[f"student {runtime} fp32"]["metric"]["value"]
            - files[f"student {runtime} {INT8[runtime]}"]["metric"]["value"]
        )
        assert abs(drop) < 10


def test_language_models_before_the_task(tmp_path: Path) -> None:
    """The teacher's on the train texts, the student's taught by it; then copies changed by the teacher's."""
    changes = {"model": "bert", "teacher_text": SCRATCH.format(48), "losses": "{name: kl}"}
    fields = YAML(typ="safe").load(recipe("language", ("onnx",), **changes))
    training = {"epochs": 1, "batch_size": 16}
    fields["teacher"]["pretraining"] = {"training": training}
    fields["student"]["pretraining"] = {"training": training, "losses": [{"name": "kl"}, {"name": "hidden_cosine"}]}
    fields["distill"] |= {"augment_text": {"copies": 1}, "control": True}
    (tmp_path / "made.yaml").write_text(json.dumps(fields), encoding="utf-8")
    done = distilledge("distill", "made.yaml", cwd=tmp_path, imports=TEXTS)
    assert done.returncode == 0, done.stderr
    planned = distilledge("plan", "made.yaml", "--json", cwd=tmp_path, imports=TEXTS)
    cached = [row["stage"] for row in json.loads(planned.stdout) if row["cached"]]
    assert cached == ["data", "pretrain-teacher", "teacher", "pretrain-student", "student", "control"]


def test_real_questions_from_data_to_report(shared: Path, tmp_path: Path) -> None:
    """TREC under ``--smoke``: nothing pretrained, a masked language model first, every runtime."""
    sizes = "{hidden_size: 64, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 128}"
    made = ", ".join(f"{{runtime: {name}, precisions: [fp32, w8dyn]}}" for name in ("onnx", "openvino", "tflite"))
    smaller = [
        f"{role}.text.{change}" for role in ("teacher", "student") for change in (f"config={sizes}", "buckets=[48]")
    ]
    smaller += [f"export.targets=[{made}]", "measure.end_to_end=4", "measure.warmup=2"]
    command = ("run", "trec-scratch", "--smoke", "--json", *(word for change in smaller for word in ("--set", change)))
    done = distilledge(*command, cwd=tmp_path, imports=TEXTS, DISTILLEDGE_SHARED=str(shared))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    names = {file["name"] for file in found["report"]["files"]}
    targets = found["report"]["recipe"]["export"]["targets"]
    assert [target["runtime"] for target in targets] == ["onnx", "openvino", "tflite"]
    for target in targets:
        assert f"teacher {target['runtime']} fp32" in names
        assert {f"student {target['runtime']} {p}" for p in target["precisions"]} <= names
    assert (Path(found["run"]) / "report.html").stat().st_size > 10_000
    assert [s["name"] for s in found["report"]["stages"]][:4] == ["data", "pretrain-teacher", "teacher", "student"]
