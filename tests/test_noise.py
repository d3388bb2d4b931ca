import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from glr_dist.estimators import samplers
from glr_dist.estimators.samplers import SAMPLERS, DirectionBlock, _frame
from glr_dist.execution.inline import Inline
from glr_dist.execution.reproducible import reproducible
from glr_dist.noise import LAWS, Gaussian, Laplace, Noise
from glr_dist.streams import Key, Role, generator, numpy_generator, uniforms

CPU = torch.device("cpu")
SCIPY = {"gaussian": stats.norm, "laplace": stats.laplace, "logistic": stats.logistic, "gumbel": stats.gumbel_r}
LOG_DENSITY: dict[str, Callable[[Tensor], Tensor]] = {
    "gaussian": lambda e: -e.square() / 2,
    "laplace": lambda e: -e.abs(),
    "logistic": lambda e: torch.nn.functional.logsigmoid(e) + torch.nn.functional.logsigmoid(-e),
    "gumbel": lambda e: -e - (-e).exp(),
}
ALLOWED = [(law, sampler) for law in LAWS for sampler in SAMPLERS if sampler != "orthogonal" or law == "gaussian"]


def draw(sampler: str, law: Noise, rows: DirectionBlock, n: int, units: int, key: Key = Key(0)) -> Tensor:  # noqa: B008
    with reproducible():  # as every estimate draws
        return SAMPLERS[sampler](law, key, rows, n, units, torch.float64, CPU)


# ---------------------------------------------------------------- laws


@pytest.mark.parametrize("law", LAWS)
def test_score_is_minus_the_slope_of_the_log_density(law: str) -> None:
    eps = torch.tensor([-30.0, -3.0, -0.7, 0.2, 1.0, 4.0, 30.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(LOG_DENSITY[law](eps).sum(), eps)
    torch.testing.assert_close(LAWS[law]().score(eps.detach()), -slope)


@pytest.mark.parametrize("law", LAWS)
def test_scale_score_is_the_slope_of_the_log_density_of_the_noise_in_log_sigma(law: str) -> None:
    """σε has the density p(w/σ)/σ."""
    w = torch.tensor([-3.0, -0.7, 0.2, 1.0, 4.0], dtype=torch.float64)
    log_scale = torch.full_like(w, -0.3, requires_grad=True)
    log_density = LOG_DENSITY[law](w * (-log_scale).exp()) - log_scale
    (slope,) = torch.autograd.grad(log_density.sum(), log_scale)
    eps = w * math.exp(0.3)
    torch.testing.assert_close(eps * LAWS[law]().score(eps) - 1, slope)


@pytest.mark.parametrize("law", LAWS)
def test_quantile_inverts_the_cdf(law: str) -> None:
    u = torch.tensor([2.0**-54, 1e-9, 0.01, 0.3, 0.5, 0.8, 0.999, 1 - 2.0**-53], dtype=torch.float64)
    eps = LAWS[law]().quantile(u)
    assert eps.isfinite().all()
    np.testing.assert_allclose(SCIPY[law].cdf(eps.numpy()), u.numpy(), rtol=1e-12)
    np.testing.assert_allclose(LAWS[law]().cdf(eps).numpy(), u.numpy(), rtol=1e-7)


@pytest.mark.parametrize("law", LAWS)
def test_density_is_the_slope_of_the_cdf_and_both_are_finite_everywhere(law: str) -> None:
    eps = torch.tensor([-torch.inf, -1e3, -40.0, -3.0, -0.1, 0.7, 4.0, 1e3, torch.inf], dtype=torch.float64)
    eps.requires_grad_()
    cdf = LAWS[law]().cdf(eps)
    (slope,) = torch.autograd.grad(cdf.sum(), eps)
    torch.testing.assert_close(slope, LAWS[law]().density(eps).detach(), atol=1e-12, rtol=1e-9)
    np.testing.assert_allclose(cdf.detach().numpy(), SCIPY[law].cdf(eps.detach().numpy()), atol=1e-12)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sample_has_the_law_and_the_type_asked_for(law: str, dtype: torch.dtype) -> None:
    eps = LAWS[law]().sample((100, 200), generator(Key(3)), dtype)
    assert eps.shape == (100, 200)
    assert eps.dtype == dtype
    assert stats.kstest(eps.double().flatten().numpy(), SCIPY[law].cdf).pvalue > 1e-4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"scale": 0.0}, "noise scale: 0.0"),
        ({"scale": -1.0}, "noise scale: -1.0"),
        ({"scale": math.inf}, "noise scale: inf"),
        ({"scale": math.nan}, "noise scale: nan"),
        ({"scale": {"a": 1.0, "b": 0.0}}, "noise scale b: 0.0"),
        ({"floor": 0.0}, "noise floor: 0.0"),
        ({"learn": "layer"}, "noise learn: 'layer'"),
    ],
)
def test_noise_refuses_what_it_cannot_mean(arguments: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Gaussian(**arguments)  # type: ignore[arg-type]


# ---------------------------------------------------------------- samplers


@lru_cache
def rows_of_streams(law: str, sampler: str) -> Tensor:
    """Five rows of one example with three units [T, 5, 3], from T = 1000 independent streams."""
    rows = DirectionBlock(0, 0, 5, 5)
    return torch.stack([draw(sampler, LAWS[law](), rows, 1, 3, Key(1, step))[:, 0] for step in range(1000)])


@pytest.mark.slow
@pytest.mark.montecarlo
@pytest.mark.parametrize("row", [0, 1, 4])
@pytest.mark.parametrize(("law", "sampler"), ALLOWED)
def test_every_row_of_a_sampler_has_the_law_with_independent_units(law: str, sampler: str, row: int) -> None:
    """Over independent streams: Kolmogorov-Smirnov for each unit, |correlation| within 4.5 / √T."""
    drawn = rows_of_streams(law, sampler)[:, row]
    for unit in drawn.T:
        assert stats.kstest(unit.numpy(), SCIPY[law].cdf).pvalue > 1e-4
    bound = 4.5 / len(drawn) ** 0.5
    for of in (torch.clone, torch.abs):  # uncorrelated units of a frame's rows could still share their size
        assert (of(drawn).T.corrcoef() - torch.eye(3, dtype=torch.float64)).abs().max() < bound


@pytest.mark.slow
@pytest.mark.montecarlo
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_examples_of_one_call_are_uncorrelated(sampler: str) -> None:
    drawn = torch.stack(
        [draw(sampler, Gaussian(), DirectionBlock(0, 0, 2, 2), 3, 2, Key(2, t))[:, :, 0] for t in range(1000)]
    )
    for row in (0, 1):
        correlation = drawn[:, row].T.corrcoef() - torch.eye(3, dtype=torch.float64)
        assert correlation.abs().max() < 4.5 / 1000**0.5


def test_rows_of_a_frame_are_orthogonal_and_frames_are_not_to_each_other() -> None:
    eps = draw("orthogonal", Gaussian(), DirectionBlock(0, 0, 12, 12), 7, 5)
    units = eps / eps.norm(dim=-1, keepdim=True)
    products = torch.einsum("rnd,snd->nrs", units, units)
    frame = torch.arange(12) // 5
    same = frame[:, None] == frame
    torch.testing.assert_close(products[:, same], torch.eye(12, dtype=torch.float64)[same].expand(7, -1))
    assert (products[:, ~same].abs() > 1e-6).all()


@pytest.mark.montecarlo
def test_radii_of_frames_are_chi_and_independent() -> None:
    radii = draw("orthogonal", Gaussian(), DirectionBlock(0, 0, 4, 4), 3000, 4).norm(dim=-1)
    assert stats.kstest(radii.flatten().numpy(), stats.chi(4).cdf).pvalue > 1e-4
    assert (radii.corrcoef() - torch.eye(4, dtype=torch.float64)).abs().max() < 4.5 / 3000**0.5


@pytest.mark.parametrize("cut", [3, 5, 8])
def test_pair_blocks_share_their_frame_but_not_their_radii(cut: int) -> None:
    """A row's direction does not depend on where blocks end; frames of 5 rows, the last one short."""
    whole = draw("orthogonal", Gaussian(), DirectionBlock(0, 0, 12, 12), 4, 5)
    parts = [
        draw("orthogonal", Gaussian(), DirectionBlock(i, *edges, 12), 4, 5)
        for i, edges in enumerate([(0, cut), (cut, 12)])
    ]
    again = torch.cat(parts)
    torch.testing.assert_close(again / again.norm(dim=-1, keepdim=True), whole / whole.norm(dim=-1, keepdim=True))
    assert torch.equal(again[:cut], whole[:cut])  # the first block's radii come from the same stream
    assert (again[cut:].norm(dim=-1) != whole[cut:].norm(dim=-1)).all()


def test_pair_blocks_continue_one_sobol_set() -> None:
    whole = draw("sobol", Laplace(), DirectionBlock(0, 0, 12, 12), 4, 5)
    parts = [
        draw("sobol", Laplace(), DirectionBlock(i, *edges, 12), 4, 5)
        for i, edges in enumerate([(0, 1), (1, 5), (5, 12)])
    ]
    assert torch.equal(torch.cat(parts), whole)


def test_pair_blocks_of_iid_noise_differ() -> None:
    first, second = (draw("iid", Gaussian(), DirectionBlock(i, 4 * i, 4 * i + 4, 8), 3, 2) for i in (0, 1))
    assert (first != second).all()


def test_a_sobol_set_is_more_even_than_independent_points() -> None:
    """Each half of a unit's range holds half of the points, exactly, for every example."""
    eps = draw("sobol", Gaussian(), DirectionBlock(0, 0, 16, 16), 50, 6)
    assert ((eps > 0).sum(0) == 8).all()
    assert not ((draw("iid", Gaussian(), DirectionBlock(0, 0, 16, 16), 50, 6) > 0).sum(0) == 8).all()


def test_example_blocks_share_frames_up_to_signs() -> None:
    one, other = (
        draw("orthogonal", Gaussian(), DirectionBlock(0, 0, 4, 4), 2, 4, Key(0, example_block=e)) for e in (0, 1)
    )
    absolute = [(eps / eps.norm(dim=-1, keepdim=True)).abs()[:, 0] for eps in (one, other)]
    torch.testing.assert_close(*absolute)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samplers_give_finite_noise_of_the_shape_and_type_asked_for(sampler: str, dtype: torch.dtype) -> None:
    eps = SAMPLERS[sampler](Gaussian(), Key(0), DirectionBlock(1, 3, 10, 20), 5, 4, dtype, CPU)
    assert eps.shape == (7, 5, 4)
    assert eps.dtype == dtype
    assert eps.isfinite().all()


# ---------------------------------------------------------------- keyed streams


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_equal_keys_give_equal_noise(sampler: str) -> None:
    rows = DirectionBlock(2, 3, 9, 12)
    assert torch.equal(*(draw(sampler, Gaussian(), rows, 4, 3, Key(5, 1, 2, 3, 0, 6)) for _ in range(2)))


@pytest.mark.parametrize("field", ["seed", "step", "shared_pass", "site", "example_block"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_each_field_of_a_key_changes_all_noise(sampler: str, field: str) -> None:
    key, rows = Key(5, 1, 2, 3, 0, 6), DirectionBlock(2, 3, 9, 12)
    other = key._replace(**{field: getattr(key, field) + 1})
    assert (draw(sampler, Gaussian(), rows, 4, 3, key) != draw(sampler, Gaussian(), rows, 4, 3, other)).all()


@pytest.mark.parametrize("field", Key._fields)
def test_each_field_of_a_key_names_another_stream(field: str) -> None:
    key = Key(5, 1, 2, 3, 4, 6, Role.FRAME)
    other = key._replace(**{field: type(getattr(key, field))(getattr(key, field) + 1)})
    assert (torch.rand(64, generator=generator(key)) != torch.rand(64, generator=generator(other))).all()


def test_all_roles_have_streams_of_their_own() -> None:
    assert len({Key(0, role=role).digest(16) for role in Role}) == len(Role)


def test_seeds_that_agree_in_32_bits_differ() -> None:
    """torch's own `manual_seed` would take them for one on the CPU."""
    one, other = (torch.randn(100, generator=generator(Key(seed))) for seed in (5, 5 + 2**32))
    assert (one != other).all()
    one, other = (torch.randn(100, generator=torch.Generator().manual_seed(seed)) for seed in (5, 5 + 2**32))
    assert torch.equal(one, other), "the reason for writing the whole state is gone"


def test_the_cpu_generator_is_a_mersenne_twister_in_the_keys_state() -> None:
    key, count = Key(7, 8, role=Role.SIGN), 2000  # more than 624, so that the state is renewed several times
    twister = np.random.MT19937()
    words = np.frombuffer(key.digest(624 * 4), dtype="<u4")
    # A position of 624 has the twister renew its state before the first number, as a fresh torch generator does.
    twister.state = {"bit_generator": "MT19937", "state": {"key": words, "pos": 624}}
    expected = (twister.random_raw(count) & 0xFFFFFF) * 2.0**-24
    assert torch.rand(count, generator=generator(key)).tolist() == expected.tolist()


def test_the_numpy_generator_is_a_philox_with_the_keys_digest() -> None:
    key = Key(7, 8, role=Role.RADIUS)
    philox = np.random.Philox(key=int.from_bytes(key.digest(16), "little"))
    assert np.array_equal(numpy_generator(key).random(1000), np.random.Generator(philox).random(1000))


@pytest.mark.parametrize(("rows", "units"), [(4, 6), (50, 50), (100, 120)])
def test_frames_do_not_depend_on_what_was_drawn_before(rows: int, units: int) -> None:
    """The small ones are drawn together with those of other steps, the large ones alone."""

    def frames(steps: list[int]) -> dict[int, Tensor]:
        for cache in (samplers._small_frames, samplers._large_frames):
            cache.cache_clear()
        return {step: _frame(Key(3, step, role=Role.FRAME), rows, units, torch.float64, CPU) for step in steps}

    upwards, downwards = frames(list(range(40))), frames(list(range(40))[::-1])
    assert all(torch.equal(upwards[step], downwards[step]) for step in upwards)
    for q in upwards.values():
        torch.testing.assert_close(q @ q.T, torch.eye(rows, dtype=torch.float64), rtol=0, atol=1e-12)
    first = {tuple(q[0].tolist()) for q in upwards.values()}
    assert len(first) == len(upwards)


def test_frames_of_another_number_of_rows_have_other_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """K may change between two steps whose frames would be drawn together."""
    found: dict[Key, set[tuple[int, int]]] = {}
    drawn = samplers._frames

    def noted(key: Key, steps: int, rows: int, *given: Any) -> Tensor:
        found.setdefault(key, set()).add((steps, rows))
        return drawn(key, steps, rows, *given)

    monkeypatch.setattr(samplers, "_small_frames", noted)
    monkeypatch.setattr(samplers, "_large_frames", noted)
    for rows in (1, 3, 20, 60, 140):
        for step in range(20):
            _frame(Key(3, step, role=Role.FRAME), rows, 140 if rows > 60 else 60, torch.float64, CPU)
    assert {steps for both in found.values() for steps, _ in both} == {16, 6, 2, 1}
    assert all(len(both) == 1 for both in found.values())


def test_a_stream_does_not_touch_the_global_generator() -> None:
    before = torch.get_rng_state()
    for sampler in SAMPLERS:
        draw(sampler, Gaussian(), DirectionBlock(0, 0, 4, 4), 3, 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_uniforms_are_never_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.zeros(shape, dtype=torch.float64))
    u = uniforms((3,), generator(Key(0)))
    assert (u > 0).all()
    for law in LAWS.values():
        assert law().quantile(u).isfinite().all()


@pytest.mark.montecarlo
def test_uniforms_are_uniform_in_double_precision() -> None:
    u = uniforms((20000,), generator(Key(1)))
    assert u.dtype == torch.float64
    assert stats.kstest(u.numpy(), stats.uniform.cdf).pvalue > 1e-4
    assert (u * 2**24 != (u * 2**24).floor()).any(), "only the numbers of single precision"


# ---------------------------------------------------------------- threads


@pytest.mark.parametrize(("law", "sampler"), ALLOWED)
def test_noise_does_not_depend_on_the_number_of_threads(law: str, sampler: str) -> None:
    """`draw` enters `reproducible`; the sizes are large enough that torch would use several."""

    def drawn(threads: int) -> Tensor:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return draw(sampler, LAWS[law](), DirectionBlock(0, 0, 40, 40), 64, 100, Key(9))
        finally:
            torch.set_num_threads(before)

    assert torch.equal(drawn(1), drawn(2))


@pytest.mark.parametrize("threads", [1, 2])
def test_inline_gives_results_in_order_and_raises_what_an_item_raises(threads: int) -> None:
    executor = Inline(threads)
    assert list(executor.map(lambda i: i * i, range(20))) == [i * i for i in range(20)]
    with pytest.raises(ZeroDivisionError):
        list(executor.map(lambda i: 1 / i, [1, 0]))
