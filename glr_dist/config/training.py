"""The section `training`: the loop, and what it minimises."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from glr_dist.config.section import Count, Named, Positive, Scale, Section, one_of
from glr_dist.errors import ConfigError
from glr_dist.registry import LOSSES


class Optimizer(Named):
    """An optimizer: a class of torch.optim, or an entry of `OPTIMIZERS`."""

    name: str = "Adam"


class Schedule(Named):
    """A learning-rate schedule: a class of torch.optim.lr_scheduler, stepped once per step or per epoch."""

    per: Literal["step", "epoch"] = "epoch"


Metric = Literal["top5_accuracy", "f1", "auc", "recall", "mae", "r2"]


class EarlyStopping(Section):
    """Ends a run when a metric has not improved for some epochs. The best epoch is that of this metric."""

    patience: Count = Field(description="epochs without an improvement after which the run ends")
    metric: Literal["accuracy", "loss", "top5_accuracy", "f1", "auc", "mae", "r2"] = Field(
        "accuracy", description="metric of the validation examples"
    )


class Penalty(Section):
    """Terms that are added to the objective; their gradients are local to a layer."""

    spectral: Scale = Field(
        description="λ of λ‖W‖₂, added for the first layer, or a mapping of layer-name patterns to λ"
    )


class Adversarial(Section):
    """Adversarial training on images that FGSM or PGD makes for the network as it is."""

    epsilon: Positive = Field(description="radius of the L∞ ball, in pixel values in [0, 1]")
    steps: Count = Field(1, description="steps of the attack: 1 is FGSM, more are PGD from a random point")
    every: Count = Field(1, description="a step of training in this number is adversarial")
    gradient: Literal["estimated", "exact"] = Field(
        "estimated", description="by the likelihood ratio under noise, or the derivative without noise"
    )
    copies: Count | None = Field(
        None, description="redraws of an estimate (default: twice the units of the first site, at most 1,024)"
    )
    spread: Positive | None = Field(
        None, description="σ of the estimate's noise, in standard deviations of a site's logits (default: as trained)"
    )

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> Adversarial:
        for key in ("copies", "spread"):
            if self.gradient == "exact" and getattr(self, key) is not None:
                raise ConfigError(f"training.adversarial.{key}: has no effect with gradient 'exact'; leave it out")
        return self


class Training(Section):
    """The training loop."""

    epochs: Count = 10
    batch_size: Count = 128
    loss: Annotated[str, one_of(LOSSES, own=True)] = "cross_entropy"
    optimizer: Optimizer = Field(Optimizer(lr=0.01), description="a class of torch.optim and its arguments")
    schedule: Schedule | None = None
    penalty: Penalty | None = None
    adversarial: Adversarial | None = None
    metrics: tuple[Metric, ...] = Field((), description="on the validation and test examples, beside accuracy and loss")
    early_stopping: EarlyStopping | None = None
    warmup: int = Field(0, ge=0, le=10**9, description="steps in which the learning rate grows linearly from 0")
    clip_norm: Positive | None = Field(None, description="maximum norm of the gradient of all parameters")
    ema: float | None = Field(
        None, gt=0, lt=1, description="decay of the moving average of the weights, which is tested and kept"
    )
    max_steps: Count | None = Field(
        None, description="the run ends after this number of steps, if need be within an epoch"
    )
    max_seconds: Positive | None = Field(None, description="no epoch begins after this time of training, in seconds")
    verify: bool = Field(True, description="check on a few examples that the network is what the estimates rely on")
    keep_checkpoints: Annotated[int, Field(ge=2)] = Field(
        2, description="number of newest checkpoints to keep, besides the best one by validation accuracy"
    )

    @model_validator(mode="after")
    def _watched_metric_is_measured(self) -> Training:
        if (early := self.early_stopping) and early.metric not in ("accuracy", "loss", *self.metrics):
            raise ConfigError(
                f"training.early_stopping.metric: '{early.metric}' is not measured; add it to training.metrics"
            )
        return self
