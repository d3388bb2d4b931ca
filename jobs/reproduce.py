"""Trains and evaluates all models of the paper: `glr-dist reproduce` as the entry point of a Ray job.

    ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- \
        python jobs/reproduce.py mnist fashion_mnist --out /shared/runs/reproduce [--seeds N] [--quick]

Takes the arguments of `glr-dist reproduce` and exits with its code: 0 after success, 2 after an error that one line
explains, 130 if it is stopped. In a Ray job, --out must be an absolute folder that all nodes share. A stopped job
continues when it is submitted again.
"""

from __future__ import annotations

import sys

from glr_dist.cli import main

if __name__ == "__main__":
    sys.exit(main(["reproduce", *sys.argv[1:]]))
