"""The pruning stage in small trainings: after the student, by MACs and by measured latency, and in a whole chain."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from test_training import SPLITS_VALUE, data, folders, recipe, teacher, weights

from distilledge.models import pruning, vision
from distilledge.pipeline import checkpoint as checkpoints
from distilledge.pipeline.interrupt import Interrupted
from distilledge.pipeline.recipe import Recipe
from distilledge.pipeline.record import Checkpoint
from distilledge.pipeline.training.distill import distill
from distilledge.pipeline.training.events import ProgressEvent, silent
from distilledge.pipeline.training.prune import prune
from distilledge.targets.samples import pictures

pytest.importorskip("torch_pruning", reason="torch-pruning is not installed: pip install torch-pruning")
pytestmark = pytest.mark.slow
__all__ = ["data", "teacher"]
"""Fixtures, for pytest."""

Taught = tuple[Checkpoint, Path]


def asked(settings: dict[str, Any], **rest: Any) -> Recipe:
    made = recipe(**rest).model_dump(mode="json", by_alias=True)
    made["student"] |= {"prune": settings, "model": "mobilenetv1_025"}
    return Recipe.model_validate(made)


def unpruned(made: Recipe, data: Path, tmp_path: Path) -> Taught:
    out, partial = folders(tmp_path, "unpruned")
    return distill(made, SPLITS_VALUE, data, None, out, partial=partial, report=silent), out


def cut(made: Recipe, goal: float, source: Taught, data: Path, place: tuple[Path, Path], **rest: Any) -> Checkpoint:
    settings = {"taught_by": None, "report": silent, **rest}
    inputs = pictures(sorted((data / "images").iterdir()))
    return prune(made, SPLITS_VALUE, data, source, goal, place[0], inputs=inputs, partial=place[1], **settings)


def test_it_is_cut_taught_again_and_read_back(data: Path, teacher: Taught, tmp_path: Path) -> None:
    """Twice, with a loss that looks at feature maps, whose channels are fewer; interrupted, it ends with equal bits."""
    recovery = {"epochs": 2, "batch_size": 8}
    made = asked({"macs": 0.3, "rounds": 2, "training": recovery}, distill={"losses": [{"name": "hint"}]})
    source = unpruned(made, data, tmp_path)
    one = folders(tmp_path, "one")
    first = cut(made, 0.55, source, data, one, taught_by=teacher)

    def interrupt(event: ProgressEvent) -> None:
        if (event.epoch, event.step) == (2, 2):
            os.kill(os.getpid(), signal.SIGINT)

    whole, broken = folders(tmp_path, "whole"), folders(tmp_path, "broken")
    second = cut(made, 0.3, (first, one[0]), data, whole, taught_by=teacher)
    with pytest.raises(Interrupted):
        cut(made, 0.3, (first, one[0]), data, broken, taught_by=teacher, report=interrupt)
    again = cut(made, 0.3, (first, one[0]), data, broken, taught_by=teacher)
    assert again.weights_sha256 == second.weights_sha256
    assert (second.role, second.epochs) == ("student", 2)
    size = source[0].macs
    assert 0.55 * size >= first.macs > 0.3 * size >= second.macs > 0.05 * size
    model = checkpoints.load(Checkpoint.model_validate_json(second.model_dump_json()), whole[0])
    assert vision.profile(model, 32) == (second.parameters, second.macs)
    assert {n: t.shape for n, t in weights(whole[0]).items()} == {n: t.shape for n, t in model.state_dict().items()}


def test_by_latency(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A goal that a network of a twentieth of the channels meets on any machine."""
    monkeypatch.setattr(pruning, "STEPS", 1)
    made = asked({"latency": 0.8}, export={"targets": [{"runtime": "onnx"}]}).model_dump(mode="json", by_alias=True)
    made["student"]["model"], made["student"]["input"]["size"] = "mobilenetv1_050", 128
    own = Recipe.model_validate(made)
    source = unpruned(own, data, tmp_path)
    found = cut(own, 0.8, source, data, folders(tmp_path, "fast"))
    assert found.role == "control"
    assert found.macs < source[0].macs
    assert found.architecture["channels"]
