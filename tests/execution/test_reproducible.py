"""Operators give the same bits: one intra-op thread, deterministic kernels on a GPU, and all settings restored."""

from __future__ import annotations

import os

import pytest
import torch

from glr_dist.execution.inline import Inline
from glr_dist.execution.reproducible import reproducible


@pytest.fixture
def on_gpu(monkeypatch):
    """There seems to be a GPU; without one, too, torch keeps the settings."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)


def settings():
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
    )


def test_the_number_of_threads_is_restored_even_after_an_error():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with pytest.raises(KeyError), reproducible():
            assert torch.get_num_threads() == 1
            raise KeyError
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_threads_of_an_executor_use_one_intra_op_thread():
    with reproducible():
        assert set(Inline(2).map(lambda _: torch.get_num_threads(), range(8))) == {1}


def test_on_the_cpu_torch_chooses_its_kernels():
    with reproducible():
        assert settings() == (False, False, True)


@pytest.mark.parametrize("chosen", [(False, False), (True, True), (True, False)])
def test_kernels_are_deterministic_on_a_gpu_and_the_settings_of_the_user_return(on_gpu, chosen):
    """A user's own strictness stays: with (True, False), an operator without such a kernel is an error."""
    torch.use_deterministic_algorithms(chosen[0], warn_only=chosen[1])
    try:
        with pytest.raises(KeyError), reproducible():
            with reproducible():
                pass
            assert settings() == (True, chosen != (True, False), False)
            assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
            raise KeyError
        assert settings() == (*chosen, True)
    finally:
        torch.use_deterministic_algorithms(False)


def test_the_users_own_workspace_of_cublas_is_left_alone(on_gpu, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with reproducible():
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
