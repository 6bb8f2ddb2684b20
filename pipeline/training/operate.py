"""Surgery on a student that is trained already: what the ladder's re-distillation begins with."""

from __future__ import annotations

from pathlib import Path

from distilledge.models import vision
from distilledge.models.base import Surgery
from distilledge.models.surgery import operated
from distilledge.pipeline import checkpoint as checkpoints
from distilledge.pipeline.record import Checkpoint
from distilledge.pipeline.training.stage import Taught


def operate(source: Taught, surgery: Surgery, directory: Path) -> Checkpoint:
    """Write the cut student's weights into ``directory``; ``distill(..., start=(checkpoint, directory))`` mends it.

    Until then its validation figures are those of the uncut one. ``models.surgery.variants`` says what is worth trying.
    Raises ``UsageError`` where there is nothing to cut, as in a student that was cut before.
    """
    checkpoint, _ = source
    model = operated(checkpoints.load(*source), surgery)
    found = vision.profile(model, int(checkpoint.input_spec["height"]))
    return checkpoint.model_copy(
        update={
            "architecture": {**checkpoint.architecture, "surgery": surgery.model_dump(mode="json")},
            "weights_sha256": checkpoints.save_weights(model.state_dict(), directory),
            "parameters": found.parameters,
            "macs": found.macs,
        }
    )
