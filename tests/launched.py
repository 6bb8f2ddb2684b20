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
from typing import Any, NoReturn

TRAINING = ("distilledge.pipeline.run", "timm", "accelerate", "sklearn.metrics")
PICTURES = (*TRAINING, "onnxscript", "onnxruntime.quantization")
TEXTS = (*PICTURES, "transformers", "peft")
TIMEOUT_S = 900
COMMAND = "from distilledge.pipeline.cli import main; main()"
_servers: list[subprocess.Popen[str]] = []


def distilledge(
    *arguments: str,
    cwd: Path,
    python: tuple[str, ...] | None = None,
    imports: tuple[str, ...] = PICTURES,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Run the command in ``cwd``; ``python``: the options of a new interpreter in place of a fork."""
    if python is None:
        return forked(COMMAND, *arguments, cwd=cwd, imports=imports, **environment)
    command = [sys.executable, *python, "-m", "distilledge.pipeline.cli", *arguments]
    surroundings = {**os.environ, "NO_COLOR": "1", **environment}
    return subprocess.run(
        command, cwd=cwd, env=surroundings, capture_output=True, text=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL
    )


def forked(
    code: str, *arguments: str, cwd: Path, imports: tuple[str, ...] = PICTURES, **environment: str
) -> subprocess.CompletedProcess[str]:
    """What ``python -c code arguments`` does. Variables that a library reads when it is imported come too late."""
    surroundings = {**os.environ, "NO_COLOR": "1", **environment}
    with tempfile.TemporaryDirectory() as folder:
        request = {"code": code, "arguments": arguments, "cwd": str(cwd), "environment": surroundings}
        status = _ask(json.dumps({**request, "imports": imports, "folder": folder}))
        out, err = ((Path(folder) / name).read_text() for name in ("stdout", "stderr"))
    return subprocess.CompletedProcess(["python", "-c", code, *arguments], status, out, err)


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
    """Until standard input ends."""
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
        _, status = os.waitpid(child, 0)
        answers.write(f"{os.waitstatus_to_exitcode(status)}\n")
        answers.flush()


def run(request: dict[str, Any]) -> NoReturn:
    """In the fork."""
    for descriptor, name in ((0, os.devnull), (1, f"{request['folder']}/stdout"), (2, f"{request['folder']}/stderr")):
        opened = os.open(name, os.O_RDWR | os.O_CREAT)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv[:] = ["-c", *request["arguments"]]
    status: object = 0
    try:
        exec(request["code"], {"__name__": "__main__"})
    except SystemExit as error:
        status = error.code
    except BaseException:
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    # Destructors of libraries wait for threads that a fork does not have.
    os._exit(status if isinstance(status, int) else status is not None)


if __name__ == "__main__":
    serve()
