"""A database for the tests of tracking, and a longer patience."""

from __future__ import annotations

import pytest

from glr_dist import tracking
from glr_dist.config import Tracking
from glr_dist.tracking import follower


@pytest.fixture(autouse=True)
def no_server_in_the_environment(monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # so that what MLflow itself sets does not outlive the test
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    # These tests check what is uploaded, on a machine that may be busy.
    monkeypatch.setattr(follower, "_PATIENCE", 60.0)


@pytest.fixture(scope="session")
def database(tmp_path_factory) -> str:
    """A SQLite file with its tables, whose creation takes seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    return tracking.resolved(Tracking(kind="mlflow", uri=f"sqlite:///{path}")).uri or ""
