"""How a training is carried out: one set of fields, which become options, checks and documentation."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from onnxcompress.training.sources import Kind, Source

Norms = Literal["auto", "frozen", "training"]


@dataclass(frozen=True)
class Recipe:
    """Optimizer, its rate over time, and what trains."""

    epochs: Annotated[int, Field(ge=1, description="passes over the training samples")] = 10
    minibatch: Annotated[int, Field(ge=1, description="samples of one step, where the model's first axis is free")] = 32
    accumulate: Annotated[int, Field(ge=1, description="steps whose gradients are averaged into one update")] = 1
    memory: Annotated[
        float | None,
        Field(
            gt=0,
            description="GB that a step may take: where it would take more, parts of a minibatch run one after the other; "
            "default: what the machine has free",
        ),
    ] = None
    optimizer: Annotated[Literal["sgd", "adamw", "lamb"], Field(description="sgd, adamw or lamb")] = "adamw"
    rate: Annotated[
        float | None,
        Field(gt=0, description="learning rate at its highest; by default short trials before training find it"),
    ] = None
    schedule: Annotated[
        Literal["constant", "cosine", "step"], Field(description="constant, cosine or step: the rate over time")
    ] = "cosine"
    warmup: Annotated[float, Field(ge=0, lt=1, description="share of the steps over which the rate first rises")] = 0.05
    momentum: Annotated[float, Field(ge=0, lt=1, description="of sgd; the first beta of adamw and lamb")] = 0.9
    nesterov: Annotated[bool, Field(description="sgd looks ahead along its velocity")] = False
    decay: Annotated[float, Field(ge=0, description="weight decay, decoupled; not of biases and norms")] = 0.0
    clip: Annotated[float | None, Field(gt=0, description="longest gradient; a longer one is scaled down")] = 5.0
    average: Annotated[
        float | None,
        Field(
            ge=0,
            lt=1,
            description="of the running average of weights, the share that stays at an update; default 0.99, written where it "
            "answers better than the weights; 0: none",
        ),
    ] = None
    smoothing: Annotated[
        float, Field(ge=0, lt=1, description="of labels: the share of each that all classes have alike, such as 0.1")
    ] = 0.0
    augment: Annotated[
        tuple[Any, ...],
        Field(
            description="change inputs anew in each epoch: flip, shift, zoom, brightness, contrast, noise, erase, each also "
            "NAME=STRENGTH, or module:function of (feed, random numbers); may come several times"
        ),
    ] = ()
    mixup: Annotated[
        float,
        Field(ge=0, description="mix pairs of samples, their shares from a Beta distribution of this, such as 0.2"),
    ] = 0.0
    norms: Annotated[
        Norms,
        Field(
            description="BatchNormalization: frozen keeps its statistics, training normalises by the batch; auto tries "
            "both before the first step"
        ),
    ] = "auto"
    freeze: Annotated[tuple[str, ...], Field(description="weights or nodes that do not train, by name or pattern")] = ()
    keep_encoding: Annotated[
        bool,
        Field(description="coded weights stay coded: their books and scales train; zeros of pruned matrices stay zero"),
    ] = False
    move_symbols: Annotated[
        bool,
        Field(
            description="with it, symbols train too, by a latent weight behind each; takes --keep-encoding for granted"
        ),
    ] = False
    gradients: Annotated[
        Kind,
        Field(
            description="auto: by the derivative table, or onnxruntime-training's builder (setup-training) where that lacks an "
            "operator; builder; own"
        ),
    ] = "auto"
    builder_dir: Annotated[str | None, Field(description="folder of setup-training, where it is not the usual one")] = (
        None
    )

    @property
    def changing(self) -> bool:
        """Whether inputs are other ones in each epoch, so that the teacher must look again."""
        return bool(self.augment) or self.mixup > 0

    @property
    def source(self) -> Source:
        """Where gradients come from."""
        return Source(self.gradients, self.builder_dir)
