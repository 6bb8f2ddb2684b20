"""devices.yaml: what it holds, and every mistake in it with its line."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from distilledge.models.errors import DistilledgeError, MissingPackageError, UsageError
from distilledge.pipeline import cli, inventory
from distilledge.targets.devices.local import LocalDevice
from distilledge.targets.devices.process import End
from distilledge.targets.devices.ssh_errors import LostError, explain


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "devices.yaml"
    monkeypatch.setenv(inventory.ENVIRONMENT, str(path))
    return path


def test_a_device_is_written_and_read_again(place: Path) -> None:
    assert inventory.load() == inventory.Inventory()
    entry = inventory.SshEntry(
        host="pi@line3", port=2222, options=("IdentityFile=~/.ssh/board",), python="/usr/bin/python3"
    )
    inventory.add("line3", entry)
    inventory.add("bench", inventory.SshEntry(host="bench"))
    assert inventory.load().devices == {"line3": entry, "bench": inventory.SshEntry(host="bench")}
    assert place.read_text().startswith("# ")
    assert "folder" not in place.read_text()
    inventory.remove("line3")
    assert list(inventory.load().devices) == ["bench"]


def test_this_machine_is_always_there() -> None:
    with inventory.opened("local") as device:
        assert isinstance(device, LocalDevice)


@pytest.mark.parametrize("name", ["local", "", "a b", "../x", "there"])
def test_names_that_cannot_be_added(name: str) -> None:
    inventory.add("there", inventory.SshEntry(host="h"))
    with pytest.raises(UsageError) as refused:
        inventory.add(name, inventory.SshEntry(host="h"))
    assert refused.value.code == "E2052"


@pytest.mark.parametrize(
    ("host", "option", "code"),
    [
        ("-oProxyCommand=evil", "", "E6027"),
        ("", "", "E6027"),
        ("a b", "", "E6027"),
        ("h", "StrictHostKeyChecking=no", "E6028"),
        ("h", "stricthostkeychecking = off", "E6028"),
        ("h", "StrictHostKeyChecking no", "E6028"),
    ],
)
def test_what_is_no_host_or_would_trust_any(host: str, option: str, code: str, place: Path) -> None:
    with pytest.raises(DistilledgeError) as refused:
        inventory.add("x", inventory.SshEntry(host=host, options=(option,) if option else ()))
    assert refused.value.code == code
    assert not place.exists()


LAST_WORDS = {
    "an old C library": (1, "ImportError: libc.so.6: version `GLIBC_2.34' not found (required by x.so)", "E6039"),
    "a missing package": (1, "ModuleNotFoundError: No module named 'numpy.core'", "E6038"),
    "no interpreter": (127, "sh: 1: python3: not found", "E6037"),
    "another error": (1, "SyntaxError: invalid syntax", "E6020"),
    "a code that is no signal": (255, "boom", "E6020"),
    "an unknown instruction": (128 + 4, "", "E6040"),
    "no memory": (128 + 9, "", "E6041"),
    "a changed host key": (None, "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @", "E6031"),
    "a route that is gone": (None, "ssh: connect to host h port 22: No route to host", "E6036"),
    "nothing at all": (None, "", "E6030"),
}


@pytest.mark.parametrize("case", LAST_WORDS)
def test_how_a_program_on_a_board_went(case: str) -> None:
    reported, stderr, code = LAST_WORDS[case]
    error = explain(End(255, reported, "starting", stderr), "board", "pi@h", "python3")
    assert (error.code, error.exit_code) == (code, 6)
    assert error.hint
    assert "{" not in str(error)


def test_a_connection_that_breaks_later_is_a_lost_board() -> None:
    """Whatever ssh calls it; and it is not tried again."""
    error = explain(End(255, None, "block", "Connection reset by peer"), "board", "pi@h", "python3")
    assert isinstance(error, LostError)
    assert (error.code, error.again) == ("E6030", False)


def test_without_an_ssh_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingPackageError, match="no ssh client"):
        inventory.add("x", inventory.SshEntry(host="h"))


MISTAKES = {
    "an unknown field": ("schema: 1\ndevices:\n  a: {host: h, hots: h}\n", "E2051", ":3:"),
    "an unknown kind": ("devices:\n  a: {kind: telepathy, host: h}\n", "E2051", ":2:"),
    "no host": ("devices:\n  a: {port: 22}\n", "E2051", ":2:"),
    "no port": ("devices:\n  a: {host: h, port: 99999}\n", "E2051", ":2:"),
    "a list": ("- a\n", "E2051", ":1:"),
    "a name with a blank": ("devices:\n  'a b': {host: h}\n", "E2051", ":2:"),
    "another version": ("schema: 2\n", "E2051", ":1:"),
    "no YAML": ("devices: [\n", "E2012", ":2:"),
    "twice": ("devices:\n  a: {host: h}\n  a: {host: h}\n", "E2013", ":3:"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_has_its_line(case: str, place: Path) -> None:
    text, code, line = MISTAKES[case]
    place.write_text(text)
    with pytest.raises(UsageError) as refused:
        inventory.load()
    assert refused.value.code == code
    assert line in refused.value.what
    assert refused.value.hint


def test_the_commands() -> None:
    run = CliRunner().invoke
    assert run(cli.app, ["devices", "add", "line3", "--host", "pi@line3", "--port", "22"]).exit_code == 0
    listed = run(cli.app, ["devices", "list"])
    assert "pi@line3:22" in listed.output
    assert "this machine" in listed.output
    with pytest.raises(UsageError, match="did you mean line3"):
        run(cli.app, ["devices", "remove", "lin3"], catch_exceptions=False)
    assert run(cli.app, ["devices", "remove", "line3"]).exit_code == 0
    assert run(cli.app, ["devices", "list", "--json"]).output.strip() == "{}"


def test_a_recipe_with_an_unknown_device_is_exit_2(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refused:
        CliRunner().invoke(cli.app, ["plan", "demo", "--set", "measure.device=nowhere"], catch_exceptions=False)
    assert refused.value.code == "E2053"
