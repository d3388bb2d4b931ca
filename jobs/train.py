"""Trains one configuration: what `glr-dist train` does, as the entry point of a Ray job.

    ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- \
        python jobs/train.py configs/digits.yaml training.epochs=2 --out /shared/runs/digits [key=value ...] [--resume]

Takes the arguments of `glr-dist train`, and its exit code is the job's: 0 done, 2 a mistake that one line explains,
130 stopped. In a Ray job, --out must be absolute.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from glr_dist.cli import main as glr_dist

# Ray sets it for the driver of a submitted job and for nothing else: RAY_ADDRESS may be set in any shell.
_IN_RAY_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the job; returns the exit code of `glr-dist train`, 2 for results that would be lost with the job."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if _IN_RAY_JOB in os.environ and not {"-h", "--help"} & set(arguments) and not _out(arguments).is_absolute():
        print(
            "train: --out: a Ray job runs in a temporary copy of its working directory; "
            "give an absolute folder that outlives it, as in --out /shared/runs/my-run",
            file=sys.stderr,
        )
        return 2
    return glr_dist(["train", *arguments])


def _out(arguments: Sequence[str]) -> Path:
    """The --out of the arguments, relative where there is none; all other mistakes are left to the library."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--out", type=Path, nargs="?", const=Path(), default=Path())
    out: Path = parser.parse_known_args(arguments)[0].out
    return out


if __name__ == "__main__":
    sys.exit(main())
