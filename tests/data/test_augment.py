"""Augmentation: each change against a plain loop, and streams that only the step decides."""

from __future__ import annotations

import pytest
import torch

from glr_dist.config import Augment
from glr_dist.data.augment import augmented
from glr_dist.training.train import train

X = torch.rand(40, 3, 7, 9, generator=torch.Generator().manual_seed(0))


def test_a_step_draws_anew_and_the_same_step_the_same():
    everything = Augment(crop=2, flip=True, noise=0.1, cutout=3)
    first = augmented(X, everything, seed=1, step=4)
    assert torch.equal(first, augmented(X, everything, seed=1, step=4))
    assert not torch.equal(first, augmented(X, everything, seed=1, step=5))
    assert not torch.equal(first, augmented(X, everything, seed=2, step=4))
    assert torch.equal(augmented(X, Augment(), seed=1, step=4), X)


def test_half_of_the_images_are_mirrored():
    found = augmented(X, Augment(flip=True), 0, 0)
    mirrored = [torch.equal(after, before.flip(2)) for after, before in zip(found, X, strict=True)]
    same = [torch.equal(after, before) for after, before in zip(found, X, strict=True)]
    assert all(a != b for a, b in zip(mirrored, same, strict=True))
    assert 8 < sum(mirrored) < 32  # binomial(40, 1/2), 4 sigma


def test_a_crop_is_a_window_of_the_padded_image():
    pad = 2
    found = augmented(X, Augment(crop=pad), 0, 0)
    padded = torch.nn.functional.pad(X, (pad, pad, pad, pad))
    places = []
    for after, image in zip(found, padded, strict=True):
        windows = [
            (top, left)
            for top in range(2 * pad + 1)
            for left in range(2 * pad + 1)
            if torch.equal(after, image[:, top : top + 7, left : left + 9])
        ]
        assert len(windows) == 1
        places += windows
    assert {top for top, _ in places} == {left for _, left in places} == set(range(5))


def test_cutout_sets_one_square_to_zero():
    found = augmented(X, Augment(cutout=4), 0, 0)
    for after, before in zip(found, X, strict=True):
        changed = (after != before).any(0)
        assert torch.equal(changed, ((after == 0).all(0)) & (before != 0).any(0))
        rows, columns = changed.any(1).nonzero(), changed.any(0).nonzero()
        assert 1 <= len(rows) <= 5
        assert torch.equal(changed, changed.any(1)[:, None] & changed.any(0))  # a rectangle
        assert len(rows) == rows.max() - rows.min() + 1
        assert len(columns) == columns.max() - columns.min() + 1


def test_noise_has_its_scale_and_pixels_stay_in_range():
    grey = torch.full((200, 1, 10, 10), 0.5)
    found = augmented(grey, Augment(noise=0.1), 0, 0)
    assert found.std() == pytest.approx(0.1, rel=0.02)  # 4 sigma of 20,000 values
    assert augmented(X, Augment(noise=1.0), 0, 0).min() >= 0


@pytest.mark.slow
def test_a_run_with_augmentation_continues_with_the_same_bits(tiny, tmp_path):
    changed = "data.augment={crop: 1, noise: 0.05}"
    whole = train(tiny(changed), tmp_path / "whole")
    train(tiny(changed, "training.epochs=1"), tmp_path / "parts")
    parts = train(tiny(changed), tmp_path / "parts", resume=True)
    assert parts["params_sha256"] == whole["params_sha256"]
    assert train(tiny(), tmp_path / "plain")["params_sha256"] != whole["params_sha256"]
