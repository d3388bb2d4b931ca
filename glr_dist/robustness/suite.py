"""Config of `glr-dist evaluate`: attacks, corruptions and the mode of prediction. Imports neither torch nor Ray."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, model_validator

from glr_dist.config import (
    Config,
    Count,
    Model,
    Optimizer,
    Positive,
    Schedule,
    Section,
    Training,
    build,
    overridden,
    suite_of_file,
)
from glr_dist.errors import ConfigError

Threat = Literal["white_box", "transfer", "adaptive"]
Corruption = Literal[
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "speckle_noise",
    "gaussian_blur",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
]


def _one_or_more(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else (value,)


SuiteName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$", max_length=64)]
Eps = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Epsilons = Annotated[tuple[Eps, ...], BeforeValidator(_one_or_more), Field(min_length=1)]


class FGSM(Section):
    """The fast gradient sign method."""

    name: Literal["fgsm"] = "fgsm"
    threats: tuple[Threat, ...] = Field(("white_box", "transfer", "adaptive"), min_length=1)
    eps: Epsilons = (0.1,)
    examples: Count | None = Field(None, description="attack the first N images only; default: all images of the suite")


class PGD(Section):
    """Projected gradient descent."""

    name: Literal["pgd"] = "pgd"
    threats: tuple[Threat, ...] = Field(("white_box", "transfer", "adaptive"), min_length=1)
    eps: Epsilons = (0.1,)
    norm: Literal["linf", "l2"] = "linf"
    steps: Count = 20
    step_size: float = Field(0.15, gt=0, allow_inf_nan=False, description="in units of ε")
    random_start: bool = True
    examples: Count | None = None


class LBFGS(Section):
    """Smallest L2 perturbation by L-BFGS, with pixels in [0, 1]."""

    name: Literal["lbfgs"] = "lbfgs"
    threats: tuple[Literal["white_box", "transfer"], ...] = Field(("white_box", "transfer"), min_length=1)
    iterations: Count = 20
    searches: Count = 9
    examples: Count | None = 1000


class TorchLBFGS(Section):
    """The paper's L-BFGS: one step of torch's optimizer on each image."""

    name: Literal["torch_lbfgs"] = "torch_lbfgs"
    threats: tuple[Literal["white_box", "transfer"], ...] = Field(("transfer",), min_length=1)
    lr: Positive = 0.05
    iterations: Count = 20
    examples: Count | None = 1000


class Square(Section):
    """The Square attack, which needs class scores only."""

    name: Literal["square"] = "square"
    eps: Epsilons = (0.1,)
    queries: Count = 5000
    examples: Count | None = 200


class RandomSign(Section):
    """Random noise of an attack's size (control)."""

    name: Literal["random_sign"] = "random_sign"
    eps: Epsilons = (0.1,)
    examples: Count | None = None


Attack = Annotated[FGSM | PGD | LBFGS | TorchLBFGS | Square | RandomSign, Field(discriminator="name")]


class Corruptions(Section):
    """The common corruptions."""

    names: tuple[Corruption, ...] = ("gaussian_noise", "impulse_noise", "glass_blur", "contrast")
    constants: Literal["cifar_c", "imagenet_c", "authors"] = Field(
        "cifar_c", description="benchmark that defines the severities; authors: cifar_c with the paper's glass blur"
    )
    severities: tuple[Annotated[int, Field(ge=1, le=5)], ...] = Field((1, 2, 3, 4, 5), min_length=1)
    examples: Count | None = None


class Inference(Section):
    """Prediction with or without noise."""

    votes: int = Field(0, ge=0, description="0: predict without noise; N: majority vote of N noisy passes")
    draws: Count = Field(10, description="noisy passes whose mean scores an attack uses in place of the vote")


class Adaptive(Section):
    """The adaptive threat model: likelihood ratio estimates of the input gradient under the attacker's own noise."""

    spreads: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = Field(
        (0.1, 0.2, 0.05, 0.4),
        min_length=1,
        description="noise scales in units of the standard deviation of each site's logits, tried in this order",
    )
    copies: Annotated[int, Field(ge=2, multiple_of=2)] | None = Field(
        None, description="K; default: a frame, twice the number of units of the first site, at most 1024"
    )
    passes: Count = Field(1, description="M")


class Surrogate(Section):
    """Source network of transfer attacks, trained by backpropagation on the run's data and cached."""

    seed: int = Field(1000, ge=0, lt=2**63)
    model: Model = Model(hidden=(50,), activation="relu")
    training: Training = Training(
        epochs=15,
        batch_size=64,
        optimizer=Optimizer(name="Adam", lr=0.003),
        schedule=Schedule(name="CosineAnnealingLR", per="step"),
    )

    @model_validator(mode="after")
    def _begins_by_itself(self) -> Surrogate:
        if self.model.weights is not None:
            raise ConfigError("surrogate.model.weights: has no effect, a surrogate begins with new weights")
        return self


class Suite(Section):
    """Everything besides the run that determines a robustness report."""

    name: SuiteName = Field("suite", description="name of the suite's reports")
    seed: int = Field(
        0, ge=0, lt=2**63, description="seed of all random draws; use the same for all runs of a comparison"
    )
    split: Literal["test", "validation"] = Field(
        "test", description="images to evaluate on; select models on 'validation'"
    )
    examples: Count | None = Field(None, description="evaluate the first N images of the split; default: all")
    surrogate_right: bool = Field(False, description="evaluate only images that the surrogate classifies correctly")
    block: Count = Field(250, description="images per work item and per random stream")
    attacks: tuple[Attack, ...] = ()
    corruptions: Corruptions = Corruptions()
    inference: Inference = Inference()
    adaptive: Adaptive = Adaptive()
    surrogate: Surrogate = Surrogate()
    baseline: str = Field(
        "surrogate", description="reference of the corruption errors: 'surrogate' or the folder of a run"
    )

    @property
    def report_name(self) -> str:
        """The name of this suite's report on its split, `SUITE-SPLIT`."""
        return f"{self.name}-{self.split}"


_PAPER_EPS = (0.1, 0.13, 0.2, 0.3)  # 0.13 is the authors' own
_PAPER_ATTACKS = (
    RandomSign(eps=_PAPER_EPS),
    FGSM(eps=_PAPER_EPS),
    PGD(eps=_PAPER_EPS),
    LBFGS(),
    Square(eps=_PAPER_EPS),
)


def _authors(hidden: tuple[int, ...], name: str) -> Suite:
    """Returns the protocol of the authors' public code, with one of their surrogates."""
    sgd = Optimizer(name="SGD", lr=0.01, momentum=0.9, weight_decay=1e-4)
    return Suite(
        name=name,
        attacks=(FGSM(eps=(0.1, 0.13), threats=("transfer",)), TorchLBFGS()),
        corruptions=Corruptions(constants="authors"),
        surrogate=Surrogate(
            model=Model(hidden=hidden, activation="relu"), training=Training(epochs=10, batch_size=128, optimizer=sgd)
        ),
    )


def _reproduce() -> Suite:
    """Returns the authors' protocol with PGD that knows the network."""
    suite = _authors((100, 50), "reproduce")
    adaptive = PGD(eps=(0.13,), threats=("adaptive",), examples=500)
    return suite.model_copy(update={"attacks": (*suite.attacks, adaptive)})


SUITES: dict[str, Suite] = {
    # The paper's attacks and corruptions, plus the attacks that a network without gradients needs.
    "paper": Suite(name="paper", attacks=_PAPER_ATTACKS),
    # A first impression in less than a minute.
    "quick": Suite(
        name="quick",
        examples=1000,
        attacks=(RandomSign(eps=(0.1, 0.2)), FGSM(eps=(0.1, 0.2)), PGD(eps=(0.1, 0.2), steps=10, step_size=0.25)),
        corruptions=Corruptions(severities=(1, 3, 5)),
    ),
    # Every attack and corruption.
    "full": Suite(
        name="full",
        attacks=(*_PAPER_ATTACKS, PGD(eps=(0.5, 1.0, 2.0), norm="l2")),
        corruptions=Corruptions(names=get_args(Corruption)),
    ),
    # What the authors' public code does, to compare like with like; no attack knows the network.
    "authors": _authors((100, 50), "authors"),
    "authors_50": _authors((50,), "authors_50"),
    # The same, and beside it an attack that knows the network: what `glr-dist reproduce` measures.
    "reproduce": _reproduce(),
}


def load_suite(suite: str, overrides: Sequence[str] = (), field: str = "--suite") -> Suite:
    """Loads a suite by name or from a YAML file, and applies `section.key=value` overrides.

    A file that gives no `name` has its own. `field` is what an error names.

    Raises:
        ConfigError: the suite or file does not exist, or a field is invalid.
    """
    if suite in SUITES:
        values = SUITES[suite].model_dump(mode="json")
    elif Path(suite).exists() or Path(suite).suffix:
        values = suite_of_file(suite)
    else:
        raise ConfigError(f"{field}: {suite!r} is neither a suite ({', '.join(SUITES)}) nor a file")
    return build(Suite, overridden(values, overrides))


def surrogate_config(surrogate: Surrogate, run: Config) -> Config:
    """Returns the config that trains the surrogate on a run's data."""
    sections = {
        "seed": surrogate.seed,
        "data": run.data,
        "model": surrogate.model,
        "noise": {"law": "none"},
        "estimator": {"name": "pathwise"},
        "training": surrogate.training,
    }
    return build(Config, sections, "surrogate.")
