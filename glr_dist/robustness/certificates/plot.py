"""Plot of certified accuracy against the radius."""

from __future__ import annotations

from typing import Any

from glr_dist.figures import figure_of
from glr_dist.robustness.certificates.report import CertificateReport
from glr_dist.robustness.plots import intervals


def radius_figure(report: CertificateReport) -> Any:
    """Returns a figure of certified accuracy against the L2 radius, and of the accuracy under attack."""
    figure = figure_of(7, 4.5)
    axes = figure.subplots()
    total = len(report.images)
    finite = [min(each.radius, 1e6) for each in report.images if each.predicted == each.label]
    radii = sorted(finite)
    accuracy = [100 * (len(radii) - i) / total for i in range(len(radii))]  # right up to each radius
    axes.step([0, *radii], [100 * len(radii) / total, *accuracy], where="pre", color="#0072B2", label="certified")
    points = {"color": "#0072B2", "linestyle": "none", "marker": "o"}
    axes.errorbar([each.r for each in report.radii], **intervals([each.rate for each in report.radii]), **points)
    if report.attack:
        look = {"color": "#D55E00", "linestyle": "--", "marker": "s", "label": "under L2 PGD (some of the images)"}
        axes.errorbar(
            [each.r for each in report.attack], **intervals([each.attacked for each in report.attack]), **look
        )
    axes.set(xlabel="L2 radius (pixel values in [0, 1])", ylabel="accuracy, %", ylim=(-2, 102))
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.suptitle(f"{report.run}: certified accuracy")
    return figure
