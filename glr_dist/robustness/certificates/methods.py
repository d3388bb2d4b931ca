"""The two kinds of certificates: what each prepares, how it certifies a block, and how its results are shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from glr_dist.data import Split
from glr_dist.robustness.certificates.certify_block import Certified, certify_block
from glr_dist.robustness.certificates.files import AnyReport
from glr_dist.robustness.certificates.first_segment import lipschitz_bound
from glr_dist.robustness.certificates.linf.certify_block import LinfCertified, LinfVerdict, certify_linf_block
from glr_dist.robustness.certificates.linf.page import linf_figure, linf_markdown
from glr_dist.robustness.certificates.linf.report import LinfReport, linf_report_of
from glr_dist.robustness.certificates.page import markdown
from glr_dist.robustness.certificates.plot import radius_figure
from glr_dist.robustness.certificates.report import report_of
from glr_dist.robustness.certificates.settings import AnyCertification, Certification
from glr_dist.robustness.certificates.smoothing import Smoothing
from glr_dist.robustness.certificates.verdict import Verdict
from glr_dist.training.trained_run import TrainedRun

_TESTED = 32  # images at which the first segment is tested


class Shared(Protocol):
    """Everything that the blocks of a certification share."""

    images: Split

    @property
    def device(self) -> torch.device:
        """The network's device."""
        ...

    def copied(self) -> Shared:
        """Returns a copy with its own networks for another thread."""
        ...


class Method(Protocol):
    """One kind of certificates of one run.

    Attributes:
        shared: what its blocks share.
        fingerprint: JSON value of what determines the verdicts besides the run and the settings.
    """

    shared: Any
    fingerprint: Any

    def block(self, shared: Any, number: int) -> Sequence[Any]:
        """Returns the verdicts of a block of images; a function of a module."""
        ...

    def verdict(self, entry: Sequence[Any]) -> Any:
        """Returns the verdict of an entry of a journal."""
        ...

    def report(self, verdicts: Sequence[Any], **run: Any) -> AnyReport:
        """Combines the verdicts of all images."""
        ...


class Smoothed:
    """L2 certificates by randomised smoothing."""

    block = staticmethod(certify_block)

    def __init__(self, run: TrainedRun, images: Split, settings: Certification) -> None:
        x = images.batch(slice(0, _TESTED))[0]
        smoothing = Smoothing.of(run.net, settings.input_noise, settings.passes, x)
        self.lipschitz = lipschitz_bound(run.net, x) if settings.input_noise is None else 1 / settings.input_noise
        self.shared = Certified(smoothing, images, settings)
        self.fingerprint = smoothing.tile
        self.scales = {name: s.double().mean().item() for name, s in run.net.scales().items()} if run.net.noise else {}

    def verdict(self, entry: Sequence[Any]) -> Verdict:
        return Verdict.of(*entry)

    def report(self, verdicts: Sequence[Verdict], **run: Any) -> AnyReport:
        return report_of(self.shared.settings, verdicts, self.lipschitz, scales=self.scales, **run)


class Bounded:
    """L∞ certificates by intervals and programs."""

    block = staticmethod(certify_linf_block)
    fingerprint = None

    def __init__(self, run: TrainedRun, images: Split, settings: Any) -> None:
        self.shared = LinfCertified.of(run.net, images, settings)

    def verdict(self, entry: Sequence[Any]) -> LinfVerdict:
        return LinfVerdict.of(*entry)

    def report(self, verdicts: Sequence[LinfVerdict], **run: Any) -> AnyReport:
        return linf_report_of(self.shared.settings, verdicts, **run)


def method_of(run: TrainedRun, images: Split, settings: AnyCertification) -> Method:
    """Prepares a run for its certificates.

    Raises:
        SiteError: the network cannot be certified; names the module.
    """
    if isinstance(settings, Certification):
        return Smoothed(run, images, settings)
    return Bounded(run, images, settings)


def page_of(report: AnyReport) -> str:
    """Returns the results as a Markdown page."""
    return linf_markdown(report) if isinstance(report, LinfReport) else markdown(report)


def figure_of_report(report: AnyReport) -> Any:
    """Returns the plot of the results."""
    return linf_figure(report) if isinstance(report, LinfReport) else radius_figure(report)
