"""Settings of `glr-dist certify`. Imports neither torch nor Ray."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from glr_dist.config import Count, Positive, Section, build, overridden
from glr_dist.errors import ConfigError
from glr_dist.robustness.certificates.linf.settings import LinfCertification
from glr_dist.robustness.suite import SuiteName
from glr_dist.text import shown


class CheckAttack(Section):
    """The attack that checks the certificates: L2 PGD on the smoothed classifier, by likelihood ratio gradients."""

    examples: int = Field(100, ge=0, description="attack the first N images only; 0: no attack")
    eps: tuple[Positive, ...] = Field((0.25, 0.5, 0.75), description="L2 radii of the attack")
    steps: Count = 20
    step_size: Positive = Field(0.15, description="in units of ε")
    draws: Annotated[int, Field(ge=2, le=10**9)] = Field(1000, description="draws per gradient")


class Certification(Section):
    """Everything besides the run that determines its certificates.

    The defaults are those of Cohen, Rosenfeld, Kolter (ICML 2019).
    """

    norm: Literal["l2"] = "l2"
    name: SuiteName = Field("l2", description="name of the results, NAME-SPLIT")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of all noise")
    split: Literal["test", "validation"] = "test"
    examples: Count | None = Field(None, description="certify the first N images of the split; default: all")
    input_noise: Positive | None = Field(
        None, description="σ of Gaussian noise on the input (pixel values in [0, 1]); default: the first site's noise"
    )
    passes: Count = Field(
        1, description="passes with the network's own noise for each draw; their mean scores give its class"
    )
    n0: Count = Field(100, description="draws that choose the class")
    n: Count = Field(100_000, description="draws that bound its probability")
    alpha: float = Field(0.001, gt=0, le=0.5, description="probability that the certificate of an image is wrong")
    radii: tuple[Positive, ...] = Field((0.25, 0.5, 0.75, 1.0), min_length=1, description="L2 radii of the report")
    attack: CheckAttack = CheckAttack()
    block: Count = Field(10, description="images per work item")

    @model_validator(mode="after")
    def _distinct(self) -> Certification:
        for field, values in (("radii", self.radii), ("attack.eps", self.attack.eps)):
            if len(set(values)) < len(values):
                raise ConfigError(f"{field}: {list(values)} is not allowed: each radius may occur once")
        return self

    @property
    def report_name(self) -> str:
        """The name of the results, `NAME-SPLIT`."""
        return f"{self.name}-{self.split}"


AnyCertification = Certification | LinfCertification
_KINDS: dict[Any, type[AnyCertification]] = {"l2": Certification, "linf": LinfCertification}


def load_certification(overrides: Sequence[str] = ()) -> AnyCertification:
    """Returns the default settings with `key=value` overrides; `norm=linf` chooses L∞ certificates.

    Raises:
        ConfigError: a field is unknown or its value is not allowed.
    """
    norm = overridden({"norm": "l2"}, [each for each in overrides if each.startswith("norm=")])["norm"]
    kind = kind_of(norm, [each.partition("=")[0].partition(".")[0] for each in overrides])
    return build(kind, overridden(kind().model_dump(mode="json"), overrides))


def kind_of(norm: Any, fields: Iterable[str], prefix: str = "") -> type[AnyCertification]:
    """Returns the settings of the certificates in a norm.

    Args:
        norm: "l2" or "linf".
        fields: the settings that are given.
        prefix: of the fields in messages.

    Raises:
        ConfigError: the norm is unknown, or a setting belongs to the other one.
    """
    if norm not in _KINDS:
        raise ConfigError(f"{prefix}norm: {shown(norm)} is not allowed: 'l2' or 'linf'")
    for field in fields:
        if field not in _KINDS[norm].model_fields and any(field in kind.model_fields for kind in _KINDS.values()):
            raise ConfigError(f"{prefix}{field}: has no effect on certificates in the norm {norm}; leave it out")
    return _KINDS[norm]
