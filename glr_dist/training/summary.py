"""The summary of a finished run."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from glr_dist.config import Config
from glr_dist.training.best import best_record


def summary_of(
    config: Config,
    step: int,
    params_digest: str,
    history: Sequence[dict[str, Any]],
    *,
    test: Mapping[str, float],
    best_digest: str | None,
) -> dict[str, Any]:
    """Returns the figures of a finished run, by name.

    Args:
        config: the run's configuration.
        step: number of steps that were trained.
        params_digest: digest of the network that the run keeps.
        history: the metrics of all epochs, oldest first.
        test: scores of the noise-free network on the test set.
        best_digest: digest of the parameters after the best epoch; None if its checkpoint was not kept.
    """
    last = history[-1]
    return {
        **{f"test_{name}": value for name, value in test.items()},
        **{f"validation_{name}": last[f"validation_{name}"] for name in test if name != "loss"},
        "best_epoch": best_record(history)["epoch"],
        "train_loss": last["train_loss"],
        "epochs": last["epoch"],
        "steps": step,
        "seconds": round(last["seconds"], 3),
        "forward_passes": last["forward_passes"],
        **_actors(history),
        "estimator": config.estimator.name,
        **({"compile": config.execution.compile} if config.execution.compile != "none" else {}),
        "data": config.data.name,
        "seed": config.seed,
        "params_sha256": params_digest,
        **({"best_params_sha256": best_digest} if best_digest is not None else {}),
    }


def _actors(history: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns means over the epochs that ran on actors: items per second and busy shares; and the restarts."""
    records = [record for record in history if "actor_busy_share" in record]
    if not records:
        return {}
    shares = zip(*(record["actor_busy_share"] for record in records), strict=False)
    return {
        "items_per_second": round(statistics.fmean(record["items_per_second"] for record in records), 1),
        "actor_busy_share": [round(statistics.fmean(share), 4) for share in shares],
        "actor_restarts": sum(record["actor_restarts"] for record in records),
    }
