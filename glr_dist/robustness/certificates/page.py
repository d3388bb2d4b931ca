"""The certificates of a run as a Markdown page that is readable as plain text. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator

from glr_dist.robustness.certificates.report import CertificateReport
from glr_dist.robustness.page import described, table


def markdown(report: CertificateReport) -> str:
    """Returns the certificates as a page of tables."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: CertificateReport) -> Iterator[str]:
    settings = report.settings
    yield f"# Certified robustness of {report.run} ({report.name})"
    yield ""
    chosen = ", the best on validation images" if report.checkpoint == "best" else ""
    yield f"{described(report.config)}; after epoch {report.epoch}{chosen}."
    yield ""
    sites = ", ".join(f"{scale:g} at '{site}'" for site, scale in report.scales.items())
    if settings.input_noise is not None:
        yield f"Smoothed by Gaussian noise of σ = {settings.input_noise:g} on the input."
        yield f"The classifier has its own noise too: {sites}." if sites else "The classifier has no other noise."
        slope = f"σ Φ⁻¹(p), σ = {settings.input_noise:g}"
    else:
        yield f"Smoothed by the network's own Gaussian noise at its sites: {sites}."
        slope = f"Φ⁻¹(p) / L, with ‖diag(1/σ) W₁‖₂ <= L = {report.lipschitz:.6g}"
    yield f"Radius {slope}; p is a lower bound (Clopper-Pearson) of the probability of the class."
    if settings.passes > 1:
        if settings.input_noise is not None:
            of, own = "on the input", "its own noise"
        else:
            of, own = f"at '{next(iter(report.scales))}'", "new noise behind it"
        yield f"Each draw of the noise {of} has {settings.passes:,} passes, each with {own}."
        yield "The mean of their scores gives the class of the draw."
    yield f"{settings.n0:,} draws choose the class, {settings.n:,} others bound p; α = {settings.alpha:g} per image."
    yield ""
    yield "The prediction is the class that most draws give. Certified at r: it is right, and no image at an L2"
    yield "distance of at most r (pixel values in [0, 1]) changes it, whatever the attack. Accuracies are in %, with"
    yield "95 % intervals (Wilson); abstentions count as errors."
    yield ""
    yield f"Clean: {report.clean} on {report.clean.examples:,} {settings.split} images, {report.abstained:,} abstained."
    yield f"Average certified radius: {report.average_radius:.4f}."
    yield ""
    rows = [[f"{each.r:g}", str(each.rate)] for each in report.radii]
    yield from table(["L2 radius", "certified accuracy"], rows)
    if report.attack:
        examples = report.attack[0].attacked.examples
        yield ""
        yield f"L2 PGD of {settings.attack.steps} steps against the same smoothed classifier, on the first {examples:,}"
        yield "images: the true robust accuracy lies between the two columns."
        yield ""
        rows = [[f"{each.r:g}", str(each.certified), str(each.attacked), _note(each.idle)] for each in report.attack]
        yield from table(["L2 radius", "certified", "under attack", "note"], rows)


def _note(idle: int) -> str:
    return f"{idle} without a gradient" if idle else ""
