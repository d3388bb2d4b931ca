"""Tracking of runs in MLflow.

A run's folder comes first: the trainer writes `metrics.jsonl`, and a thread uploads it. A server that is slow or down
delays no training. `tracking.json` in the run's folder records what has been uploaded, so that a resumed run or
`glr-dist sync` uploads only the rest. No other package imports MLflow, and this one does so only if a run is tracked.
"""

from __future__ import annotations

from glr_dist.tracking.follower import tracked
from glr_dist.tracking.location import check_location, resolved
from glr_dist.tracking.parent import parent_run
from glr_dist.tracking.status import Paused
from glr_dist.tracking.sync import send_report, sync, sync_children

__all__ = ["Paused", "check_location", "parent_run", "resolved", "send_report", "sync", "sync_children", "tracked"]
