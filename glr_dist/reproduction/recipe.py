"""The runs and the suite of a reproduction, by data set. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from glr_dist.config import Config, Execution, Noise, Optimizer, Robustness, Training, build, load_config, per_site
from glr_dist.errors import ConfigError
from glr_dist.reproduction.sweep import Sweep, label
from glr_dist.robustness.suite import FGSM, PGD, SUITES, Suite, Surrogate, TorchLBFGS
from glr_dist.text import hint

PAPER = "paper"
QUICK_IMAGES = 1000
_CURVE_IMAGES = 2000  # of an evaluation while a run trains
_CURVE_POINTS = 20
_QUICK = 10  # a rehearsal trains this fraction of the epochs


@dataclass(frozen=True)
class Recipe:
    """The reproduction of one data set.

    Attributes:
        folders: folder of the configurations of each set of models, in the folder of all configurations.
        suite: evaluates the finished runs.
    """

    folders: Mapping[str, str]
    suite: Suite


def _tiny_imagenet() -> Suite:
    """Returns the suite for Tiny-ImageNet: the paper's ε, and a surrogate that learns these images."""
    suite, eps = SUITES["reproduce"], (0.03,)
    surrogate = Surrogate(
        model=suite.surrogate.model.model_copy(update={"hidden": (512,)}),
        training=Training(epochs=10, optimizer=Optimizer(name="Adam", lr=0.0005, weight_decay=1e-4)),
    )
    attacks = (FGSM(eps=eps, threats=("transfer",)), TorchLBFGS(), PGD(eps=eps, threats=("adaptive",), examples=500))
    return suite.model_copy(update={"name": "reproduce-tiny", "attacks": attacks, "surrogate": surrogate})


RECIPES = {
    "mnist": Recipe({"paper": "paper", "robust": "robust/mnist"}, SUITES["reproduce"]),
    "fashion_mnist": Recipe({"paper": "paper", "robust": "robust/fashion_mnist"}, SUITES["reproduce"]),
    "tiny_imagenet": Recipe({"paper": "tiny_imagenet"}, _tiny_imagenet()),
    # Small images, to try the command; nothing is published for them.
    "digits": Recipe({"paper": "paper", "robust": "robust/mnist"}, SUITES["reproduce"]),
}


@dataclass(frozen=True)
class Plan:
    """Everything that determines the results of a reproduction of one data set.

    Attributes:
        data: name of the data set.
        configs: folder of all configurations.
        out: folder of the results.
        seeds: number of seeds.
        quick: train a tenth of the epochs and evaluate few images, to try the command.
        gpu: train and evaluate on a GPU.
        models: "paper" for the authors' own settings, "robust" for networks trained with noise on the inputs.
        over: a setting whose values are compared.
        seeds_of: number of seeds of models that have another one, by name.
    """

    data: str
    configs: Path
    out: Path
    seeds: int
    quick: bool = False
    gpu: bool = False
    models: str = PAPER
    over: Sweep | None = None
    seeds_of: Mapping[str, int] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The folder of the models' configurations.

        Raises:
            ConfigError: the data set has no such models.
        """
        folders = RECIPES[self.data].folders
        if self.models not in folders:
            raise ConfigError(
                f"--models: {self.models!r} is not available for {self.data}; {hint(self.models, folders)}"
            )
        return self.configs / folders[self.models]

    @property
    def suite(self) -> Suite:
        """The suite that evaluates the finished runs."""
        suite = RECIPES[self.data].suite
        if not self.quick:
            return suite
        attacks = tuple(
            attack.model_copy(update={"examples": 200}) for attack in suite.attacks if attack.name != "fgsm"
        )
        fgsm = tuple(attack for attack in suite.attacks if attack.name == "fgsm")
        changes = {"name": f"{suite.name}-quick", "examples": QUICK_IMAGES, "attacks": (*fgsm, *attacks)}
        return suite.model_copy(update=changes)

    @property
    def curve_suite(self) -> Suite:
        """The suite while a run trains: on fewer images, without attacks that know the network."""
        attacks = tuple(a for a in self.suite.attacks if getattr(a, "threats", ()) == ("transfer",))
        examples = QUICK_IMAGES if self.quick else _CURVE_IMAGES
        return self.suite.model_copy(update={"name": "curve", "attacks": attacks, "examples": examples})

    def described(self) -> dict[str, Any]:
        """Returns the settings that must not change when a reproduction continues."""
        return {
            "data": self.data,
            "models": self.models,
            "over": self.over.described() if self.over else None,
            "quick": self.quick,
            "suite": self.suite.model_dump(mode="json"),
            "curve_suite": self.curve_suite.model_dump(mode="json"),
        }


@dataclass(frozen=True)
class PlannedRun:
    """One run of a reproduction.

    Attributes:
        model: name of its configuration file.
        config: its configuration.
        folder: its folder.
        value: the value of the setting that the reproduction varies, as text; "" if it varies none.
    """

    model: str
    config: Config
    folder: Path
    value: str = ""

    @property
    def cost(self) -> int:
        """Passes per training image, roughly."""
        estimator, training = self.config.estimator, self.config.training
        copies = max(per_site(estimator.copies), default=math.ceil(estimator.budget or 1))
        return training.epochs * (1 if estimator.name == "pathwise" else copies)


def check_data(names: list[str]) -> None:
    """Checks the names of data sets.

    Raises:
        ConfigError: one is unknown or repeated, or there is none.
    """
    if not names:
        raise ConfigError(f"DATASET: is missing; known are {', '.join(RECIPES)}")
    for number, name in enumerate(names):
        if name not in RECIPES:
            raise ConfigError(f"DATASET: {name!r} is unknown; {hint(name, RECIPES)}")
        if name in names[:number]:
            raise ConfigError(f"DATASET: {name!r} is given twice")


def planned_runs(plan: Plan) -> list[PlannedRun]:
    """Returns all runs of a reproduction, seed by seed, of each seed the longest run first.

    Models that a value of the setting makes the same are trained once, under the first name.

    Raises:
        ConfigError: there are no configurations, one is invalid, or `seeds_of` names none of them.
    """
    files = sorted(plan.folder.glob("*.yaml"))
    if not files:
        raise ConfigError(
            f"--configs: {plan.folder} holds no configurations; run this in a checkout of the repository, or name its "
            "folder configs by --configs"
        )
    names = [path.stem for path in files]
    for name in plan.seeds_of:
        if name not in names:
            raise ConfigError(f"--seeds-of: {name!r} is not one of the models; {hint(name, names)}")
    over = plan.over
    settings = [(label(value), [over.override(value)]) for value in over.values] if over else [("", [])]
    runs: list[PlannedRun] = []
    for path, (value, changes) in product(files, settings):
        for seed in range(plan.seeds_of.get(path.stem, plan.seeds)):
            try:
                run = _run(plan, path, seed, value, changes)
            except ConfigError as error:
                raise ConfigError(f"{path}: {error}") from None
            if all(_effective(run.config) != _effective(other.config) for other in runs):
                runs.append(run)
    return sorted(runs, key=lambda run: (run.config.seed, -run.cost))


def _effective(config: Config) -> Config:
    """Returns a configuration without the scale of a noise that it does not have."""
    if config.noise.law != "none":
        return config
    return config.model_copy(update={"noise": Noise(law="none", input=config.noise.input)})


def _run(plan: Plan, path: Path, seed: int, value: str, changes: Sequence[str]) -> PlannedRun:
    """Returns the run of a model, a value and a seed."""
    overrides = [f"data.name={plan.data}", f"seed={seed}", *changes]
    config = load_config(path, overrides)
    if plan.quick:
        config = load_config(path, [*overrides, f"training.epochs={max(2, -(-config.training.epochs // _QUICK))}"])
    every = max(1, config.training.epochs // _CURVE_POINTS)
    curve, at_end = (suite.model_dump(mode="json") for suite in (plan.curve_suite, plan.suite))
    robustness = {"every": every, "suite": curve, "split": "test", "at_end": at_end}
    execution = Execution(device="cuda" if plan.gpu else "cpu", threads=1, compile=config.execution.compile)
    changed = config.model_copy(update={"robustness": build(Robustness, robustness), "execution": execution})
    name = f"{path.stem}-{value}" if value else path.stem
    return PlannedRun(path.stem, changed, plan.out / "runs" / f"{name}-seed{seed}", value)
