"""The whole chain with an emulated arm64 board as its device: real aarch64 programs.

All three runtimes are loaded there, two of them run the chain: each start takes seconds under emulation.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_boards import Board, needs, started
from test_run import RECIPE, distilledge

pytestmark = pytest.mark.board
PACKAGES = "numpy pillow onnxruntime ai-edge-litert openvino"
RUNTIMES = ("onnx", "openvino")
TARGETS = "[" + ", ".join(f"{{runtime: {runtime}, precisions: [w8a8]}}" for runtime in RUNTIMES) + "]"
FEW = "{device: arm, samples: 8, min_seconds: 0, launches: 1, warmup: 1, end_to_end: 2}"


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    needs("sshd", "ssh", "mmdebstrap", "qemu-aarch64-static")
    with started(tmp_path_factory.mktemp("arm"), "arm64", BOARD_PACKAGES=PACKAGES) as made:
        yield made


def test_the_chain_on_another_architecture(board: Board, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    options = [f"UserKnownHostsFile={board.directory}/known_hosts", f"IdentityFile={board.key}"]
    added = distilledge(
        *("devices", "add", "arm", "--host", f"{board.fields['BOARD_USER']}@127.0.0.1", "--port", str(board.port)),
        *(word for option in options for word in ("--option", option)),
        *("--python", board.fields["BOARD_PYTHON"]),
        cwd=tmp_path,
    )
    assert added.returncode == 0, added.stderr
    looked = distilledge("devices", "doctor", "arm", "--json", cwd=tmp_path)
    assert looked.returncode == 0, looked.stderr
    (found,) = json.loads(looked.stdout)
    assert (found["state"], found["card"]["machine"], found["card"]["emulated"]) == ("ok", "aarch64", True)
    assert set(found["runtimes"]) == {*RUNTIMES, "tflite"}
    changes = (f"export.targets={TARGETS}", "distill.control=false", f"measure={FEW}")
    sets = [word for change in changes for word in ("--set", change)]
    done = distilledge("run", "tiny.yaml", *sets, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)["report"]
    assert report["device"]["machine"] == "aarch64"
    assert all("EMULATED" in timing["flags"] for timing in report["timings"])
    names = {file["name"] for file in report["files"]}
    assert {f"student {runtime} w8a8" for runtime in RUNTIMES} < names
    assert {beside["name"] for beside in report["beside_host"]} == names
    assert all(beside["agreement"] >= 0.999 for beside in report["beside_host"]), report["beside_host"]
    assert 0 < max(beside["max_abs"] for beside in report["beside_host"]) < 1
    assert "The same files on this machine" in (tmp_path / "distilledge-work/runs/tiny/report.html").read_text()
    planned = distilledge("plan", "tiny.yaml", *sets, "--json", cwd=tmp_path)
    assert all(row["cached"] for row in json.loads(planned.stdout))
    assert board.programs(within=20) == ""
