"""Hub names are read from a local Hugging Face cache, offline, as a machine without network has it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from distilledge.models import vision

pytestmark = pytest.mark.slow

REVISION = "a" * 40
MODEL = "test_efficientnet"
CREATE = f"""
import sys
from distilledge.models import vision
from distilledge.models.errors import RejectedError
for classes in sys.argv[1:]:
    try:
        model = vision.create({MODEL!r}, classes=int(classes), size=64, weights="hub")
    except RejectedError as error:
        print(error.code, error, error.hint, sep="|")
    else:
        head = model.get_classifier()
        print(float(model.conv_stem.weight.sum()), float(head.weight.abs().max()))
"""


def run(code: str, home: Path, *arguments: str) -> str:
    """Output of a fresh process whose Hugging Face home is ``home``: the libraries read that when imported."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGINGFACE_", "XDG_"))}
    environment = {**kept, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def home(tmp_path: Path) -> tuple[Path, float]:
    """A cache with weights of a timm model, and the sum of its first kernel; every weight of the head is 0.5."""
    repository = tmp_path / "hub" / f"models--timm--{MODEL}.r160_in1k"
    snapshot = repository / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(REVISION)
    torch.manual_seed(1)
    state = vision.create(MODEL, classes=1000, size=64).state_dict()
    state["classifier.weight"].fill_(0.5)
    save_file(state, snapshot / "model.safetensors")
    return tmp_path, float(state["conv_stem.weight"].sum())


def test_timm_weights_with_a_new_head_and_with_their_own(home: tuple[Path, float]) -> None:
    new, own = ([float(word) for word in line.split()] for line in run(CREATE, home[0], "7", "1000").splitlines())
    assert new[0] == own[0] == pytest.approx(home[1])
    assert new[1] < 0.1
    assert own[1] == 0.5


def test_weights_that_are_not_in_the_cache(tmp_path: Path) -> None:
    code, text, hint = run(CREATE, tmp_path, "7").split("|")
    assert code == "E3409"
    assert f"cannot get model.safetensors of timm/{MODEL}.r160_in1k, the hub weights of {MODEL}" in text
    assert hint == (
        f"with a network, run `hf download timm/{MODEL}.r160_in1k model.safetensors`, or give the file as `weights:`"
    )


MAKE = """
import sys, datasets
datasets.load_dataset("imagefolder", data_dir=sys.argv[1])
"""
LIST = """
import sys
from pathlib import Path
from distilledge.pipeline.data.huggingface import huggingface
from distilledge.pipeline.recipe import Data
found = huggingface(Data(path="someone/parts"), Path(sys.argv[1]))
print(*sorted((row.split, row.label) for row in found.rows))
"""


def test_a_data_set_in_the_cache(tmp_path: Path) -> None:
    """The cache entry is made by `datasets` itself from a folder, then given the name of a hub data set."""
    for split, label in (("train", "good"), ("train", "pit"), ("test", "pit")):
        (tmp_path / "made" / split / label).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), "red" if label == "pit" else "blue").save(tmp_path / "made" / split / label / "0.png")
    home = tmp_path / "home"
    run(MAKE, home, str(tmp_path / "made"))
    entry = next((home / "datasets" / "imagefolder").glob("default-*/0.0.0/*/dataset_info.json")).parent
    place = home / "datasets" / "someone___parts" / "default" / "0.0.0" / REVISION
    shutil.copytree(entry, place)
    for file in place.glob("imagefolder-*.arrow"):
        file.rename(place / file.name.replace("imagefolder", "parts"))
    info = (place / "dataset_info.json").read_text()
    (place / "dataset_info.json").write_text(info.replace('"dataset_name": "imagefolder"', '"dataset_name": "parts"'))
    listed = run(LIST, home, str(tmp_path))
    assert listed == "('test', 'pit') ('train', 'good') ('train', 'pit')"
