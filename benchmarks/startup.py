"""Wall time of a fresh ``distilledge`` process: the wait before anything happens. Bar: ``--help`` under 0.5 s."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from common import arguments, bar, conditions, finish

HELP_SECONDS = 0.5
COMMANDS: dict[str, tuple[str, ...]] = {
    "--help": ("--help",),
    "--version": ("--version",),
    "doctor": ("doctor",),
    "plan demo": ("plan", "demo"),
}


def wall_seconds(command: tuple[str, ...], folder: Path) -> float:
    """One fresh process, from start to exit. Raises CalledProcessError where it fails: a failure is no timing."""
    program = [str(Path(sys.executable).with_name("distilledge")), *command]
    start = time.perf_counter()
    subprocess.run(program, cwd=folder, capture_output=True, check=True)
    return time.perf_counter() - start


def main() -> None:
    """Commands take turns, so that a burst of other load falls on all of them."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--launches", type=int, default=None, help="processes of each command (15; 3 with --quick)")
    options = parser.parse_args()
    launches = options.launches or (3 if options.quick else 15)
    taken: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with TemporaryDirectory() as scratch:
        for number in range(launches + 1):
            for name, command in COMMANDS.items():
                seconds = wall_seconds(command, Path(scratch))
                if number:  # the first one reads everything from disk
                    taken[name].append(seconds)
    rows = [
        {"command": name, "min_s": min(s), "median_s": statistics.median(s), "max_s": max(s), "launches": launches}
        for name, s in taken.items()
    ]
    facts = conditions(quick=options.quick, packages=("typer", "pydantic", "rich"))
    finish("startup", facts, rows, [bar("--help, median s", rows[0]["median_s"], HELP_SECONDS)], out=options.out)


if __name__ == "__main__":
    main()
