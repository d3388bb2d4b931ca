"""Compares runs by their robustness reports: a table, the same as JSON, and a plot, with the paper's results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from glr_dist.config import Config, build
from glr_dist.errors import ConfigError
from glr_dist.figures import draw
from glr_dist.files import write_atomically
from glr_dist.robustness.comparison_plot import comparison_figure
from glr_dist.robustness.comparison_table import column_of, json_of, lines_of
from glr_dist.robustness.published import fgsm_eps
from glr_dist.robustness.report import Report
from glr_dist.robustness.report_files import ReportFiles, read_report, report_names
from glr_dist.runs import RunFolder, deciding
from glr_dist.text import one_line


def compare(folders: Sequence[Path], out: Path, eps: float | None = None, suite: str | None = None) -> str:
    """Compares the reports of runs; writes `compare.md`, `compare.json`, `compare.png` and `compare.pdf` to a folder.

    Args:
        folders: folders of runs that were evaluated with the same suite.
        out: folder of the results.
        eps: ε of the attacks to show; default: the paper's 0.13 if it was measured, else the largest.
        suite: name of the suite (its report on the test images), or of a report, `SUITE-SPLIT`. Default: the only
            report that all runs have.

    Returns:
        The table.

    Raises:
        ConfigError: a run was not evaluated, or with another suite, or not at this ε; or its report is damaged or
            belongs to another network.
        OSError: the folder cannot be written.
    """
    name = _report_name(folders, suite)
    reports = [_checked(folder, name) for folder in folders]
    for folder, report in zip(folders[1:], reports[1:], strict=True):
        _check_comparable(folders[0], reports[0], folder, report)
    eps = _eps(reports, eps)
    names = [report.run for report in reports]
    # Runs with the same folder name also get the name of the parent folder.
    titles = [
        f"{folder.absolute().parent.name}/{name}" if names.count(name) > 1 else name
        for folder, name in zip(folders, names, strict=True)
    ]
    columns = [column_of(title, report, eps) for title, report in zip(titles, reports, strict=True)]
    text = "\n".join(lines_of(columns, eps)) + "\n"
    write_atomically(out / "compare.md", text.encode())
    write_atomically(out / "compare.json", (json.dumps(json_of(columns, eps), indent=2) + "\n").encode())
    if draw(out / "compare.png", lambda: comparison_figure(columns, eps)):
        write_atomically(out / "compare.md", f"{text}\n![](compare.png)\n".encode())
    return text


def _report_name(folders: Sequence[Path], suite: str | None) -> str:
    """Returns the name of the report to compare.

    Raises:
        ConfigError: a run has no report, or not the given one, or there is a choice.
    """
    available = [report_names(folder) for folder in folders]
    for folder, names in zip(folders, available, strict=True):
        if not names:
            raise ConfigError(f"{folder}: was not evaluated; run first: glr-dist evaluate {folder}")
    shared = [name for name in available[0] if all(name in names for names in available)]
    if suite is None:
        if len(shared) == 1:
            return shared[0]
        if shared:
            raise ConfigError(f"--suite: the runs share several reports; choose one of {', '.join(shared)}")
        listed = "; ".join(f"{folder} has {', '.join(names)}" for folder, names in zip(folders, available, strict=True))
        raise ConfigError(f"--suite: the runs share no report ({listed}); evaluate them with the same suite")
    for name in (suite, f"{suite}-test"):
        if name in shared:
            return name
    for folder, names in zip(folders, available, strict=True):
        if suite not in names and f"{suite}-test" not in names:
            raise ConfigError(f"--suite: {folder} has no report of {suite!r}; it has {', '.join(names)}")
    raise ConfigError(f"--suite: the runs share no report of {suite!r}")


def _checked(folder: Path, name: str) -> Report:
    """Reads a report and checks that it describes the run's network as it is now.

    Raises:
        ConfigError: the report is damaged, or belongs to other settings or to another network.
    """
    report, run = read_report(folder, name), RunFolder(folder)
    path = ReportFiles(folder, name).report
    try:
        measured = deciding(build(Config, report.config))
    except ConfigError as error:
        raise ConfigError(f"{path}: its config is damaged ({one_line(error)}); evaluate the run again") from None
    for key, value in deciding(run.config()).items():
        if measured.get(key) != value:
            raise ConfigError(f"{path}: belongs to other settings ('{key}' differs); evaluate the run again")
    try:
        current = run.summary()["params_sha256" if report.checkpoint == "newest" else "best_params_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return report  # the run has not finished, so its report says after which epoch it was measured
    if report.params_sha256 != current:
        raise ConfigError(f"{path}: belongs to another network than the run's; evaluate the run again")
    return report


def _check_comparable(first_folder: Path, first: Report, folder: Path, report: Report) -> None:
    """Checks that two reports have the same suite and data.

    Raises:
        ConfigError: names the field that differs.
    """
    suite = first.suite.model_dump(mode="json")
    for key, value in report.suite.model_dump(mode="json").items():
        if value != suite[key]:
            raise ConfigError(f"{folder}: was evaluated with another suite than {first_folder}: '{key}' differs")
    for key in ("name", "split_seed", "validation", "test"):
        if (value := report.config["data"][key]) != (other := first.config["data"][key]):
            raise ConfigError(f"{folder}: has other data than {first_folder}: data.{key} is {value!r}, not {other!r}")


def _eps(reports: Sequence[Report], given: float | None) -> float | None:
    """Returns the ε to show, or None if no attack has one."""
    measured = sorted({a.eps for report in reports for a in report.attacks if a.eps is not None and a.norm == "linf"})
    if given is not None and given not in measured:
        known = ", ".join(f"{eps:g}" for eps in measured) or "none"
        raise ConfigError(f"--eps: {given:g} was not measured; measured values: {known}")
    published = fgsm_eps(reports[0].config)
    return given or (published if published in measured else max(measured, default=None))
