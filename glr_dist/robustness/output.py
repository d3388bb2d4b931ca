"""Writes the files of a report: first the report and its page, then the pictures, which may fail."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from glr_dist.figures import draw
from glr_dist.files import write_atomically
from glr_dist.robustness.conditions import Condition
from glr_dist.robustness.measurement import Measurement
from glr_dist.robustness.page import markdown
from glr_dist.robustness.plots import eps_figure, severity_figure
from glr_dist.robustness.report import Report
from glr_dist.robustness.report_files import ReportFiles
from glr_dist.robustness.sheet import sheet_figure
from glr_dist.robustness.subject import Subject


def write_report(files: ReportFiles, report: Report) -> None:
    """Writes the report and its page, without pictures; removes the pictures of an older report."""
    for path in files.all():
        if path not in (files.report, files.page):
            path.unlink()
    write_atomically(files.report, (report.model_dump_json(indent=2) + "\n").encode())
    write_atomically(files.page, markdown(report).encode())


def write_pictures(
    files: ReportFiles,
    report: Report,
    subject: Subject,
    conditions: Sequence[Condition],
    measurements: Mapping[str, Sequence[Measurement]],
) -> None:
    """Draws the pictures and adds them to the page. A picture that cannot be drawn is a warning."""
    figures: dict[str, Callable[[], Any]] = {}
    if any(attack.eps and attack.rate for attack in report.attacks):
        figures["eps"] = lambda: eps_figure(report)
    if report.corruptions:
        figures["severity"] = lambda: severity_figure(report)
    figures["images"] = lambda: sheet_figure(conditions, measurements, subject.images)
    drawn = [files.picture(kind) for kind, figure in figures.items() if draw(files.picture(kind), figure)]
    page = markdown(report) + "".join(f"\n![]({path.name})\n" for path in drawn)
    try:
        write_atomically(files.page, page.encode())
    except OSError as error:
        print(f"warning: {files.page}: cannot be written ({error.strerror})", file=sys.stderr)
