"""Trains several configurations with several seeds and tabulates the results. Finished runs are not repeated.

    python jobs/replicate.py configs/mnist/*.yaml --seeds 0 1 2 --out runs/mnist [key=value ...]

Writes each run to OUT/NAME-seedN/ and the table to OUT/table.json, and prints the table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from glr_dist.config import load_config
from glr_dist.errors import UserError
from glr_dist.files import write_atomically
from glr_dist.tracking import tracked
from glr_dist.training.train import trainer_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the job; returns the exit code, 2 after an error that one line explains."""
    parser = argparse.ArgumentParser(description="Train configurations with several seeds and tabulate the results.")
    parser.add_argument("configs", metavar="CONFIG.yaml", nargs="+", help="configurations, and key=value overrides")
    parser.add_argument("--seeds", metavar="N", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", metavar="DIR", type=Path, required=True)
    options = parser.parse_intermixed_args(arguments)
    paths = [Path(given) for given in options.configs if "=" not in given]
    overrides = [given for given in options.configs if "=" in given]
    out = options.out.absolute()
    try:
        stems = [path.stem for path in paths]  # two files of one name in two folders take the folder's name too
        names = [f"{p.parent.name}-{p.stem}" if stems.count(p.stem) > 1 else p.stem for p in paths]
        runs = [
            (name, seed, load_config(path, [*overrides, f"seed={seed}"]))
            for name, path in zip(names, paths, strict=True)
            for seed in options.seeds
        ]
        table = []
        for name, seed, config in runs:
            print(f"== {name}, seed {seed}", flush=True)
            folder = out / f"{name}-seed{seed}"
            trainer = trainer_of(config, folder, resume=True)
            with tracked(config, folder):
                table.append({"name": name, **trainer.run()})
            write_atomically(out / "table.json", (json.dumps(table, indent=2) + "\n").encode())
    except (UserError, FloatingPointError) as error:
        print(f"replicate: {error}", file=sys.stderr)
        return 2
    print(f"{'configuration':<16}{'seed':>5}{'test':>9}{'validation':>12}{'loss':>9}{'seconds':>9}")
    for row in table:
        print(
            f"{row['name']:<16}{row['seed']:>5}{row['test_accuracy']:>9.4f}{row['validation_accuracy']:>12.4f}"
            f"{row['train_loss']:>9.4f}{row['seconds']:>9.0f}"
        )
    for name in dict.fromkeys(row["name"] for row in table):
        tests = [row["test_accuracy"] for row in table if row["name"] == name]
        print(f"{name}: test accuracy mean {statistics.fmean(tests):.4f}, minimum {min(tests):.4f}, {len(tests)} seeds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
