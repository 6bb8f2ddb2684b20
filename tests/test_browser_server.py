"""What a page is served and may say, without a browser; fetching the runtimes; browsers as entries of devices.yaml."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import os
import shutil
import ssl
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_measure import launch
from typer.testing import CliRunner

from distilledge.models.errors import DeviceError, DistilledgeError, MissingPackageError, UsageError
from distilledge.pipeline import cli, inventory
from distilledge.pipeline.gate import peak_rss_mb
from distilledge.pipeline.recipe import Recipe
from distilledge.pipeline.recipe_device import check_device
from distilledge.pipeline.recipe_file import load_recipe, schema_path
from distilledge.targets import web, web_files
from distilledge.targets.devices.browser import card_of
from distilledge.targets.devices.browser_link import Link
from distilledge.targets.devices.browser_program import Browser, command_of
from distilledge.targets.devices.browser_server import HEADERS, MOST_BODY, PAGES, PageServer
from distilledge.targets.devices.browser_tls import context
from distilledge.targets.devices.browser_worker import CHUNK_BYTES, BrowserWorker, Place, chunks, decoded
from distilledge.targets.fairness import other_load
from distilledge.targets.ondevice.preprocess import InputSpec

TOKEN = "a-token-of-the-test"


@pytest.fixture
def server() -> Iterator[PageServer]:
    made = PageServer(Link(watch_s=0.6), {}, TOKEN)
    yield made
    made.close()


def ask(server: PageServer, method: str, path: str, body: Any = None) -> tuple[int, dict[str, str], bytes]:
    """As a client that does not clean the path up."""
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=10)
    connection.request(method, path, None if body is None else json.dumps(body))
    answer = connection.getresponse()
    found = answer.status, dict(answer.getheaders()), answer.read()
    connection.close()
    return found


def say(server: PageServer, name: str, **body: Any) -> tuple[int, dict[str, Any]]:
    status, _, answer = ask(server, "POST", f"/{TOKEN}/{name}", body)
    return status, json.loads(answer)


@pytest.mark.parametrize("name", ["", *PAGES])
def test_pages_have_their_types_and_isolating_headers(server: PageServer, name: str) -> None:
    status, headers, body = ask(server, "GET", f"/{TOKEN}/{name}")
    assert status == 200
    assert body == (Path(web.__path__[0]) / (name or "index.html")).read_bytes()
    assert headers["Content-Type"].partition(";")[0] == ("text/javascript" if name.endswith(".js") else "text/html")


REFUSED = {
    "no token": ("GET", "/page.js", 403),
    "nothing": ("GET", "/", 403),
    "a wrong token": ("GET", "/another-token/page.js", 403),
    "part of the token": ("GET", f"/{TOKEN[:-1]}/page.js", 403),
    "a parent folder": ("GET", f"/{TOKEN}/../pyproject.toml", 404),
    "an encoded parent folder": ("GET", f"/{TOKEN}/web/%2e%2e/%2e%2e/measure.py", 404),
    "an absolute path": ("GET", f"/{TOKEN}//etc/passwd", 404),
    "a file of ours that no page needs": ("GET", f"/{TOKEN}/__init__.py", 404),
    "joining without the token": ("POST", "/join", 403),
    "polling with a wrong one": ("POST", "/x/poll", 403),
    "another thing": ("POST", f"/{TOKEN}/frobnicate", 404),
    "another method": ("PUT", f"/{TOKEN}/page.js", 501),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_has_the_headers_too(server: PageServer, case: str) -> None:
    method, path, expected = REFUSED[case]
    status, headers, body = ask(server, method, path, {"page": 1, "card": {}} if method == "POST" else None)
    assert status == expected
    assert {name: headers[name] for name in HEADERS} == HEADERS
    assert TOKEN.encode() not in body
    assert not server.link.alive()


@pytest.mark.parametrize("body", [b"", b"[1]", b"{", b'{"card": 3}', b'{"page": "x"}'])
def test_what_is_not_understood(server: PageServer, body: bytes) -> None:
    for name in ("join", "poll", "answer"):
        connection = http.client.HTTPConnection(*server.server_address[:2], timeout=10)
        connection.request("POST", f"/{TOKEN}/{name}", body)
        assert connection.getresponse().status == 400
        connection.close()


def test_a_body_may_not_be_endless(server: PageServer) -> None:
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=10)
    connection.putrequest("POST", f"/{TOKEN}/join")
    connection.putheader("Content-Length", str(MOST_BODY + 1))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


def test_one_page_at_a_time_and_a_silent_one_is_lost(server: PageServer) -> None:
    assert say(server, "join", card={"a": 1}) == (200, {"page": 1, "watch_s": 0.6})
    assert say(server, "join", card={})[0] == 409
    assert server.link.card == {"a": 1}
    time.sleep(0.7)
    assert "it was not heard for 0.6 s" in server.link.loss()
    assert say(server, "join", card={}) == (200, {"page": 2, "watch_s": 0.6})
    assert say(server, "poll", page=1)[0] == 410
    assert say(server, "answer", page=1, worker=1, message={})[0] == 410
    assert say(server, "bye", page=2) == (200, {})
    assert "closed, reloaded or left" in server.link.loss()


def test_a_poll_is_a_beat_of_both_sides(server: PageServer) -> None:
    say(server, "join", card={})
    for _ in range(5):
        assert say(server, "poll", page=1) == (200, {"messages": []})
    assert server.link.alive()


def page(server: PageServer, answers: list[dict[str, Any]]) -> threading.Thread:
    """A page that says what it likes: one answer for each request, then nothing."""

    def run() -> None:
        number = say(server, "join", card={})[1]["page"]
        while answers:
            status, found = say(server, "poll", page=number)
            if status != 200:
                return
            for entry in found["messages"]:
                if "id" in entry["message"] and answers:
                    message = {"id": entry["message"]["id"], **answers.pop(0)}
                    say(server, "answer", page=number, worker=entry["worker"], message=message)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert server.link.wait(5, lambda: None)
    return thread


LIES = {
    "no logits": ({"ok": True, "seconds": 0, "outputs": [{"dims": [1, 7], "logits": "AAAA"}]}, "E6109"),
    "no base64": ({"ok": True, "seconds": 0, "outputs": [{"dims": [1, 1], "logits": "!"}]}, "E6109"),
    "a failure of its worker": ({"end": "SyntaxError"}, "E6107"),
    "no memory": ({"ok": False, "kind": "memory", "op": "score", "text": "WebAssembly.Memory"}, "E9020"),
    "no adapter": ({"ok": False, "kind": "adapter", "op": "load", "text": ""}, "E6106"),
}


@pytest.mark.parametrize("case", LIES)
def test_a_page_may_answer_anything(server: PageServer, tmp_path: Path, case: str) -> None:
    answer, code = LIES[case]
    page(server, [answer])
    place = Place("phone", server.link, server, tmp_path, "wasm", dict, str)
    picture = tmp_path / "p.png"
    Image.new("RGB", (20, 20)).save(picture)
    request = {"op": "score", "files": [str(picture)], "spec": InputSpec(16, 16).to_dict(), "out": str(tmp_path / "o")}
    with BrowserWorker(place) as worker, pytest.raises(DistilledgeError) as refused:
        worker.request(request, 5)
    assert refused.value.code == code
    assert refused.value.hint
    assert list(tmp_path.glob("rows-*")) == [], "what was sent is gone"


def test_a_page_that_falls_silent_is_an_explained_error(server: PageServer, tmp_path: Path) -> None:
    page(server, []).join(5)
    place = Place("phone", server.link, server, tmp_path, "wasm", dict, str)
    with BrowserWorker(place) as worker:
        with pytest.raises(DeviceError, match="the page of phone is gone while block"):
            worker.request({"op": "block", "n": 1, "lead": 0}, 30)
        with pytest.raises(DeviceError, match="gone while waiting"):
            worker.beat()


def test_logits_without_their_batch() -> None:
    values = np.float32([[1, 2], [3, 4]])
    found = decoded({"dims": [1, 2, 2], "logits": base64.b64encode(values.tobytes()).decode()})
    np.testing.assert_array_equal(found, values)


def test_rows_are_sent_in_pieces() -> None:
    rows = [(None, np.zeros(CHUNK_BYTES // 3, np.uint8)) for _ in range(7)]
    assert [len(chunk) for chunk in chunks(iter(rows))] == [3, 3, 1]
    assert [len(chunk) for chunk in chunks(iter([(None, np.zeros(2 * CHUNK_BYTES, np.uint8))] * 2))] == [1, 1]
    assert list(chunks(iter([]))) == []


def test_a_port_in_use_and_files_that_are_no_certificate(server: PageServer, tmp_path: Path) -> None:
    with pytest.raises(DeviceError) as refused:
        PageServer(Link(1), {}, TOKEN, port=server.server_address[1])
    assert refused.value.code == "E6101"
    (tmp_path / "c.pem").write_text("no certificate")
    with pytest.raises(DeviceError) as refused:
        context(str(tmp_path / "c.pem"), "", "localhost")
    assert refused.value.code == "E6102"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl on PATH")
def test_https_with_a_certificate_made_for_the_run() -> None:
    made = PageServer(Link(1), {}, TOKEN, tls=context("", "", "127.0.0.1"))
    try:
        client = ssl.create_default_context()
        client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection(*made.server_address[:2], timeout=10, context=client)
        connection.request("GET", f"/{TOKEN}/page.js")
        assert connection.getresponse().status == 200
        connection.close()
        assert made.address("h").startswith("https://h:")
    finally:
        made.close()


def test_a_program_and_its_children_end_with_us_in_whatever_way(tmp_path: Path) -> None:
    script = tmp_path / "browser.sh"
    script.write_text("sleep 300 &\necho $! > $1/child\nsleep 300\n")
    browser = Browser(["sh", str(script), "{profile}"], "about:blank")
    child = Path(browser._profile) / "child"
    end = time.monotonic() + 10
    while not child.exists() or not child.read_text().strip():
        assert time.monotonic() < end
        time.sleep(0.05)
    pid = int(child.read_text())
    assert browser.ended() == ""
    assert browser._process.stdin is not None
    browser._process.stdin.close()  # what the end of this process does
    browser._process.wait(10)
    while running(pid):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert "killed by SIGKILL" in browser.ended()
    browser.close()
    assert not child.exists()


def running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")


def test_how_a_browser_ended() -> None:
    browser = Browser(["sh", "-c", "echo no display >&2; exit 3"], "about:blank")
    browser._process.wait(10)
    assert browser.ended() == "the browser ended with exit code 3: no display"
    browser.close()


def test_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    assert command_of("sh -c x") == ["sh", "-c", "x"]
    with pytest.raises(MissingPackageError, match="no such browser: netscape"):
        command_of("netscape --kiosk {url}")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingPackageError, match="no browser on PATH"):
        command_of("")


# ---- the runtimes


@pytest.fixture
def nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(web_files.ENVIRONMENT, str(tmp_path / "web"))
    return tmp_path / "web"


def test_the_table_is_whole() -> None:
    for name, package in web_files.packages().items():
        assert package["version"].count(".") == 2, name
        assert len(base64.b64decode(package["integrity"].removeprefix("sha512-"))) == 64
        assert all(len(bytes.fromhex(sha)) == 32 for sha in package["files"].values())
    assert "://" not in (Path(web.__path__[0]) / "packages.json").read_text()


def test_without_the_runtimes(nothing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingPackageError) as missing:
        web_files.files()
    assert (missing.value.code, missing.value.hint) == ("E4060", "distilledge devices fetch-web")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingPackageError, match="no npm"):
        web_files.fetch()
    with pytest.raises(MissingPackageError, match="no archive of onnxruntime-web"):
        web_files.fetch(tmp_path)


def archive(folder: Path, content: bytes) -> str:
    """A package called x 1.0.0 with one file; its integrity."""
    (folder / "a.js").write_bytes(content)
    with tarfile.open(folder / "x-1.0.0.tgz", "w:gz") as tar:
        tar.add(folder / "a.js", "package/a.js")
    return "sha512-" + base64.b64encode(hashlib.sha512((folder / "x-1.0.0.tgz").read_bytes()).digest()).decode()


def test_archives_are_compared_and_only_what_is_needed_is_taken(
    nothing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    integrity = archive(tmp_path, b"good")
    files = {"a.js": hashlib.sha256(b"good").hexdigest()}
    table = {"x": {"version": "1.0.0", "integrity": integrity, "files": files}}
    monkeypatch.setattr(web_files, "packages", lambda: table)
    assert web_files.fetch(tmp_path) == nothing
    assert [p.relative_to(nothing).as_posix() for p in nothing.rglob("*") if p.is_file()] == ["x/a.js"]
    (nothing / "x" / "a.js").write_bytes(b"evil")
    with pytest.raises(MissingPackageError) as refused:
        web_files.files()
    assert refused.value.code == "E4061"
    archive(tmp_path, b"evil")
    with pytest.raises(MissingPackageError, match="not what was published"):
        web_files.fetch(tmp_path)


@pytest.mark.skipif(shutil.which("node") is None, reason="no node on PATH")
def test_the_sum_of_a_page_that_has_no_crypto(tmp_path: Path) -> None:
    """Edges of SHA-256's padding, against hashlib."""
    lengths = [0, 1, 55, 56, 57, 63, 64, 65, 119, 120, 1000]
    shutil.copy(Path(web.__path__[0]) / "sha256.js", tmp_path / "sha256.mjs")
    (tmp_path / "run.mjs").write_text(
        'import { plain } from "./sha256.mjs";\n'
        f"for (const n of {lengths}) console.log(plain(Uint8Array.from({{ length: n }}, (_, i) => i % 251).buffer));\n"
    )
    said = subprocess.run(["node", str(tmp_path / "run.mjs")], capture_output=True, text=True, check=True, timeout=60)
    expected = [hashlib.sha256(bytes(i % 251 for i in range(n))).hexdigest() for n in lengths]
    assert said.stdout.split() == expected


# ---- what is absent


def test_a_launch_without_cpu_time_is_judged_by_what_there_is() -> None:
    unknown = {"cpu_ns": None, "waited_ns": None, "peak_rss_bytes": None, "involuntary_switches": None}
    one = launch(**unknown)
    assert other_load([one], 1) is False
    assert other_load([one, launch(waited_ns=10**9)], 1) is True
    assert peak_rss_mb(type("Timing", (), {"launches": [one, launch()]})) is None  # type: ignore[arg-type]
    assert type(one).model_validate_json(one.model_dump_json()) == one


def test_a_card_of_a_page_that_says_little() -> None:
    card = card_of({"user_agent": "Fancy 1.0", "platform": "iPhone", "wasm": ["simd"], "hardware_concurrency": 6})
    assert card["board"] == "Fancy 1.0 on iPhone"
    assert (card["memory_bytes"], card["cpu_model"], card["emulated"]) == (None, None, False)


# ---- devices.yaml


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "devices.yaml"
    monkeypatch.setenv(inventory.ENVIRONMENT, str(path))
    return path


def test_a_browser_needs_nothing_but_its_kind(place: Path) -> None:
    place.write_text("devices:\n  chrome: {kind: browser}\n  line3: {host: h}\n")
    assert inventory.load().devices == {"chrome": inventory.BrowserEntry(), "line3": inventory.SshEntry(host="h")}
    place.write_text("devices:\n  chrome:\n    kind: browser\n    accelerator: npu\n")
    with pytest.raises(UsageError, match=r"devices\.chrome\.accelerator: .*:4:"):
        inventory.load()


def test_devices_add_takes_one_way(place: Path) -> None:
    for words in ([], ["--host", "h", "--browser", ""]):
        with pytest.raises(UsageError) as refused:
            CliRunner().invoke(cli.app, ["devices", "add", "x", *words], catch_exceptions=False)
        assert refused.value.code == "E2081"
    with pytest.raises(UsageError, match="kind browser: python"):
        CliRunner().invoke(cli.app, ["devices", "add", "x", "--browser", "", "--python", "p"], catch_exceptions=False)
    assert not place.exists()


def demo(*overrides: str) -> Recipe:
    return load_recipe(schema_path().parent / "demo.yaml", overrides=overrides)


def test_a_recipe_that_asks_too_much_of_a_browser(place: Path) -> None:
    place.write_text("devices:\n  chrome: {kind: browser}\n")
    both = "export.targets=[{runtime: onnx}, {runtime: tflite}]"
    check_device(demo("measure.device=chrome", both))
    check_device(demo())
    with pytest.raises(UsageError) as refused:
        check_device(demo("measure.device=chrome"))
    assert refused.value.code == "E2085"
    with pytest.raises(UsageError) as refused:
        check_device(demo("measure.device=chrome", both, "budgets.default.max_peak_rss_mb=9"))
    assert refused.value.code == "E2086"
