"""The certificates of a run: their fields, and how they follow from the counts. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import Field

from glr_dist import __version__
from glr_dist.config import Section
from glr_dist.errors import UserError
from glr_dist.robustness.certificates.bounds import certified_radius
from glr_dist.robustness.certificates.settings import AnyCertification, Certification
from glr_dist.robustness.certificates.verdict import Verdict, contradiction
from glr_dist.robustness.rate import Rate
from glr_dist.runs import CheckpointName


class ContradictionError(UserError):
    """An attack contradicts a certificate: a bug."""


class CertifiedRadius(Section):
    """Certified accuracy at one radius.

    Attributes:
        r: the L2 radius, in pixel values of [0, 1].
        rate: images whose prediction is right and certified within r.
    """

    r: float
    rate: Rate


class AttackedRadius(Section):
    """The certificate beside an attack, on the same images.

    Attributes:
        r: L2 radius of the attack.
        certified: certified accuracy at r.
        attacked: accuracy of the smoothed classifier under the attack.
        idle: attacks that had no gradient to follow; these images count as they are.
    """

    r: float
    certified: Rate
    attacked: Rate
    idle: int = 0


class ImageCertificate(Section):
    """The certificate of one image.

    Attributes:
        label: the true class.
        predicted: the smoothed prediction; None: abstention.
        successes: how often the chosen class came first in the n draws.
        radius: the certified L2 radius; 0 for an abstention.
    """

    label: int
    predicted: int | None
    successes: int
    radius: float

    def within(self, r: float) -> bool:
        """Returns whether the right prediction is certified at all images up to the distance r."""
        return self.predicted == self.label and self.radius >= r


class CertificateReport(Section):
    """All certificates of a run.

    Attributes:
        version: version of glr_dist.
        run: name of the run's folder.
        config: the run's config.
        checkpoint, epoch, params_sha256: the network.
        settings: the settings.
        scales: σ of the noise at each site, its mean where it differs between units.
        lipschitz: upper bound L of ‖diag(1/σ) W₁‖₂, or 1/σ for noise on the input; radius = Φ⁻¹(p) / L.
        clean: accuracy of the smoothed classifier; an abstention is an error.
        abstained: number of abstentions.
        average_radius: mean over images of the radius, 0 where the prediction is wrong.
        radii: certified accuracy by radius.
        attack: the certificate beside an attack, by radius.
        images: the certificate of each image.
    """

    version: str = __version__
    run: str
    config: dict[str, Any]
    checkpoint: CheckpointName = "newest"
    epoch: int
    params_sha256: str
    settings: Certification
    scales: dict[str, float]
    lipschitz: float = Field(ge=0)
    clean: Rate
    abstained: int
    average_radius: float
    radii: tuple[CertifiedRadius, ...]
    attack: tuple[AttackedRadius, ...]
    images: tuple[ImageCertificate, ...]

    @property
    def name(self) -> str:
        """The name of the results: `NAME-SPLIT`, or `NAME-SPLIT.best` for the best checkpoint."""
        return certificates_name(self.settings, self.checkpoint)

    def metrics(self) -> dict[str, float]:
        """Returns the results by their names on a tracking server, such as `certified/l2/r_0.5`."""
        found = {"clean": self.clean.accuracy, "average_radius": self.average_radius}
        found |= {f"r_{each.r:g}": each.rate.accuracy for each in self.radii}
        found |= {f"attacked_r_{each.r:g}": each.attacked.accuracy for each in self.attack}
        return {f"certified/{self.name.replace('-test', '')}/{name}": value for name, value in found.items()}


def certificates_name(settings: AnyCertification, checkpoint: CheckpointName) -> str:
    """Returns the name of the results on a checkpoint of a run."""
    return settings.report_name if checkpoint == "newest" else f"{settings.report_name}.{checkpoint}"


def report_of(settings: Certification, verdicts: Sequence[Verdict], lipschitz: float, **run: Any) -> CertificateReport:
    """Computes the certificates from the counts.

    Args:
        settings: the settings.
        verdicts: those of all images, in order.
        lipschitz: L, an upper bound of the noise's standard deviations per unit of distance.
        run: the fields of `CertificateReport` that describe the run.

    Raises:
        ContradictionError: an attack contradicts a certificate.
    """
    images = tuple(_certificate(settings, verdict, lipschitz) for verdict in verdicts)
    _check(settings, verdicts, images, lipschitz)
    right = [each for each in images if each.predicted == each.label]
    return CertificateReport(
        **run,
        settings=Certification.model_validate(settings.model_dump()),
        lipschitz=lipschitz,
        clean=Rate.of(len(right), len(images)),
        abstained=sum(each.predicted is None for each in images),
        average_radius=math.fsum(each.radius for each in right) / len(images),
        radii=tuple(CertifiedRadius(r=r, rate=_rate(images, r)) for r in sorted(settings.radii)),
        attack=tuple(_attacks(settings, verdicts, images)),
        images=images,
    )


def _certificate(settings: Certification, verdict: Verdict, lipschitz: float) -> ImageCertificate:
    radius = certified_radius(verdict.successes, settings.n, settings.alpha, lipschitz)
    predicted = verdict.predicted if radius > 0 else None
    return ImageCertificate(label=verdict.label, predicted=predicted, successes=verdict.successes, radius=radius)


def _rate(images: Sequence[ImageCertificate], r: float) -> Rate:
    return Rate.of(sum(each.within(r) for each in images), len(images))


def _check(
    settings: Certification, verdicts: Sequence[Verdict], images: Sequence[ImageCertificate], lipschitz: float
) -> None:
    for number, (verdict, image) in enumerate(zip(verdicts, images, strict=True)):
        for attacked in verdict.attacked:
            if (found := contradiction(verdict, attacked, settings.n, lipschitz, image.radius)) is not None:
                raise ContradictionError(
                    f"the certificate of {settings.split} image {number} is wrong: {found}; this is a bug, please "
                    "report it with the run's folder"
                )


def _attacks(
    settings: Certification, verdicts: Sequence[Verdict], images: Sequence[ImageCertificate]
) -> Iterator[AttackedRadius]:
    """Yields the certified and the attacked accuracy on the images that the attack got; the others are errors."""
    number = min(settings.attack.examples, len(verdicts))
    if not number:
        return
    for i, r in sorted(enumerate(settings.attack.eps), key=lambda each: each[1]):
        found = [verdict.attacked[i] if verdict.attacked else None for verdict in verdicts[:number]]
        kept = sum(a is not None and a.top == v.predicted for a, v in zip(found, verdicts, strict=False))
        yield AttackedRadius(
            r=r,
            certified=_rate(images[:number], r),
            attacked=Rate.of(kept, number),
            idle=sum(a is not None and a.distance == 0 for a in found),
        )
