"""The program that runs on a device: it loads one model and times or scores it on request.

``python worker.py [--silence SECONDS] [--watch SECONDS] [--memory BYTES]``, from a folder that holds this file and
those beside it; needs numpy, Pillow and one runtime, and for texts tokenizers.

Requests name pictures by ``files`` and ``spec``; texts by ``texts`` (a file of JSON lines), ``spec`` and, where only
some of them are meant, ``start`` and ``count``.

One JSON object per line on stdin, ``{"id": 1, "op": "load", ...}``; one answer per request on stdout, ``{"id": 1, "ok":
true, ...}`` or ``{"id": 1, "ok": false, "kind": ..., "text": ...}``. Long requests also print ``{"progress": n}``.
``{"op": "beat"}`` is not answered. The last line is always ``{"end": reason}``: without it the worker was killed.
The worker ends at the end of stdin (also while busy) and after ``--silence`` seconds without a line while idle, or
``--watch`` seconds even while busy: over a network the end of stdin may never come.
"""

from __future__ import annotations

import argparse
import errno
import gc
import json
import os
import queue
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from typing import IO, Any

if not __package__:  # started as a program: our folder goes last, so that no file of ours hides a standard module
    sys.path.append(sys.path.pop(0))

import numpy as np

if __package__:
    from distilledge.targets.ondevice import energy, facts, scenario
    from distilledge.targets.ondevice.feeds import calls_of, described, write_answers
    from distilledge.targets.ondevice.files import IntegrityMismatch, check_integrity, write_array
    from distilledge.targets.ondevice.listen import Watch, read_requests
    from distilledge.targets.ondevice.placement import profiled
    from distilledge.targets.ondevice.ports import BadShape
    from distilledge.targets.ondevice.preprocess import BadPicture
    from distilledge.targets.ondevice.rows import Pictures, Texts
    from distilledge.targets.ondevice.runtimes import import_runtime, installed_version
    from distilledge.targets.ondevice.session import Session, open_session, stack
    from distilledge.targets.ondevice.text import BadText, WrongTokenizer, pad
    from distilledge.targets.ondevice.units import UnitError
else:
    import energy  # type: ignore[import-not-found,no-redef]
    import facts  # type: ignore[import-not-found,no-redef]
    import scenario  # type: ignore[import-not-found,no-redef]
    from feeds import calls_of, described, write_answers  # type: ignore[import-not-found,no-redef]
    from files import (  # type: ignore[import-not-found,no-redef]
        IntegrityMismatch,
        check_integrity,
        write_array,
    )
    from listen import Watch, read_requests  # type: ignore[import-not-found,no-redef]
    from placement import profiled  # type: ignore[import-not-found,no-redef]
    from ports import BadShape  # type: ignore[import-not-found,no-redef]
    from preprocess import BadPicture  # type: ignore[import-not-found,no-redef]
    from rows import Pictures, Texts  # type: ignore[import-not-found,no-redef]
    from runtimes import import_runtime, installed_version  # type: ignore[import-not-found,no-redef]
    from session import Session, open_session, stack  # type: ignore[import-not-found,no-redef]
    from text import BadText, WrongTokenizer, pad  # type: ignore[import-not-found,no-redef]
    from units import UnitError  # type: ignore[import-not-found,no-redef]

Message = dict[str, Any]
PROGRESS_SECONDS = 1.0


class Worker:
    """State of one worker: the loaded model, its tokenizer, and the rows it is timed on."""

    def __init__(self, report: Callable[[Message], None]) -> None:
        self._report = report
        self._session: Session | None = None
        self._tokenizer = ""
        self._calls: list[Callable[[], object]] = []
        self.row = ""
        self.operations: dict[str, Callable[[Message], Message]] = {
            "load": self.load,
            "inputs": self.inputs,
            "block": self.block,
            "end_to_end": self.end_to_end,
            "score": self.score,
            "profile": profiled,
            "answers": lambda request: write_answers(self._loaded.feeds, request),
            "runtime": lambda request: {"runtime_version": installed_version(request["runtime"])},
            "facts": lambda _: {
                "card": facts.device_card(),
                "counters": facts.counters(),
                "operations": sorted(self.operations),
            },
            "counters": lambda _: {"counters": facts.counters()},
            "spin": scenario.spin,
            "paced": lambda request: scenario.paced(self._calls, request),
            "energy": lambda request: energy.measured(self._calls, request),
        }

    def load(self, request: Message) -> Message:
        """``files``, ``sha256``, ``runtime``, ``threads``, ``precision`` -> times, version, execution precision.

        ``tokenizer``: of a text model, one of the files. ``units``: where it is computed (``units.chosen``).
        ``shapes``: the file is of others; it is fed arrays by name.
        """
        self._session, self._calls, self._tokenizer = None, [], request.get("tokenizer", "")
        check_integrity(request["files"], request["sha256"])
        imported = time.perf_counter_ns()
        import_runtime(request["runtime"])
        start = time.perf_counter_ns()
        self._session = open_session(
            request["files"][0],
            request["runtime"],
            request["threads"],
            request.get("precision", "fp32"),
            request.get("units"),
            shapes=request.get("shapes"),
        )
        loaded = time.perf_counter_ns()
        if "shapes" not in request:
            self._session.run([self._session.example])
        return {
            "import_ns": start - imported,
            "load_ns": loaded - start,
            "first_inference_ns": time.perf_counter_ns() - loaded,
            "runtime_version": self._session.runtime_version,
            "execution_precision": self._session.execution_precision,
            "threads": self._session.threads,
            "input_shape": list(self._session.input_shape),
            **described(self._session.feeds),
        }

    def inputs(self, request: Message) -> Message:
        """The rows that ``block`` cycles through: texts, or ``path`` of a .npy, uint8 (N, H, W, 3) or int32 (N, L).

        ``arrays``: a .npz of ``ports.write_feeds``, for a file of others; its first inference happens here.
        """
        if "arrays" in request:
            self._calls, told = calls_of(self._loaded.feeds, request)
            return told
        if "texts" in request:
            texts = Texts(request, self._tokenizer)
            rows = [pad(texts.read(row), texts.spec) for row in self._progressing(texts)]
        else:
            rows = list(np.load(request["path"], allow_pickle=False))
        self._calls = self._loaded.calls(rows)
        return {"rows": len(rows)}

    def block(self, request: Message) -> Message:
        """Time ``n`` inferences after ``lead`` untimed ones; ``only``: of that row again and again.

        ``sample``: numbers of inferences whose outputs are returned too.
        """
        calls = self._calls[request["only"] :][:1] if "only" in request else self._calls
        if not calls:
            raise ValueError("no inputs are loaded")
        session = self._loaded
        for call in islice(cycle(calls), request.get("lead", 0)):
            call()
        gc.collect()
        gc.disable()
        waited, usage = facts.waited_ns(), resource.getrusage(resource.RUSAGE_SELF)
        cpu, wall = time.process_time_ns(), time.perf_counter_ns()
        block = scenario.timed_block(
            calls,
            request["n"],
            single=session.threads == 1,
            sample=request.get("sample", ()),
            output=lambda result: session.output(result).tolist(),
        )
        wall, cpu = time.perf_counter_ns() - wall, time.process_time_ns() - cpu
        after = resource.getrusage(resource.RUSAGE_SELF)
        waited_after = facts.waited_ns()
        gc.enable()
        return {
            **block,
            "cpu_ns": cpu,
            "wall_ns": wall,
            "waited_ns": None if waited is None or waited_after is None else max(0, waited_after - waited),
            "involuntary_switches": after.ru_nivcsw - usage.ru_nivcsw,
            "major_faults": after.ru_majflt - usage.ru_majflt,
            "peak_rss_bytes": facts.status_bytes("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }

    def end_to_end(self, request: Message) -> Message:
        """Nanoseconds from each file or text to its arg-max, and the classes found (of tokens: one for each)."""
        source, session = self._source(request), self._loaded
        self.row = source.name(0)
        source.predict(session, source.rows[0])  # the first one loads decoders, or a signature
        latency_ns, classes = [], []
        for row in self._progressing(source):
            start = time.perf_counter_ns()
            best = source.predict(session, row).argmax(-1).tolist()
            latency_ns.append(time.perf_counter_ns() - start)
            classes.append(best)
        return {"latency_ns": latency_ns, "classes": classes}

    def score(self, request: Message) -> Message:
        """Write the logits to ``out``, a .npy of float32 (N, classes), in one step; of tokens (N, max_length, K)."""
        source, session, start = self._source(request), self._loaded, time.perf_counter()
        rows = [source.predict(session, row) for row in self._progressing(source)]
        logits = stack(rows, source.longest)
        write_array(request["out"], logits)
        return {"shape": list(logits.shape), "seconds": time.perf_counter() - start}

    @property
    def _loaded(self) -> Session:
        if self._session is None:
            raise ValueError("no model is loaded")
        return self._session

    def _source(self, request: Message) -> Pictures | Texts:
        return Texts(request, self._tokenizer) if "texts" in request else Pictures(request)

    def _progressing(self, source: Pictures | Texts) -> Iterator[Any]:
        """The rows, with a progress line once a second; ``row`` names the one at hand, for error records."""
        last = time.monotonic()
        for done, row in enumerate(source.rows):
            if time.monotonic() - last > PROGRESS_SECONDS:
                self._report({"progress": done, "of": len(source.rows)})
                last = time.monotonic()
            self.row = source.name(done)
            yield row


def answer(worker: Worker, request: Message) -> Message:
    """The device boundary: whatever goes wrong becomes an error record."""
    worker.row = ""
    try:
        return {"id": request.get("id"), "ok": True, **worker.operations[request["op"]](request)}
    except IntegrityMismatch as error:
        kind, text = "integrity", str(error)
    except BadPicture as error:
        kind, text = "picture", f"{worker.row}: {error.reason}"
    except BadText as error:
        kind, text = "text", ": ".join(part for part in (worker.row, error.reason) if part)
    except WrongTokenizer as error:
        kind, text = "integrity", str(error)
    except UnitError as error:
        kind, text = error.kind, str(error)
    except BadShape as error:
        kind, text = "shape", str(error)
    except ModuleNotFoundError as error:
        kind, text = "missing", f"{error.name}"
    except MemoryError as error:
        kind, text = "memory", str(error) or "out of memory"
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        kind = "memory" if "bad alloc" in text.lower() or "bad_alloc" in text else "runtime"
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            kind = "space"
    return {"id": request.get("id"), "ok": False, "kind": kind, "text": text[:4000], "op": request.get("op")}


def serve(source: IO[str], sink: IO[str], silence: float, watch: float = 0.0) -> str:
    """Answer requests until close, end of input or silence; return which."""
    lock = threading.Lock()

    def report(message: Message) -> None:
        with lock:
            try:
                sink.write(json.dumps(message) + "\n")
                sink.flush()
            except OSError:  # nobody listens any more: the end of stdin follows
                return

    requests: queue.Queue[Message | None] = queue.Queue()
    threading.Thread(target=read_requests, args=(source, requests, report, Watch(watch).heard), daemon=True).start()
    worker = Worker(report)
    report({"ready": 1, "pid": os.getpid()})
    end = _serve(worker, requests, report, silence)
    report({"end": end})
    return end


def _serve(
    worker: Worker, requests: queue.Queue[Message | None], report: Callable[[Message], None], silence: float
) -> str:
    while True:
        try:
            request = requests.get(timeout=silence)
        except queue.Empty:
            return "silence"
        if request is None:
            return "end of input"
        if request.get("op") == "close":
            return "close"
        if request.get("op") != "beat":
            report(answer(worker, request))


def main() -> None:
    parser = argparse.ArgumentParser(description="Loads one model and times or scores it on request.")
    parser.add_argument(
        "--silence", type=float, default=300.0, help="seconds without a line before an idle worker ends"
    )
    parser.add_argument(
        "--watch", type=float, default=0.0, help="seconds without a line before it ends even while busy; 0: never"
    )
    parser.add_argument("--memory", type=int, default=0, help="limit of the address space in bytes; 0: none")
    options = parser.parse_args()
    if options.memory:
        resource.setrlimit(resource.RLIMIT_AS, (options.memory, options.memory))
    sink = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a runtime prints goes to stderr
    serve(sys.stdin, sink, options.silence, options.watch)
    sys.stdout.flush()
    os._exit(0)  # a runtime's threads cannot hold the process back


if __name__ == "__main__":
    main()
