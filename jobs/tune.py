"""Searches for good settings: `glr-dist tune` as the entry point of a Ray job.

    ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- \
        python jobs/tune.py configs/tune/mnist_noise.yaml --out /shared/runs/search [key=value ...] [--resume]

Takes the arguments of `glr-dist tune` and exits with its code: 0 after success, 2 after an error that one line
explains, 130 if it is stopped. In a Ray job, --out must be an absolute folder that all nodes share.
"""

from __future__ import annotations

import sys

from glr_dist.cli import main

if __name__ == "__main__":
    sys.exit(main(["tune", *sys.argv[1:]]))
