"""No telemetry, for our process and the processes it starts. Nothing is written to the user's home.

``openvino`` and ``nncf`` send an event when they are imported, unless a consent file in the home directory says no.
Both have a stub for the case that ``openvino_telemetry`` is not installed; we make that the case. Standard library
only, so that the command line can call it first.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

PACKAGE = "openvino_telemetry"
SWITCHES = {
    "NNCF_CI": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
}
"""Environment variables that switch off what others would send; inherited by our workers."""


def switch_off() -> None:
    """Call before ``openvino`` or ``nncf`` is imported."""
    os.environ.update(SWITCHES)
    sys.modules.setdefault(PACKAGE, None)  # type: ignore[arg-type]  # documented: makes the import fail


def still_on() -> tuple[str, ...]:
    """What could still send something from this process; empty when all is off."""
    found = [name for name, value in SWITCHES.items() if os.environ.get(name) != value]
    if find_spec(PACKAGE) is not None:
        found.append(PACKAGE)
    return tuple(found)
