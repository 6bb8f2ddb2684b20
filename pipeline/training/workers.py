"""Loader processes: what they do at their start, and what it means when one dies."""

from __future__ import annotations

import signal


def leave_signals_to_parent(_worker: int) -> None:
    """Ctrl-C reaches the whole process group: the parent decides. SIGTERM ends a worker, whatever the parent does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
