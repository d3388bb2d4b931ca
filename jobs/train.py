"""Trains one configuration: `glr-dist train` as the entry point of a Ray job.

    ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- \
        python jobs/train.py configs/digits.yaml training.epochs=2 --out /shared/runs/digits [key=value ...] [--resume]

Takes the arguments of `glr-dist train` and exits with its code: 0 after success, 2 after an error that one line
explains, 130 if it is stopped. In a Ray job, --out must be absolute.
"""

from __future__ import annotations

import sys

from glr_dist.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
