"""What every test runs under: few threads, strict numerics, no telemetry; and where the real data lies."""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from distilledge.targets.telemetry import switch_off

# Read by OpenMP and MKL when torch is first imported. Two, on any machine: sums depend on the number of threads.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "2")
# Nothing is fetched by a test; hub code is tested against a local cache.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

settings.register_profile("any machine", deadline=None)  # how long an example takes says nothing of what it shows
settings.load_profile("any machine")

ROOT = Path(__file__).resolve().parents[1]


def pytest_configure(config: pytest.Config) -> None:
    """Before any test module is imported: openvino and nncf send an event when they are imported."""
    gc.disable()  # collecting while torch and the like are imported is a third of the time of importing them
    switch_off()
    np.seterr(divide="raise", over="raise", invalid="raise")


def pytest_collection_finish() -> None:
    """Millions of objects that stay are not looked at again, at no ``gc.collect()`` of what is tested either."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="module", autouse=True)
def _imported_since() -> Iterator[None]:
    yield
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules with many slow and board tests first: one that is begun last would keep one process busy at the end."""
    heavy = Counter(
        i.nodeid.partition("::")[0] for i in items if i.get_closest_marker("slow") or i.get_closest_marker("board")
    )
    items.sort(key=lambda item: -heavy[item.nodeid.partition("::")[0]])


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout, for tests that read the source itself."""
    if not (ROOT / "pipeline" / "recipe.py").is_file():
        pytest.skip("not in a checkout: the wheel is tested")
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data and weights, beside the checkout or where DISTILLEDGE_SHARED says."""
    path = Path(os.environ.get("DISTILLEDGE_SHARED", ROOT.parent / "shared"))
    if not (path / "data").is_dir():
        pytest.skip(f"no real data: {path}/data does not exist (set DISTILLEDGE_SHARED)")
    return path.resolve()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For modules that train small networks: as in the processes that they kill, since sums depend on it; and two
    threads that wait for each other take longer.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
