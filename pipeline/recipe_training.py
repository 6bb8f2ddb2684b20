"""Parts of the recipe: how a network is made and trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from distilledge.models.base import Value
from distilledge.models.clip_prompts import TEMPLATES
from distilledge.pipeline.recipe_data import Count, Fraction, NotNegative, Positive


class RandAugment(Value):
    operations: Annotated[int, Field(ge=0)] = 2
    magnitude: Annotated[int, Field(ge=0, le=30)] = 7


class Augment(Value):
    crop_scale: tuple[Fraction, Fraction] = (0.7, 1.0)
    """Share of the picture's area that a random resized crop keeps; (1, 1) switches it off."""
    crop_ratio: tuple[Positive, Positive] = (0.8, 1.25)
    horizontal_flip: Fraction = 0.5
    """Probability."""
    vertical_flip: Fraction = 0.0
    randaugment: RandAugment | None = None
    mixup: NotNegative = 0.0
    """Alpha of the Beta distribution; 0: off (Zhang et al. 2018)."""
    cutmix: NotNegative = 0.0
    """Alpha; 0: off (Yun et al. 2019). With both on, each batch takes one of them."""


class Lora(Value):
    rank: Count = 8
    alpha: Positive = 16.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class Prompts(Value):
    """What a CLIP teacher is asked of each class; see docs/shots.md."""

    templates: Literal["single", "ensemble", "inspection"] | tuple[str, ...] = "ensemble"
    """A list of sentences with ``{}`` for the class, or the name of one that comes with distilledge."""
    names: dict[str, str] = {}
    """Words for a class, by its label, such as ``Cr: fine cracks``. Default: the label, ``_`` and ``-`` as blanks."""

    @property
    def listed(self) -> tuple[str, ...]:
        return TEMPLATES[self.templates] if isinstance(self.templates, str) else self.templates


class Text(Value):
    """How a text becomes ids, and how the network is made: of text tasks only."""

    tokenizer: str = "model"
    """``model``: that of the model's hub name or directory (a student made from the teacher: the teacher's);
    ``teacher`` (student only): the teacher's; ``train``: WordPiece learned from the train split; or a path:
    tokenizer.json or vocab.txt (BERT, lower case). ``$NAME`` is expanded."""
    vocabulary: Count | None = None
    """Entries of a tokenizer that is learned. For a student that shares the teacher's tokenizer: embedding rows kept,
    those of the train split first, then in the tokenizer's order; other ids share the row of the unknown token."""
    max_length: Annotated[int, Field(ge=4, le=8192)] = 128
    """Tokens, special ones counted; longer texts are cut at the right and counted."""
    buckets: tuple[Annotated[int, Field(ge=1, le=8192)], ...] = ()
    """Lengths of a file with fixed shapes (TFLite), up to max_length. Default: powers of two from 16 to max_length."""
    config: dict[str, int | float | str | bool] = {}
    """Fields of the transformers configuration of a model built from scratch, such as ``hidden_size: 256``.
    ``model: teacher``: ``hidden_size`` and ``intermediate_size`` of a narrower student, sliced out of the teacher."""
    layers: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """``model: teacher``: the teacher's layers that the student starts from, counted from 0. Default: every second."""
    pooling: Literal["auto", "first", "mean", "last"] = "auto"
    """Which hidden state the head of a classification sees. ``auto``: last for decoders, mean for others."""
    lora: Lora | None = None
    """Train low-rank adapters instead of all weights; merged before export (Hu et al. 2021)."""


class TextAugment(Value):
    """Changed copies of texts for distillation, labels unseen (as TinyBERT; Jiao et al. 2020, section 3)."""

    copies: Count = 1
    """Changed copies of each text and epoch, beside the text itself."""
    replace: Fraction = 0.3
    """Share of the words that are replaced by what the teacher's language model predicts, or by ``mask``."""
    mask: Fraction = 0.1
    """Share of the words that become the mask token."""


class Training(Value):
    """One training, of a teacher or a student."""

    epochs: Count = 10
    batch_size: Count = 32
    accumulate: Count = 1
    """Batches whose gradients are added before a step."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: Positive = 1e-3
    """Peak learning rate."""
    weight_decay: NotNegative = 0.05
    """Not applied to biases and normalisation."""
    momentum: Fraction = 0.9
    """For sgd."""
    warmup_epochs: NotNegative = 1.0
    min_lr_ratio: Fraction = 0.01
    """Last learning rate over the peak, cosine between."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Learning rate of a layer over that of the layer above it (discriminative learning rates)."""
    freeze_backbone: bool = False
    """Train the head alone."""
    batch_norm: Literal["moving", "frozen"] = "moving"
    """``frozen``: BatchNorm keeps the statistics that the weights came with, in layers that are trained too."""
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Before the head of a picture model (timm's drop_rate), in all dropout layers of a text model. None: its own."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of the residual branches left out (stochastic depth, Huang et al. 2016), of pictures. None: its own."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    class_weights: Literal["none", "balanced"] = "none"
    sampling: Literal["shuffle", "balanced"] = "shuffle"
    """``balanced``: each class is drawn equally often."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of the weight average that is evaluated and kept."""
    augment: Augment = Augment()
    early_stopping: Count | None = None
    """Epochs without a better validation metric before training stops."""
    select: Literal["best", "last"] = "best"
    """Which epoch's weights are kept, by the validation metric."""
    max_grad_norm: Positive | None = 1.0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    """``auto``: bf16 where the processor computes in it, else fp32. A CPU without it takes 15 times as long in bf16."""
    channels_last: bool = True
    compile: bool = False
    """torch.compile."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    on_nan: Literal["stop", "skip"] = "stop"
    """What to do with a non-finite loss: stop with the batch named, or skip the step."""
    auto_batch: bool = False
    """Out of memory: halve the batch and double the accumulation instead of stopping."""
    checkpoint_every: Count = 200
    """Steps between checkpoints from which a killed run resumes (one is also written at each epoch's end)."""
    tracker: Literal["none", "tensorboard", "mlflow"] = "none"


class LossTerm(Value):
    name: str
    """A key of ``LOSSES``."""
    weight: NotNegative = 1.0
    arguments: dict[str, float | int | bool | str] = {}
    """Passed to the loss by keyword; checked against its signature."""


class Pretraining(Value):
    """Training without labels before the task: of texts as a language model (Gururangan et al. 2020), of pictures on
    two views of each (SimSiam, Chen & He 2021)."""

    corpus: str | None = None
    """Pictures: a folder of more of them, beside the data's own. Texts: a text a line (.txt), or .csv, .jsonl or
    .parquet with the text column. Default: the texts of train."""
    objective: Literal["auto", "mlm", "causal", "simsiam"] = "auto"
    """``mlm``: masked language model (Devlin et al. 2019); ``causal``: next token, for decoders;
    ``simsiam``: of pictures, the only one."""
    mask: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Share of the tokens that are masked."""
    losses: tuple[LossTerm, ...] = ()
    """Student only, task-agnostic distillation: losses against the teacher's own language model, which is then
    pretrained first (Sanh et al. 2019: kl and cosine beside the student's own masked loss)."""
    training: Training = Training(epochs=5, lr=5e-4, select="last")
