"""Peak memory of a training with 1x, 4x and 16x as many pictures, each in a process of its own. Bar: flat within 10 %.

The process caches the decoded pictures, trains one epoch over all of them and validates.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from common import arguments, bar, conditions, finish
from training import make_data, make_recipe

BOUND = 1.10
TIMES = (1, 4, 16)


def child(folder: Path, pictures: int) -> None:
    """Train, then print the peak resident set of this process in bytes."""
    import torch

    from distilledge.pipeline.training.distill import distill
    from distilledge.pipeline.training.events import silent

    torch.set_num_threads(1)
    splits, data = make_data(folder / "store", pictures)
    recipe = make_recipe("mobilenetv1_025", 96, 32, epochs=1)
    for name in ("out", "partial"):
        (folder / name).mkdir()
    distill(recipe, splits, data, None, folder / "out", partial=folder / "partial", report=silent)
    print(json.dumps({"peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


def peak(pictures: int) -> int:
    """Bytes. Raises CalledProcessError where the training fails."""
    with TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--child", folder, "--pictures", str(pictures)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return int(json.loads(done.stdout.splitlines()[-1])["peak_rss_bytes"])


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--pictures", type=int, default=None, help="of the smallest set (500; 100 with --quick)")
    parser.add_argument("--child", type=Path, default=None, help="used by the script itself")
    options = parser.parse_args()
    base = options.pictures or (100 if options.quick else 500)
    if options.child is not None:
        child(options.child, base)
        return
    rows = [{"pictures": base * n, "times": n, "peak_rss_mb": peak(base * n) / 1e6} for n in TIMES]
    peaks = [row["peak_rss_mb"] for row in rows]
    facts = conditions(quick=options.quick, packages=("torch", "accelerate"), extra={"model": "mobilenetv1_025"})
    finish("memory", facts, rows, [bar("largest over smallest peak", max(peaks) / min(peaks), BOUND)], out=options.out)


if __name__ == "__main__":
    main()
