"""Loader processes: how they are started, what they do first, and what it means when one dies."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext

PRELOAD = ["distilledge.pipeline.training.views"]


def follow_parent(_worker: int) -> None:
    """Ctrl-C reaches the whole process group: the parent decides. SIGTERM ends a worker, whatever the parent does.

    So does the parent's death: torch's own watch asks for the process that forked this one, which is the server, and
    that lives as long as its workers.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def starter(workers: int) -> BaseContext | None:
    """``multiprocessing_context`` of a DataLoader with ``workers`` processes; None where there are none.

    They are forks of a small server, not of this process: the converters' threads (JAX, OpenVINO) and locks survive no
    fork, and a process that has forked may crash when it loads them. The server has imported torch once, and is started
    with SIGINT blocked, so that Ctrl-C does not end a worker that is still starting.
    """
    if not workers:
        return None
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    resource_tracker.ensure_running()  # it unblocks SIGINT itself
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context
