"""Packed values arrive unchanged."""

from __future__ import annotations

import pickle

import pytest
import torch

from glr_dist.execution.wire import packed, unpacked

CPU = torch.device("cpu")
TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3, 4)])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_a_tensor_arrives_unchanged(dtype, shape):
    sent = torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    form = packed(sent)
    found = unpacked(pickle.loads(pickle.dumps(form)), CPU)
    assert found.dtype == dtype
    assert found.shape == sent.shape
    assert torch.equal(found, sent)
    length = sent.numel() * sent.element_size()
    assert length <= form.size < length + 64


def test_every_bit_of_a_float_arrives():
    sent = torch.tensor([float("nan"), float("inf"), -0.0, 1e-42, 1 / 3])
    found = unpacked(packed(sent), CPU)
    assert torch.equal(found.view(torch.int32), sent.view(torch.int32))


def test_tensors_that_are_not_contiguous_arrive():
    sent = torch.arange(24.0).view(4, 6)[1:, ::2].T
    assert torch.equal(unpacked(packed(sent), CPU), sent)


def test_the_nested_structure_arrives_unchanged():
    value = {"a": [torch.ones(2), {3: torch.zeros(1)}], "b": "text", "c": None, "d": 4.5}
    form = packed(value)
    assert form.size == 2 * 64  # each tensor begins at a multiple of 64 bytes
    found = unpacked(form, CPU)
    assert found["b"] == "text"
    assert found["c"] is None
    assert found["d"] == 4.5
    assert torch.equal(found["a"][0], torch.ones(2))
    assert torch.equal(found["a"][1][3], torch.zeros(1))


def test_unpacked_tensors_are_writable_copies():
    form = packed(torch.ones(3))
    form.data.setflags(write=False)  # as in the object store
    unpacked(form, CPU).add_(1)
    assert torch.equal(unpacked(form, CPU), torch.ones(3))
