"""How a teacher is made of pretrained weights: the table of strategies, each a function of what a training starts from.

Where the recipe names none, all layers are fine-tuned as the training's settings say, and nothing here is asked.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from distilledge.models import domains, penalties, qlora, text_lora, training, transfer, vision_lora
from distilledge.models.clip_net import ClipNet
from distilledge.models.domains import Dann, Distance
from distilledge.models.errors import UsageError
from distilledge.models.features import FeatureTap
from distilledge.models.losses_total import DistillationLoss
from distilledge.models.penalties import Penalty
from distilledge.models.text_net import TextNet
from distilledge.models.transfer import Tuning
from distilledge.pipeline import recipe_strategy as given
from distilledge.pipeline.recipe_training import Lora
from distilledge.pipeline.record import Checkpoint
from distilledge.pipeline.training import adaptation, source, source_text
from distilledge.pipeline.training.counters import ADAPTERS, weights_drawn
from distilledge.pipeline.training.feed import Feed
from distilledge.pipeline.training.fisher import source_fisher
from distilledge.pipeline.training.loop import Trained, train
from distilledge.pipeline.training.objective import Objective, Tap
from distilledge.pipeline.training.probe import Probe, as_it_is, probe
from distilledge.pipeline.training.source_text import Language
from distilledge.pipeline.training.stage import TRAINER, Made, Stage, run_stage, write
from distilledge.pipeline.training.text_domain_feed import text_domain_feed
from distilledge.pipeline.training.text_feed import TextFeed

log = logging.getLogger("distilledge.training")
HEAD_SAVED = 1.0
"""Seconds between saved states of a training on features in memory."""


@dataclass(frozen=True)
class Subject:
    """What a strategy is applied to: a model with its start, and the data it would be trained on."""

    stage: Stage
    model: nn.Module
    to_input: nn.Module
    feed: Feed
    language: Language | None = None
    """Of a text model: what it starts from."""


@dataclass(frozen=True)
class Change:
    """What a strategy makes of it. None: as without one."""

    tuning: Tuning | None = None
    penalty: Penalty | None = None
    model: nn.Module | None = None
    feed: Feed | None = None
    to_input: nn.Module | None = None
    finished: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None
    """The kept state as it is saved."""
    trained: Trained | None = None
    """Where nothing is left to be trained."""
    architecture: dict[str, Any] | None = None
    """Added to the checkpoint's."""
    auxiliary: nn.Module | None = None
    """A loss of the embedding."""


def teach(
    subject: Subject, loss: DistillationLoss, made: Made, *, task: str = "image-classification", tap: Tap | None = None
) -> Checkpoint:
    """Train the subject's model by the recipe's strategy, and write it."""
    stage, chosen = subject.stage, subject.stage.recipe.teacher.strategy
    change = Change()
    if not given.is_default(chosen):
        log.info("teacher: strategy %s", chosen.name)
        change = STRATEGIES[chosen.name](subject, given.arguments(chosen))
    if change.finished is not None:
        made = replace(made, finished=change.finished)
    if change.architecture is not None:
        made = replace(made, architecture={**made.architecture, **change.architecture})
    if change.trained is not None:
        return write(stage, made, change.trained)
    objective = Objective(
        change.model or subject.model,
        change.to_input or subject.to_input,
        loss,
        tap=FeatureTap(subject.model, embedding=True) if change.auxiliary is not None else tap,
        task=task,
        tuning=change.tuning,
        penalty=change.penalty,
        auxiliary=change.auxiliary,
    )
    often = 0.0 if change.feed is None else HEAD_SAVED
    return _judged(subject, run_stage(stage, objective, change.feed or subject.feed, made, save_seconds=often))


def _judged(subject: Subject, made: Checkpoint) -> Checkpoint:
    """With what is left of the source, where the strategy names one and the model was trained."""
    if TRAINER.get() is not train:
        return made
    chosen = given.arguments(subject.stage.recipe.teacher.strategy)
    if not isinstance(chosen, given.OfSource) or not chosen.source or subject.stage.from_scratch:
        return made
    drawn = chosen.samples if isinstance(chosen, given.EWC) and chosen.fisher == "source" else 0
    stage, language = subject.stage, subject.language
    if language is not None:
        return made.model_copy(update={"source": source_text.kept(stage, language, chosen.source, drawn=drawn)})
    return made.model_copy(update={"source": source.kept(stage, chosen.source, drawn=drawn)})


def fine_tune(subject: Subject, arguments: given.FineTune) -> Change:
    if arguments.layers is None:
        return Change()
    return Change(_tuning(subject, top=arguments.layers + 1))


def discriminative(subject: Subject, arguments: given.Discriminative) -> Change:
    return Change(_tuning(subject, decay=arguments.decay))


def progressive(subject: Subject, arguments: given.Progressive) -> Change:
    opened = {"epoch": transfer.by_epoch, "plateau": transfer.by_plateau}[arguments.by]
    return Change(_tuning(subject, opened=opened(arguments.epochs)))


def l2_sp(subject: Subject, arguments: given.L2SP) -> Change:
    tuning = replace(_tuning(subject), decays_weights=False)  # the penalty takes weight decay's place
    return Change(tuning, penalties.l2_sp(subject.model, tuning.groups[-1], arguments.alpha, arguments.beta))


def ewc(subject: Subject, arguments: given.EWC) -> Change:
    tuning = _tuning(subject)
    below = [name for names in tuning.groups[:-1] for name in names]
    if subject.language is not None:
        fisher = source_text.source_fisher(subject.stage, subject.language, arguments, below)
    else:
        fisher = source_fisher(subject.stage, arguments, below)
    return Change(tuning, penalties.ewc(subject.model, fisher, arguments.strength))


def lora(subject: Subject, arguments: Lora) -> Change:
    start = subject.model
    sizes = (arguments.rank, arguments.alpha, arguments.dropout)
    with weights_drawn(subject.stage.recipe.seed, ADAPTERS):
        model = text_lora.add(start, *sizes) if isinstance(start, TextNet) else vision_lora.add(start, *sizes)
    return _adapted(start, model, vision_lora.merge)


def qlora_(subject: Subject, arguments: given.Qlora) -> Change:
    with weights_drawn(subject.stage.recipe.seed, ADAPTERS):
        model = qlora.add(subject.model, **arguments.model_dump())
    return _adapted(subject.model, model, qlora.merge)


def _adapted(start: nn.Module, model: nn.Module, merge: Callable[[nn.Module], nn.Module]) -> Change:
    """Adapters and head are trained, and merged into what is saved."""
    head = transfer.layer_groups(start)[-1]
    names = [name for name, _ in model.named_parameters()]
    adapters = tuple(name for name in names if ".lora_" in name)
    rest = tuple(name for name in names if name not in {*adapters, *head})

    def finished(state: dict[str, Tensor]) -> dict[str, Tensor]:
        model.load_state_dict(state)
        return merge(model).state_dict()

    return Change(Tuning((rest, adapters, head), top=2), model=model, finished=finished)


def zero_shot(subject: Subject, _arguments: given.ZeroShot) -> Change:
    if not isinstance(subject.model, ClipNet):
        raise UsageError("E2559", "strategy zero-shot is of CLIP models", "set teacher.model: clip:OWNER/NAME")
    return _probed(as_it_is(subject.stage, subject.model, subject.to_input, subject.feed))


def feature_extraction(subject: Subject, arguments: given.FeatureExtraction) -> Change:
    return _probed(probe(subject.stage, subject.model, subject.to_input, subject.feed, arguments))


def _probed(made: Probe) -> Change:
    return Change(
        made.tuning,
        model=made.head,
        feed=made.feed,
        to_input=nn.Identity(),
        finished=made.finished,
        trained=made.trained,
        architecture=made.architecture,
    )


def _both_domains(subject: Subject, name: str) -> Feed:
    if subject.language is not None and isinstance(subject.feed, TextFeed):
        return text_domain_feed(subject.stage, subject.feed, subject.language.started.encoder)
    return adaptation.domain_feed(subject.stage, subject.feed, name)


def dann(subject: Subject, arguments: given.Dann) -> Change:
    feed = _both_domains(subject, "dann")
    width = adaptation.head_width(subject.model)
    with weights_drawn(subject.stage.recipe.seed, adaptation.DOMAINS):
        classifier = Dann(width, hidden=arguments.hidden, weight=arguments.weight, gamma=arguments.gamma)
    return Change(feed=feed, auxiliary=classifier)


def coral(subject: Subject, arguments: given.Coral) -> Change:
    return Change(feed=_both_domains(subject, "coral"), auxiliary=Distance(domains.coral, arguments.weight))


def mmd(subject: Subject, arguments: given.Mmd) -> Change:
    distance = partial(domains.mmd, kernels=arguments.kernels)
    return Change(feed=_both_domains(subject, "mmd"), auxiliary=Distance(distance, arguments.weight))


def adabn(subject: Subject, arguments: given.AdaBn) -> Change:
    return Change(finished=adaptation.with_target_statistics(subject.stage, subject.model, arguments.samples))


STRATEGIES: dict[str, Callable[[Subject, Any], Change]] = {
    "fine-tune": fine_tune,
    "discriminative": discriminative,
    "feature-extraction": feature_extraction,
    "progressive": progressive,
    "l2-sp": l2_sp,
    "ewc": ewc,
    "lora": lora,
    "dann": dann,
    "coral": coral,
    "mmd": mmd,
    "adabn": adabn,
    "qlora": qlora_,
    "zero-shot": zero_shot,
}
"""Name in a recipe -> what it makes of a model; ``recipe_strategy.ARGUMENTS`` says what each takes."""


def _tuning(
    subject: Subject, *, top: int | None = None, decay: float | None = None, opened: transfer.Opened | None = None
) -> Tuning:
    """Raises ``UsageError`` where more groups are wanted than there are."""
    groups = transfer.layer_groups(subject.model)
    if top is not None and top > len(groups):
        raise UsageError(
            "E2467", f"layers: {top - 1}, but the model has {len(groups) - 1} below its head", "leave layers out"
        )
    own, shares = subject.stage.settings.layer_decay, None
    if decay is None and own != 1:
        shares = training.learning_rates(subject.model, own)
    return Tuning(groups, top=top, decay=1.0 if decay is None else decay, opened=opened, shares=shares)
