"""`glr-dist certify`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from glr_dist.cli.arguments import whole
from glr_dist.cli.results import check_runs

HELP = "prove that no small change of an image changes the prediction"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    command.add_argument("words", metavar="RUN_DIR", nargs="+", help="runs, and key=value settings, e.g. examples=500")
    command.add_argument(
        "--checkpoint",
        choices=("newest", "best"),
        default="newest",
        help="checkpoint of each run; best: highest validation accuracy (default: newest)",
    )
    command.add_argument("--device", metavar="D", help="auto, cpu or cuda[:N] instead of the device of each run")
    command.add_argument(
        "--actors",
        metavar="N",
        type=whole,
        help="Ray actors that share the work; 0: none (default: as many as fit if RAY_ADDRESS is set, else 0)",
    )


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from glr_dist.robustness.certificates.settings import load_certification

    overrides = [word for word in options.words if "=" in word and not Path(word).is_dir()]
    folders = [Path(word) for word in options.words if word not in overrides]
    runs = list({folder.resolve(): folder for folder in folders}.values())  # without repetitions
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
