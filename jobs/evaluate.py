"""Evaluates the robustness of runs: `glr-dist evaluate` as the entry point of a Ray job.

    ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- \
        python jobs/evaluate.py /shared/runs/digits-0 /shared/runs/digits-1 --suite paper [key=value ...]

Takes the arguments of `glr-dist evaluate` and spreads the work over the cluster (attacks and corruptions x runs x
blocks of images). Reports are written to the folders of the runs, which must be absolute in a Ray job. The exit code
is 0 after success, 2 after an error that one line explains, 130 if it is stopped; a stopped job continues when it is
submitted again.
"""

from __future__ import annotations

import sys

from glr_dist.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
