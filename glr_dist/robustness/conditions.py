"""The conditions of a suite: each is one thing that is done to the images. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from glr_dist.errors import ConfigError
from glr_dist.robustness.suite import Attack, Suite

# What attacks that have no threat model to choose need of the network.
_ALWAYS = {"square": "black_box", "random_sign": "control"}


@dataclass(frozen=True)
class Condition:
    """The clean images, an attack with its threat model and ε, or a corruption of one severity.

    Attributes:
        name: "clean", or of the attack or corruption.
        examples: the first so many images.
        threat: of an attack: what it knows of the network.
        eps: of an attack: its budget in `norm`; None for one that looks for the least.
        norm: of an attack: "linf" or "l2".
        attack: its section of the suite.
        severity: of a corruption.
    """

    name: str
    examples: int
    threat: str | None = None
    eps: float | None = None
    norm: str | None = None
    attack: Attack | None = None
    severity: int | None = None

    @property
    def label(self) -> str:
        """Its name in files and messages."""
        if self.attack is not None:
            name = f"{self.name}_l2" if self.norm == "l2" and self.eps is not None else self.name
            return "/".join([name, str(self.threat), *([f"eps_{self.eps:g}"] if self.eps is not None else [])])
        return self.name if self.severity is None else f"{self.name}/s{self.severity}"

    def parameters(self) -> dict[str, Any]:
        """The arguments of the attack's class."""
        assert self.attack is not None
        chosen = self.attack.model_dump(exclude={"name", "threats", "eps", "examples"})
        return chosen if self.eps is None else {**chosen, "eps": self.eps}


def conditions_of(suite: Suite, available: int) -> list[Condition]:
    """The conditions in the order of the suite, clean images first.

    Args:
        suite: the suite.
        available: how many images there are.

    Raises:
        ConfigError: two conditions have one label.
    """
    whole = min(suite.examples or available, available)
    found = [Condition("clean", whole)]
    for attack in suite.attacks:
        examples = min(attack.examples or whole, whole)
        for threat in getattr(attack, "threats", (_ALWAYS.get(attack.name),)):
            for eps in getattr(attack, "eps", (None,)):
                norm = getattr(attack, "norm", "l2" if attack.name == "lbfgs" else "linf")
                found.append(Condition(attack.name, examples, threat, eps, norm, attack))
    for name in suite.corruptions.names:
        examples = min(suite.corruptions.examples or whole, whole)
        found += [Condition(name, examples, severity=severity) for severity in suite.corruptions.severities]
    labels = [condition.label for condition in found]
    for label in labels:
        if labels.count(label) > 1:
            raise ConfigError(f"suite: two conditions are '{label}'; a report can hold one of them")
    return found
