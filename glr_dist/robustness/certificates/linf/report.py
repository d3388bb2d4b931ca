"""The L∞ certificates of a run: their fields, and how they follow from the verdicts. Imports no torch at the top."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from glr_dist import __version__
from glr_dist.config import Section
from glr_dist.robustness.certificates.linf.settings import LinfCertification
from glr_dist.robustness.certificates.report import ContradictionError, certificates_name
from glr_dist.robustness.rate import Rate
from glr_dist.runs import CheckpointName

if TYPE_CHECKING:
    from glr_dist.robustness.certificates.linf.certify_block import LinfVerdict


class CertifiedEps(Section):
    """Certified accuracy at one ε.

    Attributes:
        eps: the L∞ radius.
        certified: images whose prediction is right and proven not to change within ε.
        by_intervals: those of them that intervals prove.
        attacked: accuracy under all attacks, counterexamples of programs included.
    """

    eps: float
    certified: Rate
    by_intervals: Rate
    attacked: Rate


class LinfReport(Section):
    """All L∞ certificates of a run.

    Attributes:
        version: version of glr_dist.
        run: name of the run's folder.
        config: the run's config.
        checkpoint, epoch, params_sha256: the network.
        settings: the settings.
        clean: accuracy without noise.
        radii: certified and attacked accuracy by ε.
        images: for each image its label, its prediction, and for each ε the proof and the breach.
    """

    version: str = __version__
    run: str
    config: dict[str, Any]
    checkpoint: CheckpointName = "newest"
    epoch: int
    params_sha256: str
    settings: LinfCertification
    clean: Rate
    radii: tuple[CertifiedEps, ...]
    images: tuple[tuple[int, int, tuple[tuple[str, str], ...]], ...]

    @property
    def name(self) -> str:
        """The name of the results: `NAME-SPLIT`, or `NAME-SPLIT.best` for the best checkpoint."""
        return certificates_name(self.settings, self.checkpoint)

    def metrics(self) -> dict[str, float]:
        """Returns the results by their names on a tracking server, such as `certified/linf/eps_0.02`."""
        found = {"clean": self.clean.accuracy}
        for each in self.radii:
            found[f"eps_{each.eps:g}"] = each.certified.accuracy
            found[f"attacked_eps_{each.eps:g}"] = each.attacked.accuracy
        return {f"certified/{self.name.replace('-test', '')}/{name}": value for name, value in found.items()}


def linf_report_of(settings: LinfCertification, verdicts: Sequence[LinfVerdict], **run: Any) -> LinfReport:
    """Combines the verdicts.

    Args:
        settings: the settings.
        verdicts: those of all images, in order.
        run: the fields of `LinfReport` that describe the run.

    Raises:
        ContradictionError: an attack breaks what is proven.
    """
    total = len(verdicts)
    radii = []
    for i, eps in sorted(enumerate(settings.eps), key=lambda each: each[1]):
        decisions = [verdict.decisions[i] if verdict.decisions else None for verdict in verdicts]
        for number, each in enumerate(decisions):
            if each is not None and each.proof and each.breach:
                raise ContradictionError(
                    f"the certificate of {settings.split} image {number} is wrong: its prediction is proven within "
                    f"ε = {eps:g} and changed by an attack; this is a bug, please report it with the run's folder"
                )
        known = [each for each in decisions if each is not None]
        radii.append(
            CertifiedEps(
                eps=eps,
                certified=Rate.of(sum(bool(each.proof) for each in known), total),
                by_intervals=Rate.of(sum(each.proof == "interval" for each in known), total),
                attacked=Rate.of(sum(not each.breach for each in known), total),
            )
        )
    return LinfReport(
        **run,
        settings=LinfCertification.model_validate(settings.model_dump()),
        clean=Rate.of(sum(verdict.label == verdict.predicted for verdict in verdicts), total),
        radii=tuple(radii),
        images=tuple((v.label, v.predicted, tuple(tuple(each) for each in v.decisions)) for v in verdicts),
    )
