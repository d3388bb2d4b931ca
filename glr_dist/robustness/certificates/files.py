"""The files of a run's certificates: one set per name and split. Imports no torch."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pydantic import ValidationError

from glr_dist.errors import ConfigError
from glr_dist.robustness.certificates.linf.report import LinfReport
from glr_dist.robustness.certificates.report import CertificateReport
from glr_dist.robustness.certificates.settings import AnyCertification
from glr_dist.text import one_line, shortened

AnyReport = CertificateReport | LinfReport


class CertificateFiles:
    """The files of one set of certificates in the folder `certificates` of a run.

    Args:
        run: the run's folder.
        name: name of the set, `NAME-SPLIT` or `NAME-SPLIT.best`.

    Attributes:
        folder: the folder of all certificates of the run.
        report: all results, `NAME-SPLIT.json`.
        page: the tables, `NAME-SPLIT.md`.
        picture: the plot, `NAME-SPLIT.png`; a PDF is beside it.
        journal: the counts of an unfinished certification.
    """

    def __init__(self, run: Path, name: str) -> None:
        self.run, self.name = run, name
        self.folder = run / "certificates"
        self.report = self.folder / f"{name}.json"
        self.page = self.folder / f"{name}.md"
        self.picture = self.folder / f"{name}.png"
        self.journal = self.folder / f".{name}.jsonl"

    def all(self) -> list[Path]:
        """Returns the existing files."""
        return [p for p in (self.report, self.page, self.picture, self.picture.with_suffix(".pdf")) if p.is_file()]

    def check_replaceable(self, settings: AnyCertification) -> None:
        """Checks that new results replace nothing but older ones of the same settings.

        Raises:
            ConfigError: the existing results have other settings.
        """
        if not self.report.exists():
            return
        try:
            existing = _parsed(self.report.read_bytes()).settings.model_dump(mode="json")
        except (OSError, ValidationError):
            print(f"warning: {self.report}: is not a valid report and will be replaced", file=sys.stderr)
            return
        for key, value in settings.model_dump(mode="json").items():
            if (before := existing.get(key)) != value:
                before, now = (shortened(str(each), 40) for each in (before, value))
                raise ConfigError(
                    f"{self.report}: holds certificates of other settings ('{key}' is {before}, not {now}); give these "
                    "another name (name=NAME), or delete the file"
                )


def certificate_names(run: Path) -> list[str]:
    """Returns the names of a run's certificates in alphabetical order."""
    return sorted(path.stem for path in (run / "certificates").glob("*.json") if path.is_file())


def read_certificates(run: Path, name: str) -> AnyReport:
    """Reads what `glr-dist certify` wrote into a run's folder.

    Args:
        run: the run's folder.
        name: name of the results, `NAME-SPLIT`.

    Raises:
        ConfigError: the run does not have them, or they cannot be read.
    """
    path = CertificateFiles(run, name).report
    try:
        return _parsed(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); certify the run first") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = one_line(".".join(map(str, first["loc"])) or "JSON", 80)
        raise ConfigError(
            f"{path}: is damaged, or of another version of glr_dist ({where}); certify the run again"
        ) from None


def _parsed(content: bytes) -> AnyReport:
    """Reads a report; its settings name its norm.

    Raises:
        ValidationError: it is damaged.
    """
    try:
        norm = json.loads(content)["settings"]["norm"]
    except (ValueError, TypeError, KeyError):
        norm = "l2"
    kind: type[AnyReport] = LinfReport if norm == "linf" else CertificateReport
    return kind.model_validate_json(content)
