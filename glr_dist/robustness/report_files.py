"""The files of a run's robustness reports: one set per suite and split. Imports no torch."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pydantic import ValidationError

from glr_dist.errors import ConfigError
from glr_dist.robustness.report import Report
from glr_dist.robustness.suite import Suite
from glr_dist.text import one_line


class ReportFiles:
    """The files of one report in the folder `robustness` of a run.

    Args:
        run: the run's folder.
        name: name of the report, `SUITE-SPLIT` or `SUITE-SPLIT.best`.

    Attributes:
        folder: the folder of all reports of the run.
        report: the report, `SUITE-SPLIT.json`.
        page: the report as a page, `SUITE-SPLIT.md`.
        ledger: the measurements of an unfinished evaluation.
    """

    def __init__(self, run: Path, name: str) -> None:
        self.run, self.name = run, name
        self.folder = run / "robustness"
        self.report = self.folder / f"{name}.json"
        self.page = self.folder / f"{name}.md"
        self.ledger = self.folder / f".{name}.jsonl"

    def picture(self, kind: str) -> Path:
        """Returns the path of a picture as PNG."""
        return self.folder / f"{self.name}-{kind}.png"

    def all(self) -> list[Path]:
        """Returns the existing files of this report: the report, its page and its pictures."""
        pictures = sorted(self.folder.glob(f"{self.name}-*.png")) + sorted(self.folder.glob(f"{self.name}-*.pdf"))
        return [path for path in (self.report, self.page, *pictures) if path.is_file()]

    def check_replaceable(self, suite: Suite) -> None:
        """Checks that writing a report of this suite replaces nothing but an older report of the same suite.

        Raises:
            ConfigError: the existing report was measured with another suite of the same name, or is not a file.
        """
        for path in (self.report, self.page):
            if path.exists() and not path.is_file():
                raise ConfigError(f"{path}: is not a file; move it away")
        if not self.report.exists():
            return
        try:
            existing = Report.model_validate_json(self.report.read_bytes()).suite.model_dump(mode="json")
        except (OSError, ValidationError):
            print(f"warning: {self.report}: is not a valid report and will be replaced", file=sys.stderr)
            return
        for key, value in suite.model_dump(mode="json").items():
            if existing[key] != value:
                difference = f"'{key}' is {_short(existing[key])}, not {_short(value)}"
                advice = "give this suite another name (name=NAME), or delete the report"
                raise ConfigError(f"{self.report}: holds another suite '{suite.name}' ({difference}); {advice}")


def report_names(run: Path) -> list[str]:
    """Returns the names of a run's reports in alphabetical order."""
    return sorted(path.stem for path in (run / "robustness").glob("*.json") if path.is_file())


def read_report(run: Path, name: str) -> Report:
    """Reads a report that `glr-dist evaluate` wrote into a run's folder.

    Args:
        run: the run's folder.
        name: name of the report, `SUITE-SPLIT`.

    Raises:
        ConfigError: the run has no such report, or it cannot be read.
    """
    path = ReportFiles(run, name).report
    try:
        report = Report.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); evaluate the run first") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = one_line(".".join(map(str, first["loc"])) or "JSON", 80)
        message = one_line(first["msg"].lower(), 120)
        reason = f"is damaged, or of another version of glr_dist ({where}: {message})"
        raise ConfigError(f"{path}: {reason}; evaluate the run again") from None
    if report.name != name:
        raise ConfigError(f"{path}: holds the report '{report.name}'; rename the file, or evaluate the run again")
    return report


def _short(value: object, limit: int = 40) -> str:
    text = json.dumps(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
