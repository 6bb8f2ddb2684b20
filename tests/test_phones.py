"""Phones without a phone: their entries in devices.yaml, what adb says in words, and what ends a silent one."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from distilledge.models.errors import DeviceError, DistilledgeError, MissingPackageError, UsageError
from distilledge.pipeline import cli, inventory
from distilledge.targets.devices.adb_errors import explain, refused
from distilledge.targets.devices.endings import LostError
from distilledge.targets.devices.process import End, WorkerProcess

WORDS = {"name": "phone", "serial": "R58M", "python": "python3", "shell": "adb -s R58M shell"}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "devices.yaml"
    monkeypatch.setenv(inventory.ENVIRONMENT, str(path))
    return path


SAID = {
    "not attached": ("error: device 'R58M' not found", "E6070", True),
    "nothing attached": ("error: no devices/emulators found", "E6070", True),
    "not trusted": (
        "error: device unauthorized.\nThis adb server's $ADB_VENDOR_KEYS is not set\n"
        "Otherwise check for a confirmation dialog on your device.",
        "E6071",
        False,
    ),
    "not trusted over TCP": ("failed to authenticate to 10.0.0.7:5555", "E6071", False),
    "offline": ("error: device offline", "E6072", True),
    "several": ("error: more than one device/emulator", "E6073", False),
    "refused": ("failed to connect to '10.0.0.7:5555': Connection refused", "E6074", True),
    "a name nobody knows": ("failed to resolve host: 'phone.lan': Name or service not known", "E6074", True),
    "no right to USB": (
        "error: insufficient permissions for device: missing udev rules? user is in the plugdev group",
        "E6075",
        False,
    ),
    "no server": (
        "adb: failed to check server version: cannot connect to daemon at tcp:5037: Connection refused",
        "E6076",
        False,
    ),
    "a recovery": ("recovery\n", "E6083", False),
    "nothing": ("", "E6078", True),
}


@pytest.mark.parametrize("case", SAID)
def test_what_adb_says(case: str) -> None:
    said, code, again = SAID[case]
    error = refused(said, WORDS)
    assert (error.code, error.exit_code, error.again) == (code, 6, again)
    assert error.hint
    assert "{" not in str(error)


ENDS = {
    "no Python": (End(127, 127, "starting", "/system/bin/sh: python3: inaccessible or not found"), "E6037"),
    "no package": (End(0, 1, "starting", "ModuleNotFoundError: No module named 'numpy'"), "E6038"),
    "killed": (End(0, 137, "block", ""), "E6041"),
    "adb ends as if all were well": (End(0, None, "block", ""), "E6078"),
    "gone while it ran": (End(1, None, "block", "error: device 'R58M' not found"), "E6078"),
    "no sign of life": (End(-9, None, "block", "", silent=True), "E6077"),
}


@pytest.mark.parametrize("case", ENDS)
def test_how_a_program_on_a_phone_went(case: str) -> None:
    end, code = ENDS[case]
    error = explain(end, WORDS)
    assert (error.code, error.exit_code) == (code, 6)
    assert error.hint
    assert "{" not in str(error)


SLEEPER = "import time; print('{\"ready\": 1}', flush=True); time.sleep(60)"


@pytest.mark.parametrize("answers", [False, True])
def test_a_silent_program_ends_with_its_device_only(answers: bool) -> None:
    worker = WorkerProcess(
        [sys.executable, "-c", SLEEPER], lambda end: explain(end, WORDS), alive=lambda: answers, silence_s=2.0
    )
    began = time.monotonic()
    with worker, pytest.raises(DistilledgeError) as refused:
        worker.request({"op": "block"}, 5.0)
    assert refused.value.code == ("E9023" if answers else "E6077")
    assert time.monotonic() - began < 20


def test_writing_to_a_silent_device_ends() -> None:
    """More than a pipe holds, and nobody reads it."""
    worker = WorkerProcess(
        [sys.executable, "-c", SLEEPER], lambda end: explain(end, WORDS), alive=lambda: False, silence_s=2.0
    )
    with worker, pytest.raises(LostError) as refused:
        worker.request({"op": "put", "data": "x" * 1_000_000}, 60)
    assert refused.value.code == "E6077"


@pytest.mark.skipif(shutil.which("adb") is None, reason="not installed: adb")
def test_an_entry_is_written_and_read_again(place: Path) -> None:
    run = CliRunner().invoke
    words = ["devices", "add", "pixel", "--adb", "10.0.0.7:5555", "--python", "su 0 /data/py/bin/python3"]
    assert run(cli.app, words).exit_code == 0
    inventory.add("board", inventory.SshEntry(host="pi@line3"))
    found = inventory.load().devices
    assert found["pixel"] == inventory.AdbEntry(serial="10.0.0.7:5555", python="su 0 /data/py/bin/python3")
    assert "kind: adb" in place.read_text()
    assert "10.0.0.7:5555" in run(cli.app, ["devices", "list"]).output
    assert '"kind": "adb"' in run(cli.app, ["devices", "list", "--json"]).output
    with inventory.opened("pixel") as device:
        assert device.name == "pixel"


def test_an_inventory_of_before_is_read_as_it_was(place: Path) -> None:
    place.write_text("schema: 1\ndevices:\n  a: {host: h}\n  b: {kind: ssh, host: h}\n  c: {kind: adb}\n")
    assert [entry.kind for entry in inventory.load().devices.values()] == ["ssh", "ssh", "adb"]


MISTAKES = {
    "two ways": (["--host", "h", "--adb", "x"], "E2081"),
    "no way": ([], "E2081"),
    "a port of a phone": (["--adb", "x", "--port", "22"], "E2080"),
    "an option of a phone": (["--adb", "x", "--option", "IdentityFile=k"], "E2080"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_what_is_no_way_to_a_device(case: str, place: Path) -> None:
    words, code = MISTAKES[case]
    with pytest.raises(UsageError) as refused:
        CliRunner().invoke(cli.app, ["devices", "add", "a", *words], catch_exceptions=False)
    assert refused.value.code == code
    assert not place.exists()


def test_a_field_of_another_kind_has_its_line(place: Path) -> None:
    place.write_text("devices:\n  a:\n    kind: adb\n    host: h\n")
    with pytest.raises(UsageError, match=r"devices\.a\.host: .*:4:") as refused:
        inventory.load()
    assert refused.value.code == "E2051"


@pytest.mark.parametrize("serial", ["-s x", "a b", "--help", "a;b"])
def test_what_is_no_serial_number(serial: str) -> None:
    with pytest.raises(DeviceError) as refused:
        inventory.add("x", inventory.AdbEntry(serial=serial))
    assert refused.value.code == "E6081"


def test_without_an_adb_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingPackageError, match="no adb client") as refused:
        inventory.add("x", inventory.AdbEntry(serial="R58M"))
    assert (refused.value.code, refused.value.exit_code) == ("E4055", 4)
