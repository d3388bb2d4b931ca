"""Registries of everything that a configuration chooses by name.

A built-in entry is one row, `name: "module:attribute"`. The attribute is imported on first use, so that the names are
known without torch. `add` enters an entry of your own, in every process that uses it:

    @LOSSES.add("margin")
    def margin(outputs, targets):
        ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Generic, TypeVar

from glr_dist.errors import ConfigError
from glr_dist.text import hint

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from glr_dist.data import Loader
    from glr_dist.losses import Loss
    from glr_dist.nn.models import ModelBuilder
    from glr_dist.noise import Noise
    from glr_dist.training.evaluator import EvaluatorBuilder

T = TypeVar("T")


class UnknownNameError(ConfigError, KeyError):
    """A registry does not have an entry of this name."""

    __str__ = Exception.__str__  # a KeyError would put the message in quotes


class Registry(Mapping[str, T], Generic[T]):
    """Entries by name, in the order in which they were added.

    Args:
        kind: what the entries are, in error messages.
        rows: the built-in entries as "module:attribute".
    """

    def __init__(self, kind: str, rows: Mapping[str, str]) -> None:
        self.kind = kind
        self._rows = dict(rows)
        self._added: dict[str, T] = {}

    def add(self, name: str) -> Callable[[T], T]:
        """Returns a decorator that registers its argument under `name`; a later entry of that name replaces it.

        Raises:
            ConfigError: a built-in entry has this name.
        """
        if name in self._rows:
            raise ConfigError(f"{self.kind}: '{name}' is built in; choose another name")

        def enter(entry: T) -> T:
            self._added[name] = entry
            return entry

        return enter

    def __getitem__(self, name: str) -> T:
        """Returns the entry of a name.

        Raises:
            UnknownNameError: suggests the nearest name, or lists the known ones.
        """
        if name in self._added:
            return self._added[name]
        if name not in self._rows:
            raise UnknownNameError(f"{self.kind}: {name!r} is unknown; {hint(name, self)}")
        module, _, attribute = self._rows[name].partition(":")
        entry: T = getattr(import_module(module), attribute)
        return entry

    def __contains__(self, name: object) -> bool:
        return name in self._rows or name in self._added

    def __iter__(self) -> Iterator[str]:
        return iter((*self._rows, *self._added))

    def __len__(self) -> int:
        return len(self._rows) + len(self._added)


# Models whose builders take arguments of their own (`ZooModel` of the configuration), beside the MLP of the paper.
ZOO = {
    "lenet5": "glr_dist.nn.convolutional:build_lenet5",
    "vgg8": "glr_dist.nn.convolutional:build_vgg8",
    "resnet8": "glr_dist.nn.convolutional:build_resnet8",
    "vit": "glr_dist.nn.vit:build_vit",
    "gru": "glr_dist.nn.gru:build_gru",
    "spiking_mlp": "glr_dist.nn.spiking:build_spiking_mlp",
    "spiking_cnn": "glr_dist.nn.spiking:build_spiking_cnn",
    "quantised_mlp": "glr_dist.nn.quantised:build_quantised_mlp",
    "mixture_of_experts": "glr_dist.nn.experts:build_mixture_of_experts",
    "vq_mlp": "glr_dist.nn.codebook:build_vq_mlp",
}

MODELS: Registry[ModelBuilder] = Registry("model", {"mlp": "glr_dist.nn.models:build_mlp", **ZOO})

ACTIVATIONS: Registry[Callable[[], nn.Module]] = Registry(
    "activation",
    {
        "sigmoid": "torch.nn:Sigmoid",
        "tanh": "torch.nn:Tanh",
        "relu": "torch.nn:ReLU",
        "threshold": "glr_dist.nn.activations:Heaviside",
        "sign": "glr_dist.nn.activations:Sign",
        "staircase": "glr_dist.nn.activations:Staircase",
    },
)

DATASETS: Registry[Loader] = Registry(
    "data set",
    {
        "digits": "glr_dist.data.builtin:digits",
        "mnist": "glr_dist.data.builtin:mnist",
        "fashion_mnist": "glr_dist.data.builtin:fashion_mnist",
        "kmnist": "glr_dist.data.builtin:kmnist",
        "cifar10": "glr_dist.data.builtin:cifar10",
        "cifar100": "glr_dist.data.builtin:cifar100",
        "svhn": "glr_dist.data.builtin:svhn",
        "tiny_imagenet": "glr_dist.data.images:tiny_imagenet",
        "image_folder": "glr_dist.data.images:image_folder",
        "arrays": "glr_dist.data.arrays:arrays",
        "table": "glr_dist.data.tables:table",
    },
)

LAWS: Registry[type[Noise]] = Registry(
    "noise law",
    {
        "gaussian": "glr_dist.noise:Gaussian",
        "laplace": "glr_dist.noise:Laplace",
        "logistic": "glr_dist.noise:Logistic",
        "gumbel": "glr_dist.noise:Gumbel",
    },
)

LOSSES: Registry[Loss] = Registry(
    "loss",
    {
        name: f"glr_dist.losses:{name}"
        for name in ("cross_entropy", "zero_one", "mse", "binary_cross_entropy", "hinge", "top5", "jaccard")
    },
)

# Beside the optimizers of torch.optim, which are known by the names of their classes.
OPTIMIZERS: Registry[type[Optimizer]] = Registry("optimizer", {})

# What a trainer evaluates by modules of later layers, by the section of the configuration that asks for it.
EVALUATORS: Registry[EvaluatorBuilder] = Registry(
    "evaluator", {"robustness": "glr_dist.robustness.while_training:WhileTraining"}
)
