"""The command in a process of its own, forked from one that has imported what it needs: seconds saved in each launch.

``python launched.py`` is that one: it reads a line of JSON for each launch, forks, and answers with the exit status.
What is imported at all, and hash seeds that differ, are seen only in processes begun anew: ``python`` asks for these.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

PICTURES = ("distilledge.pipeline.run", "timm", "accelerate", "sklearn.metrics", "onnxscript", "onnxruntime.quantization")
TEXTS = (*PICTURES, "transformers", "peft")
TIMEOUT_S = 900
_servers: list[subprocess.Popen[str]] = []


def distilledge(
    *arguments: str,
    cwd: Path,
    python: tuple[str, ...] | None = None,
    imports: tuple[str, ...] = PICTURES,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Run the command in ``cwd``; ``python``: the options of a new interpreter in place of a fork."""
    command = [sys.executable, *(python or ()), "-m", "distilledge.pipeline.cli", *arguments]
    surroundings = {**os.environ, "NO_COLOR": "1", **environment}
    if python is not None:
        return subprocess.run(
            command, cwd=cwd, env=surroundings, capture_output=True, text=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL
        )
    with tempfile.TemporaryDirectory() as folder:
        request = {"arguments": arguments, "cwd": str(cwd), "environment": surroundings, "imports": imports}
        status = _ask(json.dumps({**request, "folder": folder}))
        out, err = ((Path(folder) / name).read_text() for name in ("stdout", "stderr"))
    return subprocess.CompletedProcess(command, status, out, err)


def _ask(request: str) -> int:
    if not _servers or _servers[0].poll() is not None:
        pipe = subprocess.PIPE
        command = [sys.executable, __file__]
        _servers[:] = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, start_new_session=True)]
        atexit.register(_end, _servers[0])
    server = _servers[0]
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(request + "\n")
    server.stdin.flush()
    if not select.select([server.stdout], [], [], TIMEOUT_S)[0]:
        os.killpg(server.pid, signal.SIGKILL)
        raise TimeoutError(f"after {TIMEOUT_S} s: {request}")
    answer = server.stdout.readline()
    assert answer, "the process that forks has ended"
    return int(answer)


def _end(server: subprocess.Popen[str]) -> None:
    server.stdin.close()  # type: ignore[union-attr]
    server.wait()


def serve() -> None:
    """Until standard input ends; returns in each fork too, after its command."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an import prints is no answer
    while line := sys.stdin.readline():
        request = json.loads(line)
        for name in request["imports"]:
            importlib.import_module(name)
        gc.collect()
        gc.freeze()  # pages shared with the forks stay shared
        if not (child := os.fork()):
            answers.close()
            run(request)
            return
        _, status = os.waitpid(child, 0)
        answers.write(f"{os.waitstatus_to_exitcode(status)}\n")
        answers.flush()


def run(request: dict[str, object]) -> None:
    """What ``python -m distilledge.pipeline.cli`` does, in this fork."""
    for descriptor, name in ((0, os.devnull), (1, f"{request['folder']}/stdout"), (2, f"{request['folder']}/stderr")):
        opened = os.open(name, os.O_RDWR | os.O_CREAT)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.chdir(str(request["cwd"]))
    os.environ.clear()
    os.environ.update(request["environment"])  # type: ignore[arg-type,call-overload]
    sys.argv[:] = ["distilledge", *request["arguments"]]  # type: ignore[misc]
    from distilledge.pipeline.cli import main

    main()


if __name__ == "__main__":
    try:
        serve()
    except Exception:
        traceback.print_exc()
        sys.exit(1)
