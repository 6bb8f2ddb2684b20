"""Training curves in TensorBoard and MLflow, through Accelerate; each skips where its extra is not installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from test_training import control, data, folders, recipe, rows  # noqa: F401 (data is a fixture)

from distilledge.models.errors import MissingPackageError, UsageError


def trained(data: Path, tmp_path: Path, tracker: str) -> tuple[list[dict[str, float]], Path]:  # noqa: F811
    """The curve, and where the tracker wrote."""
    control(data, tmp_path, recipe(student={"tracker": tracker, "epochs": 2}))
    out, partial = folders(tmp_path)
    return rows(out), partial / "tracker"


def test_tensorboard_has_the_curves(data: Path, tmp_path: Path) -> None:  # noqa: F811
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    curve, place = trained(data, tmp_path, "tensorboard")
    written = accumulator.EventAccumulator(str(next(place.rglob("events.*")).parent))
    written.Reload()
    assert {"train_loss", "accuracy"} <= set(written.Tags()["scalars"])
    losses = written.Scalars("train_loss")
    assert [event.step for event in losses] == [1, 2]
    assert [event.value for event in losses] == pytest.approx([row["train_loss"] for row in curve])


def test_mlflow_has_the_curves(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Into a folder, which mlflow-skinny writes to only when told so; usually it is a server."""
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/mlflow")
    curve, _ = trained(data, tmp_path, "mlflow")
    client = mlflow.MlflowClient(tracking_uri=f"file:{tmp_path}/mlflow")
    runs = [run for found in client.search_experiments() for run in client.search_runs([found.experiment_id])]
    assert len(runs) == 1
    losses = client.get_metric_history(runs[0].info.run_id, "train_loss")
    assert [metric.step for metric in losses] == [1, 2]
    assert [metric.value for metric in losses] == pytest.approx([row["train_loss"] for row in curve])


def test_mlflow_without_a_server_says_so(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UsageError, match="E2627") as caught:
        trained(data, tmp_path, "mlflow")
    assert "MLFLOW_TRACKING_URI" in caught.value.hint


@pytest.mark.parametrize("tracker", ["tensorboard", "mlflow"])
def test_a_tracker_that_is_not_installed_says_so(tracker: str, data: Path, tmp_path: Path) -> None:  # noqa: F811
    if importlib.util.find_spec(tracker) is not None:
        pytest.skip(f"{tracker} is installed")
    with pytest.raises(MissingPackageError, match="E4603") as caught:
        trained(data, tmp_path, tracker)
    assert caught.value.hint == f'pip install "distilledge[{tracker}]"'
