"""One training on many GPUs: a process for each, started by torch's launcher, joined by Accelerate.

A step's pictures are shared out, so the number of GPUs changes nothing but the speed and the last bits of sums. The
processes run the same stage function; the first one writes the result and says how far it is, the parent waits.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from distilledge.models import errors
from distilledge.models.base import Value
from distilledge.models.errors import DistilledgeError, ResourceError
from distilledge.pipeline.interrupt import Interrupted, graceful
from distilledge.pipeline.recipe import Recipe, Training
from distilledge.pipeline.record import Checkpoint, Role, Splits
from distilledge.pipeline.training.events import ProgressEvent, Report, silent

JOB, RESULT, ERROR = "job.json", "result.json", "error-{}.json"


class Job(Value):
    """Arguments of ``finetune`` (``stage``: teacher), ``distill`` (student) or ``pretrain`` (pretrain-ROLE)."""

    stage: str
    recipe: Recipe
    splits: Splits
    data_dir: Path
    taught_by: tuple[Checkpoint, Path] | None = None
    parent: tuple[Checkpoint, Path] | None = None
    pretrained: tuple[Checkpoint, Path] | None = None
    language: tuple[Checkpoint, Path] | None = None
    start: tuple[Checkpoint, Path] | None = None
    from_scratch: bool = False
    out: Path
    partial: Path


def process_count(settings: Training) -> int:
    """How many processes a training is to be started in: the most GPUs that share a batch evenly; 1 inside of one."""
    if "LOCAL_RANK" in os.environ or settings.device == "cpu" or not torch.cuda.is_available():
        return 1
    return max(n for n in range(1, torch.cuda.device_count() + 1) if settings.batch_size % n == 0)


def launch(job: Job, processes: int, report: Report) -> Checkpoint:
    """Run ``job`` in ``processes`` processes of this machine; raises what the stage raises."""
    for old in (job.partial / RESULT, *job.partial.glob(ERROR.format("*"))):
        old.unlink(missing_ok=True)
    path = job.partial / JOB
    path.write_text(job.model_dump_json(by_alias=True), encoding="utf-8")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    # in a session of its own: Ctrl-C reaches this process alone, which passes it on once
    with subprocess.Popen(
        [*launcher, "-m", __name__, str(path)], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as started:
        code = _follow(started, report)
    if code != 0 or not (job.partial / RESULT).is_file():
        raise _error(job.partial, code)
    return Checkpoint.model_validate_json((job.partial / RESULT).read_bytes())


def _follow(started: subprocess.Popen[str], report: Report) -> int:
    """Relay progress until the processes end; a signal is passed on, and they are not left running after an error."""
    assert started.stdout is not None
    try:
        with graceful() as interrupt:
            asked = False
            for line in started.stdout:
                _relay(line, report)
                if interrupt.requested and not asked:
                    started.terminate()
                    asked = True
            code = started.wait()
            interrupt.raise_if_requested()
    finally:
        if started.poll() is None:
            started.terminate()
    return code


def _relay(line: str, report: Report) -> None:
    if line.startswith("[") and line.endswith("]\n"):
        report(ProgressEvent(*json.loads(line)))


def _error(partial: Path, code: int) -> DistilledgeError:
    """What the first process that failed said, or that it said nothing."""
    for path in sorted(partial.glob(ERROR.format("*"))):
        said = json.loads(path.read_bytes())
        kind: type[DistilledgeError] = getattr(errors, said["kind"])
        return kind(said["code"], said["what"], said["hint"])
    return ResourceError(
        "E9605", f"a training process ended with code {code} and no message", "see above; run again to go on"
    )


def run_job(job: Job, rank: int, call: Callable[[Job, Path, Report], Checkpoint]) -> None:
    """One of the processes: the first writes to ``job.out``, the others' results are thrown away."""
    with tempfile.TemporaryDirectory() as elsewhere:
        try:
            made = call(job, job.out if rank == 0 else Path(elsewhere), _say if rank == 0 else silent)
        except DistilledgeError as error:
            said = {"kind": type(error).__name__, "code": error.code, "what": error.what, "hint": error.hint}
            (job.partial / ERROR.format(rank)).write_text(json.dumps(said), encoding="utf-8")
            sys.exit(error.exit_code)
        except Interrupted as interrupted:
            sys.exit(interrupted.exit_code)
    if rank == 0:
        (job.partial / RESULT).write_text(made.model_dump_json(by_alias=True), encoding="utf-8")


def _say(event: ProgressEvent) -> None:
    print(json.dumps(list(event)), flush=True)


def _call(job: Job, out: Path, report: Report) -> Checkpoint:
    from distilledge.pipeline.training.distill import distill
    from distilledge.pipeline.training.pretrain import pretrain
    from distilledge.pipeline.training.teacher import finetune

    place = (job.recipe, job.splits, job.data_dir)
    if job.stage == "teacher":
        return finetune(*place, out, job.partial, report, pretrained=job.pretrained, from_scratch=job.from_scratch)
    if job.stage.startswith("pretrain-"):
        role: Role = "teacher" if job.stage == "pretrain-teacher" else "student"
        return pretrain(*place, role, job.taught_by, out, partial=job.partial, report=report, parent=job.parent)
    return distill(
        *place,
        job.taught_by,
        out,
        partial=job.partial,
        report=report,
        parent=job.parent,
        pretrained=job.pretrained,
        language=job.language,
        start=job.start,
    )


if __name__ == "__main__":
    run_job(Job.model_validate_json(Path(sys.argv[1]).read_bytes()), int(os.environ["RANK"]), _call)
