"""Plots of a report: every curve starts at the clean accuracy, can be told apart in grey, and nothing is covered."""

from __future__ import annotations

import pytest

from glr_dist.robustness.conditions import Attacked, Corrupted, conditions_of
from glr_dist.robustness.measurement import Measurement
from glr_dist.robustness.plots import eps_figure, severity_figure
from glr_dist.robustness.sheet import _row_title
from glr_dist.robustness.suite import SUITES

from .reports import report_of_blocks


@pytest.fixture(scope="module")
def full():
    """A report of the suite `full` in which the white-box attacks cannot test the network."""
    blocks = {}
    for condition in conditions_of(SUITES["full"], 40):
        n = condition.examples
        correct = 36
        if isinstance(condition, Attacked):
            correct = 20 - int(5 * (condition.eps or 0))
        elif isinstance(condition, Corrupted):
            correct = 30 - condition.severity
        bits = "1" * correct + "0" * (n - correct)
        blocks[condition.label] = [Measurement(bits, "1" * n, baseline="10" * (n // 2))]
        if isinstance(condition, Attacked) and condition.threat == "white_box":
            blocks[condition.label] = [Measurement(reason="no gradient")]
    return report_of_blocks(SUITES["full"], 40, blocks)


def curves(axes):
    """Returns the curves of a panel by label: the line of each error bar."""
    return {container.get_label(): container.lines[0] for container in axes.containers}


def test_each_attack_starts_at_the_clean_accuracy(full):
    for axes in eps_figure(full).axes:
        for line in curves(axes).values():
            assert (line.get_xdata()[0], line.get_ydata()[0]) == (0, 90)
            assert len(line.get_xdata()) in (4, 5)


@pytest.mark.slow
def test_each_corruption_starts_at_the_clean_accuracy(full):
    panels = [axes for axes in severity_figure(full).axes if axes.containers]
    assert len(panels) == 15
    for axes in panels:
        line = curves(axes)["run"]
        assert (line.get_xdata()[0], line.get_ydata()[0]) == (0, 90)


@pytest.mark.slow
def test_curves_differ_in_line_style_or_marker(full):
    for axes in [*eps_figure(full).axes, severity_figure(full).axes[0]]:
        looks = [(str(line._dash_pattern), line.get_marker(), line.get_linewidth()) for line in curves(axes).values()]
        assert len(looks) > 1
        assert len(set(looks)) == len(looks)


@pytest.mark.slow
def test_the_legends_cover_nothing_and_list_what_cannot_be_tested(full):
    figure = eps_figure(full)
    figure.canvas.draw()
    linf, l2 = figure.axes
    for axes in (linf, l2):
        labels = [text.get_text() for text in axes.get_legend().get_texts()]
        refused = [label for label in labels if "not testable" in label]
        assert labels[-len(refused) :] == refused
        assert "pgd, white box: not testable" in refused
        assert "robust accuracy" in labels
        legend = axes.get_legend().get_window_extent()
        assert not any(legend.overlaps(other.get_window_extent()) for other in (linf, l2))
        assert figure.bbox.contains(legend.x0, legend.y0)
        assert figure.bbox.contains(legend.x1, legend.y1)


@pytest.mark.slow
def test_the_legend_of_the_corruptions_covers_no_panel(full):
    figure = severity_figure(full)
    figure.canvas.draw()
    legend = figure.legends[0].get_window_extent()
    for axes in figure.axes:
        assert not legend.overlaps(axes.get_tightbbox())


@pytest.mark.parametrize(
    ("label", "title"),
    [
        ("clean", "clean"),
        ("pgd_l2/white_box/eps_0.5", "pgd l2\nwhite box\nε = 0.5"),
        ("lbfgs/transfer", "lbfgs\ntransfer"),
        ("glass_blur/s3", "glass blur\nseverity 3"),
    ],
)
def test_rows_of_the_contact_sheet_name_the_strength(label, title):
    assert _row_title(label) == title
