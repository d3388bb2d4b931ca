"""Fixtures of the tests of training."""

from __future__ import annotations

import pytest

from glr_dist.training import trainer


@pytest.fixture(scope="module")
def no_pictures():
    """Runs draw no learning curve, which takes longer than a tiny run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "draw_learning_curve", lambda history, path: None)
        yield
