"""`glr-dist certify`."""

from __future__ import annotations

import argparse
import sys

from glr_dist.cli.arguments import add_runs, runs_of
from glr_dist.cli.results import check_runs

HELP = "prove that no small change of an image changes the prediction"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_runs(command, "key=value settings, e.g. examples=500")


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from glr_dist.robustness.certificates.settings import load_certification

    runs, overrides = runs_of(options.words)
    settings = load_certification(overrides)
    check_runs(runs)
    from glr_dist.robustness.certificates.certify import certify
    from glr_dist.robustness.certificates.files import CertificateFiles
    from glr_dist.robustness.certificates.methods import page_of
    from glr_dist.tracking import send_report

    for folder in runs:
        try:
            report = certify(folder, settings, device=options.device, actors=options.actors, which=options.checkpoint)
        except KeyboardInterrupt:
            print("stopped; the same command continues", file=sys.stderr)
            return 130
        send_report(folder)
        print(page_of(report))
        print(f"results  {CertificateFiles(folder.absolute(), report.name).page}")
    return 0
