"""Keyed dropout of elements, channels and examples, against torch's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from glr_dist.nn import AlphaDropout, ChannelAlphaDropout, ChannelDropout, Dropout, StochasticDepth
from glr_dist.nn.dropout import KEYED, KeyedDropout

KINDS = {  # kind -> torch's own, shape of the mask for x [6, 5, 4, 3]
    Dropout: (nn.Dropout, (6, 5, 4, 3)),
    ChannelDropout: (nn.Dropout2d, (6, 5, 1, 1)),
    StochasticDepth: (None, (6, 1, 1, 1)),
    AlphaDropout: (nn.AlphaDropout, (6, 5, 4, 3)),
    ChannelAlphaDropout: (nn.FeatureAlphaDropout, (6, 5, 1, 1)),
}


@contextmanager
def keyed(shapes: list[tuple[int, ...]] | None = None) -> Iterator[None]:
    """Uniforms of one stream; notes the shapes asked for."""
    stream = torch.Generator().manual_seed(0)

    def uniforms(_: nn.Module, x: Tensor) -> Tensor:
        if shapes is not None:
            shapes.append(tuple(x.shape))
        return torch.rand(x.shape, generator=stream)

    token = KEYED.set(uniforms)
    try:
        yield
    finally:
        KEYED.reset(token)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_mask_has_one_draw_for_each_part(kind: type[KeyedDropout], dtype: torch.dtype) -> None:
    shapes: list[tuple[int, ...]] = []
    x = torch.full((6, 5, 4, 3), 2.0, dtype=dtype)
    with keyed(shapes):
        found = kind(0.5)(x)
    mask = KINDS[kind][1]
    assert shapes == [mask]
    assert found.dtype == dtype
    assert len(found.unique()) == 2
    first = found[tuple(slice(size) for size in mask)]
    assert torch.equal(found, first.expand_as(found)), "a part is not dropped as a whole"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("p", [0.2, 0.7])
def test_the_two_values_are_those_of_torch(kind: type[KeyedDropout], p: float) -> None:
    own = KINDS[kind][0]
    x = torch.full((40, 5, 4, 3), 2.0)
    with keyed(), torch.random.fork_rng():
        torch.manual_seed(0)
        expected = x * torch.tensor([0, 1 / (1 - p)]).view(2, 1, 1, 1, 1) if own is None else own(p)(x)
        assert kind(p)(x).unique().tolist() == pytest.approx(expected.unique().tolist(), rel=1e-5)


@pytest.mark.montecarlo
@pytest.mark.parametrize("kind", KINDS)
def test_mean_and_variance(kind: type[KeyedDropout]) -> None:
    """Of standard normal inputs: mean 0; variance 1 / (1 - p), or 1 of alpha dropout."""
    n, p = 100_000, 0.3
    x = torch.randn(n, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with keyed():
        found = kind(p)(x)
    variance = 1.0 if issubclass(kind, AlphaDropout) else 1 / (1 - p)
    assert abs(found.mean()) < 4.5 * (variance / n) ** 0.5
    assert abs(found.square().mean() - variance) < 4.5 * (found.square().std() / n**0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_identity_errors_and_text(kind: type[KeyedDropout]) -> None:
    x = torch.randn(2, 3)
    assert kind(0.5).eval()(x) is x
    assert kind(0.0)(x) is x
    with pytest.raises(RuntimeError, match=rf"glr_dist\.nn\.{kind.__name__} in training mode .* call \.eval"):
        kind(0.5)(x)
    for p in (-0.1, 1.0):
        with pytest.raises(ValueError, match=f"{kind.__name__}: p {p} is not allowed"):
            kind(p)
    assert repr(kind(0.25)) == f"{kind.__name__}(p=0.25)"


def test_torch_and_keyed_alpha_dropout_have_one_limit() -> None:
    x = torch.zeros(100, dtype=torch.float64)
    with keyed(), torch.random.fork_rng():
        found, expected = (kind(0.5)(x).min().item() for kind in (AlphaDropout, nn.AlphaDropout))
    assert found == pytest.approx(expected, rel=1e-9)
