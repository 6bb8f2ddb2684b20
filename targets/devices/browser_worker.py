"""A worker in a page: the same requests and answers as ``ondevice/worker.py``, carried by the page's ``Link``.

A browser decodes and resizes pictures by rules of its own, so pixels and ids are made here, by the code that every
device runs, and sent: what is timed is the model alone, and ``end_to_end`` measures nothing.
"""

from __future__ import annotations

import base64
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from distilledge.models.errors import DeviceError, DistilledgeError, RejectedError, ResourceError
from distilledge.targets.devices.base import Message, refusal
from distilledge.targets.devices.browser_link import Link
from distilledge.targets.devices.browser_server import PageServer
from distilledge.targets.ondevice.files import IntegrityMismatch, check_integrity, write_array
from distilledge.targets.ondevice.preprocess import BadPicture, preprocess
from distilledge.targets.ondevice.rows import Pictures, Texts
from distilledge.targets.ondevice.session import stack
from distilledge.targets.ondevice.text import BadText, WrongTokenizer, pad
from distilledge.targets.web_files import versions

RUNTIMES = {"onnx": "onnxruntime-web", "tflite": "@litertjs/core"}
"""Runtime -> the npm package that brings it to a browser."""
CHUNK_BYTES = 16 << 20
"""Of rows that are sent to be scored at a time; at least one row."""
UNKNOWN = dict.fromkeys(("cpu_ns", "waited_ns", "peak_rss_bytes", "involuntary_switches"))
"""What a page cannot know of itself: absence is a value."""
Array = npt.NDArray[Any]


class Place(NamedTuple):
    """What a worker needs of its device."""

    name: str
    link: Link
    server: PageServer
    folder: Path
    """For files of ours that the page fetches."""
    accelerator: str
    facts: Callable[[], Message]
    gone: Callable[[], str]
    """Why the browser is gone, where it is one that we started; empty while it runs."""


class BrowserWorker:
    """One Web Worker with a runtime of its own. ``pid``: 0, a page has none that we could know."""

    pid = 0

    def __init__(self, place: Place) -> None:
        self._place = place
        self._page, self._number = place.link.start()
        self._ids, self._files = itertools.count(1), itertools.count(1)
        self._tokenizer = ""
        self._closed = False
        self._operations: dict[str, Callable[[Message, float], Message]] = {
            "load": self._load,
            "inputs": self._inputs,
            "block": lambda request, timeout: {**self._ask(request, timeout), **UNKNOWN},
            "end_to_end": lambda _request, _timeout: {"latency_ns": [], "classes": []},
            "score": self._score,
            "runtime": self._runtime,
            "facts": lambda _request, _timeout: self._place.facts(),
        }

    def request(self, message: Message, timeout_s: float) -> Message:
        strange = [name for name in ("shapes", "units") if message.get(name) is not None]
        if message["op"] not in self._operations or strange:
            what = f"a page has no {' or '.join(strange) or message['op']}: {self._place.name}"
            raise RejectedError("E3024", what, "measure that on another device")
        try:
            return self._operations[message["op"]](message, timeout_s)
        except (IntegrityMismatch, WrongTokenizer) as error:
            raise refusal({"kind": "integrity", "text": str(error)}) from None
        except BadText as error:
            raise refusal({"kind": "text", "text": error.reason}) from None

    def beat(self) -> None:
        """The page's polls are the beats; a lost one is told of."""
        if why := self._place.gone() or self._place.link.loss():
            raise self._lost(why, "waiting")

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._place.link.send(self._number, {"op": "stop"})
            self._place.link.forget(self._number)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _load(self, request: Message, timeout_s: float) -> Message:
        """Only the model goes to the page; a tokenizer is used here."""
        self._known(request["runtime"])
        files, hashes = request["files"], request["sha256"]
        check_integrity(files[1:], hashes[1:])
        self._tokenizer = request.get("tokenizer", "")
        url = self._place.server.add(Path(files[0]), f"{hashes[0][:32]}-{self._number}")
        found = {"url": url, "sha256": hashes[0], "name": files[0]}
        fields = {"runtime": request["runtime"], "threads": request["threads"]}
        more = {"accelerator": self._place.accelerator, "versions": versions()}
        return self._ask({"op": "load", "file": found, **fields, **more}, timeout_s, str(files[0]))

    def _inputs(self, request: Message, timeout_s: float) -> Message:
        if "texts" in request:
            rows = [row for _, row in self._rows(request)]
        else:
            rows = list(np.load(request["path"], allow_pickle=False))
        return self._sent("inputs", rows, timeout_s)

    def _score(self, request: Message, timeout_s: float) -> Message:
        """Write the logits to ``out``, as ``ondevice/worker.py`` does; ``seconds``: in the page."""
        outputs, seconds, longest = [], 0.0, 0
        for chunk in chunks(self._rows(request)):
            answer = self._sent("score", [row for _, row in chunk], timeout_s)
            seconds += answer["seconds"]
            for (length, _), output in zip(chunk, answer["outputs"], strict=True):
                logits = decoded(output)
                longest = 0 if length is None else request["spec"]["max_length"]
                outputs.append(logits.reshape(-1) if length is None or logits.ndim == 1 else logits[:length])
        logits = stack(outputs, longest)
        write_array(request["out"], logits)
        return {"shape": list(logits.shape), "seconds": seconds}

    def _runtime(self, request: Message, timeout_s: float) -> Message:
        self._known(request["runtime"])
        return self._ask({"op": "runtime", "runtime": request["runtime"], "versions": versions()}, timeout_s)

    def _known(self, runtime: str) -> None:
        if runtime not in RUNTIMES:
            what = f"there is no {runtime} for browsers, as on {self._place.name}"
            raise DeviceError("E6108", what, f"export for {' or '.join(RUNTIMES)}")

    def _rows(self, request: Message) -> Iterator[tuple[int | None, Array]]:
        """Each row as the model takes it; of texts after the number of its real tokens."""
        if "texts" in request:
            texts = Texts(request, self._tokenizer)
            for row in texts.rows:
                ids = texts.read(row)
                yield len(ids), pad(ids, texts.spec)
            return
        pictures = Pictures(request)
        for path in pictures.rows:
            try:
                yield None, preprocess(path, pictures.spec)
            except BadPicture as error:
                raise refusal({"kind": "picture", "text": f"{path}: {error.reason}"}) from None

    def _sent(self, op: str, rows: Sequence[Array], timeout_s: float) -> Message:
        """The rows in one file that the page fetches, one behind the other."""
        key = f"rows-{self._number}-{next(self._files)}"
        path = self._place.folder / key
        path.write_bytes(b"".join(np.ascontiguousarray(row).tobytes() for row in rows))
        url = self._place.server.add(path, key)
        try:
            shapes = [[1, *row.shape] for row in rows]
            return self._ask({"op": op, "url": url, "dtype": rows[0].dtype.name, "shapes": shapes}, timeout_s)
        finally:
            self._place.server.remove(key)
            path.unlink()

    def _ask(self, message: Message, timeout_s: float, subject: str = "") -> Message:
        if self._closed:
            raise DeviceError("E6021", "the worker is closed", "run the command again")
        number, link, doing = next(self._ids), self._place.link, f"{message['op']} {subject}".strip()
        link.send(self._number, {"id": number, **message})
        while True:
            answer = link.receive(self._page, self._number, timeout_s, self._place.gone)
            if answer is None:
                self.close()
                hint = "the model may be too slow for this device; measure a smaller one"
                raise ResourceError("E9023", f"no answer for {timeout_s:.0f} s while {doing}", hint)
            if isinstance(answer, str):
                raise self._lost(answer, doing)
            if "end" in answer:
                what = f"the worker in the page of {self._place.name} failed while {doing}: {answer['end']}"
                raise DeviceError("E6107", what, "try another browser, or a newer version of it")
            if answer.get("id") == number:
                break
        if answer.get("kind") == "adapter":
            raise no_adapter(self._place.name)
        if not answer["ok"]:
            raise refusal(answer)
        return answer

    def _lost(self, why: str, doing: str) -> DistilledgeError:
        what = f"the page of {self._place.name} is gone while {doing}: {why}"
        return DeviceError("E6100", what, "keep it open and in front, and run it again: what was done is kept")


def no_adapter(name: str) -> DeviceError:
    what = f"{name} gives no WebGPU adapter: no GPU that the browser trusts, or no secure context"
    return DeviceError("E6106", what, "leave `accelerator` out of its entry, or see chrome://gpu there")


def chunks(rows: Iterator[tuple[int | None, Array]]) -> Iterator[list[tuple[int | None, Array]]]:
    """Of at most ``CHUNK_BYTES``, or of one row."""
    chunk: list[tuple[int | None, Array]] = []
    for length, row in rows:
        if chunk and (len(chunk) + 1) * row.nbytes > CHUNK_BYTES:
            yield chunk
            chunk = []
        chunk.append((length, row))
    if chunk:
        yield chunk


def decoded(output: Message) -> npt.NDArray[np.float32]:
    """Logits without the batch. A page may say anything: raises ``DeviceError`` where sizes do not agree."""
    try:
        values = np.frombuffer(base64.b64decode(output["logits"], validate=True), np.float32)
        logits: npt.NDArray[np.float32] = values.reshape([int(d) for d in output["dims"]])[0].copy()
    except (ValueError, KeyError, IndexError) as error:
        raise DeviceError("E6109", f"a page answered with no logits: {error}", "load the page again") from None
    return logits
