"""The conditions of a suite: one class per kind of change to the images. Imports no torch.

`measure` holds the computation of each kind, `scoring` its place in the report.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, TypeVar

from glr_dist.errors import ConfigError
from glr_dist.robustness.suite import Attack, Suite

Network = Literal["surrogate", "baseline", "smoothed"]

# The threat models of attacks that leave no choice.
_FIXED_THREATS = {"square": "black_box", "random_sign": "control"}


class Condition(Protocol):
    """One change to the images, under which the accuracy is measured.

    Attributes:
        examples: number of images, the first ones of the suite.
        label: unique name in files and messages; it also keys the random streams.
        series: the label without the strength (ε, severity).
        needs: networks besides the run's own that the measurement uses.
    """

    @property
    def examples(self) -> int: ...
    @property
    def label(self) -> str: ...
    @property
    def series(self) -> str: ...
    @property
    def needs(self) -> frozenset[Network]: ...

    def shown(self, count: int) -> int:
        """Returns the index of the strength, of `count` in the series, that the contact sheet shows."""
        ...


@dataclass(frozen=True)
class Clean:
    """Unchanged images."""

    examples: int

    label: ClassVar[str] = "clean"
    series: ClassVar[str] = "clean"
    needs: ClassVar[frozenset[Network]] = frozenset()

    def shown(self, count: int) -> int:
        return 0


@dataclass(frozen=True)
class Attacked:
    """Images perturbed by an attack.

    Attributes:
        attack: the attack's section of the suite.
        examples: number of images.
        threat: the attacker's knowledge of the network.
        norm: "linf" or "l2".
        eps: ε, the budget in `norm`; None for an attack that minimises the perturbation.
    """

    attack: Attack
    examples: int
    threat: str
    norm: str
    eps: float | None

    @property
    def label(self) -> str:
        return self.series if self.eps is None else f"{self.series}/eps_{self.eps:g}"

    @property
    def series(self) -> str:
        name = f"{self.attack.name}_l2" if self.norm == "l2" and self.eps is not None else self.attack.name
        return f"{name}/{self.threat}"

    @property
    def needs(self) -> frozenset[Network]:
        networks: dict[str, Network] = {"transfer": "surrogate", "adaptive": "smoothed"}
        return frozenset({networks[self.threat]} if self.threat in networks else ())

    def shown(self, count: int) -> int:
        return count // 2

    def parameters(self) -> dict[str, Any]:
        """Returns the constructor arguments of the attack's class."""
        chosen = self.attack.model_dump(exclude={"name", "threats", "eps", "examples"})
        return chosen if self.eps is None else {**chosen, "eps": self.eps}


@dataclass(frozen=True)
class Corrupted:
    """Images under a corruption of one severity."""

    name: str
    severity: int
    examples: int

    needs: ClassVar[frozenset[Network]] = frozenset({"baseline"})

    @property
    def label(self) -> str:
        return f"{self.name}/s{self.severity}"

    @property
    def series(self) -> str:
        return self.name

    def shown(self, count: int) -> int:
        return count - 1


Kind = TypeVar("Kind", bound=Condition)


def of_kind(conditions: Iterable[Condition], kind: type[Kind]) -> list[Kind]:
    """Returns the conditions of one kind."""
    return [condition for condition in conditions if isinstance(condition, kind)]


def conditions_of(suite: Suite, available: int) -> list[Condition]:
    """Returns the conditions of a suite: clean images, then attacks, then corruptions.

    Args:
        suite: the suite.
        available: number of images in the split.

    Raises:
        ConfigError: two conditions have the same label.
    """
    whole = min(suite.examples or available, available)
    conditions: list[Condition] = [Clean(whole)]
    for attack in suite.attacks:
        examples = min(attack.examples or whole, whole)
        norm = getattr(attack, "norm", "l2" if attack.name.endswith("lbfgs") else "linf")
        for threat in getattr(attack, "threats", (_FIXED_THREATS.get(attack.name, ""),)):
            conditions += [Attacked(attack, examples, threat, norm, eps) for eps in getattr(attack, "eps", (None,))]
    for name in suite.corruptions.names:
        examples = min(suite.corruptions.examples or whole, whole)
        conditions += [Corrupted(name, severity, examples) for severity in suite.corruptions.severities]
    labels = [condition.label for condition in conditions]
    for label in labels:
        if labels.count(label) > 1:
            raise ConfigError(f"suite: '{label}' occurs twice; each condition may occur once in a report")
    return conditions


def networks_of(suite: Suite, conditions: Sequence[Condition]) -> frozenset[Network]:
    """Returns the networks besides the run's own that the conditions use."""
    needs = frozenset[Network]().union(*(condition.needs for condition in conditions))
    baseline = "baseline" in needs and suite.baseline == "surrogate"
    return needs | {"surrogate"} if baseline or suite.surrogate_right else needs
