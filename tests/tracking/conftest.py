"""A database for the tests of runs in MLflow, and patience."""

from __future__ import annotations

import pytest

from glr_dist import config, tracking
from glr_dist.tracking import follower


@pytest.fixture(autouse=True)
def place(monkeypatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(follower, "_SLOW", 60.0)  # these tests are about what arrives; a busy machine may be slow


@pytest.fixture(scope="session")
def database(tmp_path_factory) -> str:
    """A SQLite file with its tables, which take seconds to make."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    return tracking.resolved(config.Tracking(kind="mlflow", uri=f"sqlite:///{path}")).uri or ""
