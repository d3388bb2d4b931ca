"""Corruptions: closed forms, plain reimplementations on the same draws, and properties of every registry entry."""

from __future__ import annotations

import colorsys
import io
import itertools
import math
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.datasets import MNIST

from glr_dist.errors import UserError
from glr_dist.robustness.corruptions import CONSTANTS, CORRUPTIONS, corrupt
from glr_dist.robustness.corruptions.glass import displacements
from glr_dist.robustness.corruptions.light import plasma
from glr_dist.streams import Key, Role, generator

RANDOM = {
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "speckle_noise",
    "glass_blur",
    "motion_blur",
    "fog",
    "elastic_transform",
}
PAPER = ("gaussian_noise", "impulse_noise", "glass_blur", "contrast")
SEVERITIES = range(1, 6)


def scene(*shape: int) -> Tensor:
    """Smooth patches with sharp edges between them, strictly inside (0, 1)."""
    coarse = torch.rand(*shape[:2], 5, 5, generator=torch.Generator().manual_seed(1))
    x = interpolate(coarse, shape[2:], mode="bilinear")
    return torch.where(x > 0.55, 0.9 * x + 0.05, 0.5 * x + 0.01)


def distance(name: str, x: Tensor, severity: int, constants: str) -> float:
    return (corrupt(name, x, severity, constants=constants) - x).square().mean().item()


def replayed(name: str, severity: int) -> torch.Generator:
    """Returns the stream that `corrupt` uses for seed 0 and block 0."""
    return generator(Key(0, step=zlib.crc32(name.encode()), site=severity, role=Role.CORRUPTION))


# ---------------------------------------------------------------- the registry


def test_every_corruption_has_constants_for_every_severity():
    for table in CONSTANTS.values():
        assert table.keys() == CORRUPTIONS.keys()
        assert {len(row) for row in table.values()} == {5}


def test_constants_of_the_paper():
    table = CONSTANTS["cifar_c"]
    assert table["gaussian_noise"] == (0.04, 0.06, 0.08, 0.09, 0.10)
    assert table["impulse_noise"] == (0.01, 0.02, 0.03, 0.05, 0.07)
    assert table["glass_blur"] == ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2))
    assert table["contrast"] == (0.75, 0.5, 0.4, 0.3, 0.15)


SHAPES = [(2, 1, 28, 28), (2, 3, 32, 32), (2, 3, 64, 64), (2, 3, 7, 9), (2, 1, 9, 7), (2, 1, 2, 2), (2, 3, 1, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("constants", CONSTANTS)
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_images_of_any_size_keep_their_shape_and_range(name, constants):
    for shape, severity in itertools.product([*SHAPES, (0, 1, 8, 8)], SEVERITIES):
        x = scene(*shape) if shape[0] else torch.zeros(shape)
        before = x.clone()
        y = corrupt(name, x, severity, constants=constants)
        assert y.shape == x.shape and y.dtype == x.dtype and y.device == x.device
        assert ((y >= 0) & (y <= 1)).all()
        assert x.equal(before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_type_is_kept_and_the_computation_runs_in_float32(name, dtype):
    x = scene(2, 1, 8, 9).to(dtype)
    y = corrupt(name, x, 3)
    assert y.dtype == dtype
    assert y.equal(corrupt(name, x.float(), 3).to(dtype))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_memory_layout_does_not_matter(name):
    x = scene(2, 3, 12, 10)
    assert corrupt(name, x.contiguous(memory_format=torch.channels_last), 4).equal(corrupt(name, x, 4))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_black_images_stay_finite(name):
    for severity, constants in itertools.product(SEVERITIES, CONSTANTS):
        assert corrupt(name, torch.zeros(2, 3, 8, 8), severity, constants=constants).isfinite().all()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_randomness_is_a_function_of_seed_severity_and_block(name):
    x = scene(2, 1, 28, 28)[:1].expand(2, -1, -1, -1)
    y = corrupt(name, x, 3, seed=5, block=2)
    assert y.equal(corrupt(name, x, 3, seed=5, block=2))
    assert y.equal(corrupt(name, x, 3, seed=6, block=2)) == (name not in RANDOM)
    assert y.equal(corrupt(name, x, 3, seed=5, block=3)) == (name not in RANDOM)
    assert y[0].equal(y[1]) == (name not in RANDOM)  # each image has its own draws
    assert not y.equal(corrupt(name, x, 4, seed=5, block=2))


def test_severities_have_their_own_draws():
    x = torch.full((1, 1, 28, 28), 0.5)
    light, strong = (corrupt("gaussian_noise", x, severity) - x for severity in (1, 2))
    cosine = torch.cosine_similarity(light.flatten(), strong.flatten(), dim=0)
    assert abs(cosine) < 4 / 28  # z < 4: the cosine of independent noise has the standard deviation 1/28


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        pytest.param(name, shape, marks=pytest.mark.long if (name, shape[0]) == ("glass_blur", 1) else [])
        for name in CORRUPTIONS
        for shape in [(7, 3, 61, 67), (1, 1, 201, 203)]  # many images; an image that several threads share
    ],
)
def test_number_of_threads_does_not_matter(name, shape):
    x, threads = scene(*shape), torch.get_num_threads()
    try:
        images = []
        for count in (1, 2):
            torch.set_num_threads(count)
            images.append(corrupt(name, x, 5))
    finally:
        torch.set_num_threads(threads)
    assert images[0].equal(images[1])


# Not elastic_transform: its affine part shrinks with the severity, so its distance need not grow.
@pytest.mark.parametrize("constants", CONSTANTS)
@pytest.mark.parametrize("name", sorted(CORRUPTIONS.keys() - {"elastic_transform"}))
def test_severity_5_is_farther_from_the_clean_images_than_severity_1(name, constants):
    x = scene(32, 1, 28, 28)
    assert distance(name, x, 5, constants) > distance(name, x, 1, constants)


MONOTONE = ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "gaussian_blur", "defocus_blur")
MONOTONE += ("zoom_blur", "brightness", "contrast", "jpeg_compression")


@pytest.mark.parametrize("constants", CONSTANTS)
@pytest.mark.parametrize("name", MONOTONE)
def test_distance_grows_with_every_severity(name, constants):
    distances = [distance(name, scene(32, 1, 28, 28), severity, constants) for severity in SEVERITIES]
    assert distances == sorted(distances)


@pytest.mark.parametrize("name", PAPER)
def test_real_digits(name, glr_data):
    x = MNIST(str(glr_data), train=False, download=False).data[:200, None] / 255
    assert distance(name, x, 5, "cifar_c") > distance(name, x, 1, "cifar_c") > 0


# ---------------------------------------------------------------- errors

GOOD = torch.full((2, 1, 4, 4), 0.5)
REFUSED = [
    (("grain", GOOD, 1), {}, "corruption: 'grain' .* gaussian_noise, .*jpeg_compression"),
    (("fog", GOOD, 1), {"constants": "mnist_c"}, "constants: 'mnist_c' .* cifar_c, imagenet_c"),
    (("fog", GOOD, 0), {}, "severity: 0 .* 1 to 5"),
    (("fog", GOOD, 6), {}, "severity: 6 .* 1 to 5"),
    (("fog", GOOD[0], 1), {}, r"images: shape \[1, 4, 4\] .* \[N, C, H, W\]"),
    (("fog", GOOD.expand(-1, 2, -1, -1), 1), {}, r"images: shape \[2, 2, 4, 4\] .* 1 or 3"),
    (("fog", GOOD[:, :, :0], 1), {}, r"images: shape \[2, 1, 0, 4\]"),
    (("fog", GOOD.round().long(), 1), {}, "images: torch.int64 .* floating"),
    (("fog", GOOD * math.nan, 1), {}, r"images: nan .* \[0, 1\]"),
    (("fog", GOOD * math.inf, 1), {}, r"images: inf .* \[0, 1\]"),
    (("fog", GOOD - 1, 1), {}, r"images: -0.5 .* \[0, 1\]"),
    (("fog", GOOD + 1, 1), {}, r"images: 1.5 .* \[0, 1\]"),
]


@pytest.mark.parametrize(("arguments", "options", "message"), REFUSED)
def test_errors_are_one_line(arguments, options, message):
    with pytest.raises(UserError, match=message) as caught:
        corrupt(*arguments, **options)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- noise


@pytest.mark.montecarlo
@pytest.mark.parametrize("severity", SEVERITIES)
def test_gaussian_noise_has_its_standard_deviation(severity):
    """|z| < 4; the mean lies five standard deviations or more from either clip."""
    x = torch.full((10, 1, 100, 100), 0.5)
    sigma, n = CONSTANTS["cifar_c"]["gaussian_noise"][severity - 1], x.numel()
    noise = (corrupt("gaussian_noise", x, severity) - x).double()
    assert abs(noise.mean()) < 4 * sigma / n**0.5
    assert abs(noise.square().mean() / sigma**2 - 1) < 4 * (2 / n) ** 0.5


@pytest.mark.montecarlo
@pytest.mark.parametrize("severity", SEVERITIES)
def test_speckle_noise_grows_with_the_light(severity):
    """|z| < 4."""
    x = torch.tensor([0.1, 0.5]).view(2, 1, 1, 1).expand(2, 1, 200, 200)
    sigma, n = CONSTANTS["cifar_c"]["speckle_noise"][severity - 1], 200 * 200
    noise = ((corrupt("speckle_noise", x, severity) - x) / x).double().flatten(1)
    assert (noise.square().mean(1) / sigma**2 - 1).abs().max() < 4 * (2 / n) ** 0.5


@pytest.mark.montecarlo
@pytest.mark.parametrize("severity", SEVERITIES)
def test_shot_noise_counts_photons(severity):
    """|z| < 4: counts have mean and variance λ = c x; the sample variance has variance (λ + 2 λ²) / n."""
    x = torch.full((10, 1, 100, 100), 0.25)
    c, n = CONSTANTS["cifar_c"]["shot_noise"][severity - 1], x.numel()
    counts, rate = (corrupt("shot_noise", x, severity) * c).double(), c * 0.25
    torch.testing.assert_close(counts, counts.round(), rtol=0, atol=1e-3)
    assert abs(counts.mean() - rate) < 4 * (rate / n) ** 0.5
    assert abs((counts - rate).square().mean() - rate) < 4 * ((rate + 2 * rate**2) / n) ** 0.5


@pytest.mark.montecarlo
@pytest.mark.parametrize("constants", CONSTANTS)
@pytest.mark.parametrize("severity", SEVERITIES)
def test_impulse_noise_sets_equal_fractions_to_black_and_white(severity, constants):
    """|z| < 4 for each of the two fractions c/2; all other elements keep their bits."""
    x = torch.full((10, 3, 60, 60), 0.3)
    half, n = CONSTANTS[constants]["impulse_noise"][severity - 1] / 2, x.numel()
    y = corrupt("impulse_noise", x, severity, constants=constants)
    assert ((y == 0) | (y == 1) | (y == x)).all()
    for value in (0, 1):
        assert abs((y == value).double().mean() - half) < 4 * (half * (1 - half) / n) ** 0.5
    channels = (y != x).double()
    assert not channels[:, 0].equal(channels[:, 1])  # each element for itself


# ---------------------------------------------------------------- blurs


@pytest.mark.parametrize(("constants", "severity"), [("cifar_c", 5), ("imagenet_c", 4), ("imagenet_c", 5)])
@pytest.mark.parametrize("shape", [(3, 1, 28, 28), (2, 3, 12, 10), (2, 3, 7, 9), (2, 1, 3, 3), (2, 1, 2, 2)])
def test_glass_blur_is_a_plain_loop_bit_for_bit(shape, constants, severity):
    x = scene(*shape)
    n, _, height, width = shape
    sigma, reach, rounds = CONSTANTS[constants]["glass_blur"][severity - 1]
    swaps = displacements(n, height, width, reach, rounds, replayed("glass_blur", severity))
    expected = []
    for image in range(n):
        pixels = np.stack([ndimage.gaussian_filter(channel, sigma, mode="nearest") for channel in x[image].numpy()])
        for turn in range(rounds):
            for i, row in enumerate(range(height - reach, reach, -1)):
                for j, column in enumerate(range(width - reach, reach, -1)):
                    down, right = swaps[turn, i, j, :, image].tolist()
                    here, there = pixels[:, row, column].copy(), pixels[:, row + down, column + right].copy()
                    pixels[:, row, column], pixels[:, row + down, column + right] = there, here
        expected.append(np.stack([ndimage.gaussian_filter(channel, sigma, mode="nearest") for channel in pixels]))
    y = corrupt("glass_blur", x, severity, constants=constants)
    assert y.equal(torch.from_numpy(np.stack(expected)).clamp(0, 1))


@pytest.mark.parametrize("reach", [1, 2, 3, 4])
def test_glass_displacements_are_uniform_and_stay_inside(reach):
    height, width = 2 * reach + 5, 2 * reach + 6
    swaps = displacements(50, height, width, reach, 2, torch.Generator().manual_seed(0)).long()
    assert swaps.shape == (2, 5, 6, 2, 50)
    assert swaps.unique().tolist() == list(range(-reach, reach))
    rows = torch.arange(height - reach, reach, -1)[:, None, None] + swaps[:, :, :, 0]
    columns = torch.arange(width - reach, reach, -1)[:, None] + swaps[:, :, :, 1]
    assert rows.min() == 1 and rows.max() == height - 1
    assert columns.min() == 1 and columns.max() == width - 1


@pytest.mark.parametrize("severity", SEVERITIES)
def test_the_glass_blur_of_the_paper_blurs_along_one_axis_in_8_bits(severity):
    """A plain loop over one image, as in the authors' program."""
    x = scene(1, 1, 12, 9)
    sigma, reach, rounds, _ = CONSTANTS["authors"]["glass_blur"][severity - 1]
    swaps = displacements(1, 12, 9, reach, rounds, replayed("glass_blur", severity)).numpy()

    def blurred(image):
        return np.floor(255 * ndimage.gaussian_filter(image.astype(float), (sigma, 0), mode="nearest")) / 255

    image = blurred(x[0, 0].double().numpy()).astype(np.float32)
    for number in range(rounds):
        for i, h in enumerate(range(12 - reach, reach, -1)):
            for j, w in enumerate(range(9 - reach, reach, -1)):
                down, right = (int(each) for each in swaps[number, i, j, :, 0])
                there = h + down, w + right
                image[h, w], image[there] = image[there], image[h, w]
    expected = np.clip(blurred(image), 0, 1)
    found = corrupt("glass_blur", x, severity, constants="authors")[0, 0]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    colour = scene(1, 3, 12, 9)
    assert torch.equal(
        corrupt("glass_blur", colour, severity, constants="authors"), corrupt("glass_blur", colour, severity)
    )


def test_glass_blur_loses_no_pixel_of_a_colour_image():
    x = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    y = corrupt("glass_blur", x, 1)  # a blur of 0.05 pixels leaves all as it is
    for before, after in zip(x, y, strict=True):
        colours = [sorted(map(tuple, image.flatten(1).T.tolist())) for image in (before, after)]
        assert colours[0] == colours[1]
    assert not x.equal(y)


def plain_disk(radius: float, softness: float) -> dict[tuple[int, int], float]:
    """Returns weights by (row, column): a normalised disk, then a small Gaussian that reflects at the border."""
    reach, half = (8, 1) if radius <= 8 else (radius, 2)
    inside = [(i, j) for i in range(-reach, reach + 1) for j in range(-reach, reach + 1) if math.hypot(i, j) <= radius]
    tap = {k: math.exp(-(k**2) / (2 * softness**2)) for k in range(-half, half + 1)}
    total = sum(tap.values())
    mirrored = {i: i if abs(i) <= reach else int(math.copysign(2 * reach, i)) - i for i in range(-reach - 2, reach + 3)}
    return {
        (i, j): sum(
            tap[a] * tap[b] / total**2 / len(inside)
            for a in tap
            for b in tap
            if (mirrored[i + a], mirrored[j + b]) in set(inside)
        )
        for i in range(-reach, reach + 1)
        for j in range(-reach, reach + 1)
    }


@pytest.mark.parametrize(("constants", "severity"), [("cifar_c", 3), ("cifar_c", 5), ("imagenet_c", 4)])
def test_defocus_blur_is_a_plain_sum(constants, severity):
    x = scene(2, 3, 20, 23)
    weights = plain_disk(*CONSTANTS[constants]["defocus_blur"][severity - 1])
    reach = max(i for i, _ in weights)
    padded = np.pad(x.double().numpy(), [(0, 0), (0, 0), (reach, reach), (reach, reach)], mode="reflect")
    windows = {(i, j): padded[:, :, reach + i : reach + i + 20, reach + j : reach + j + 23] for i, j in weights}
    expected = sum(weight * windows[place] for place, weight in weights.items())
    y = corrupt("defocus_blur", x, severity, constants=constants)
    np.testing.assert_allclose(y.numpy(), np.clip(expected, 0, 1), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("constants", CONSTANTS)
def test_motion_blur_is_a_plain_sum_along_a_line(constants):
    x = scene(3, 3, 9, 11)
    radius, sigma = CONSTANTS[constants]["motion_blur"][1]
    angles = (2 * torch.rand(3, generator=replayed("motion_blur", 2), dtype=torch.float64) - 1) * math.pi / 4
    weights = [math.exp(-(i**2) / (2 * sigma**2)) for i in range(2 * radius + 1)]
    expected = torch.zeros_like(x)
    for image, row, column in itertools.product(range(3), range(9), range(11)):
        for i, weight in enumerate(weights):
            down, right = (math.ceil(i * part(angles[image]) - 0.5) for part in (math.sin, math.cos))
            source = x[image, :, min(max(row + down, 0), 8), min(max(column + right, 0), 10)]
            expected[image, :, row, column] += weight / sum(weights) * source
    torch.testing.assert_close(corrupt("motion_blur", x, 2, constants=constants), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("constants", CONSTANTS)
@pytest.mark.parametrize("side", [1, 2, 9, 28, 32])
def test_zoom_blur_averages_scipy_zooms(side, constants):
    x = scene(1, 1, side, side)
    for severity in SEVERITIES:
        stop, step = CONSTANTS[constants]["zoom_blur"][severity - 1]
        total, factors = x[0, 0].double().numpy().copy(), np.arange(1, stop, step)
        for factor in factors:
            crop = math.ceil(side / factor)
            first = (side - crop) // 2
            zoomed = ndimage.zoom(x[0, 0].double().numpy()[first : first + crop, first : first + crop], factor, order=1)
            trim = (len(zoomed) - side) // 2
            total += zoomed[trim : trim + side, trim : trim + side]
        y = corrupt("zoom_blur", x, severity, constants=constants)
        np.testing.assert_allclose(y[0, 0].numpy(), total / (len(factors) + 1), atol=1e-6)


def test_gaussian_blur_keeps_what_is_constant_and_spreads_a_point():
    x = torch.full((1, 1, 9, 9), 0.4)
    torch.testing.assert_close(corrupt("gaussian_blur", x, 5), x)
    point = torch.zeros(1, 1, 21, 21)
    point[..., 10, 10] = 1
    y = corrupt("gaussian_blur", point, 5)
    weights = torch.exp(-(torch.arange(-10.0, 11).square()) / 2) * (torch.arange(-10, 11).abs() <= 4)
    torch.testing.assert_close(y[0, 0], torch.outer(weights, weights) / weights.sum() ** 2)


# ---------------------------------------------------------------- light


@pytest.mark.parametrize("severity", SEVERITIES)
def test_contrast_keeps_the_mean_and_scales_the_deviations(severity):
    x = scene(3, 3, 17, 13)
    c = CONSTANTS["cifar_c"]["contrast"][severity - 1]
    y = corrupt("contrast", x, severity)
    mean = x.double().mean((2, 3), keepdim=True)
    torch.testing.assert_close(y.double(), mean + c * (x.double() - mean), rtol=0, atol=1e-6)
    torch.testing.assert_close(y.double().mean((2, 3), keepdim=True), mean, rtol=0, atol=1e-6)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_brightness_adds_to_the_value_in_hsv(severity):
    x = scene(1, 3, 5, 5)
    x[..., 0, 0] = 0
    c = CONSTANTS["imagenet_c"]["brightness"][severity - 1]
    y = corrupt("brightness", x, severity, constants="imagenet_c")
    for before, after in zip(x[0].flatten(1).T.tolist(), y[0].flatten(1).T.tolist(), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*before)
        assert after == pytest.approx(colorsys.hsv_to_rgb(hue, saturation, min(value + c, 1)), abs=1e-6)


def test_brightness_adds_to_grey_pixels():
    x = scene(1, 1, 8, 8)
    torch.testing.assert_close(corrupt("brightness", x, 5), (x + 0.3).clamp(max=1))


def test_plasma_is_the_plain_diamond_square_algorithm():
    """Centres of squares, of upper edges and of left edges of a periodic map, one point at a time."""
    n, size, decay = 2, 8, 1.75
    fast, stream = plasma(n, 7, decay, generator(Key(3))), generator(Key(3))
    maps, step, spread = torch.zeros(n, size, size), size, 1.0
    while step > 1:
        half, cells = step // 2, size // step
        for top, left, reach in [(half, half, None), (0, half, half), (half, 0, half)]:
            deviates = spread * (2 * torch.rand(n, cells, cells, generator=stream) - 1)
            corner = [(-half, -half), (-half, half), (half, -half), (half, half)]
            around = corner if reach is None else [(-half, 0), (half, 0), (0, -half), (0, half)]
            for i, j in itertools.product(range(cells), repeat=2):
                row, column = top + i * step, left + j * step
                near = sum(maps[:, (row + a) % size, (column + b) % size] for a, b in around)
                maps[:, row, column] = near / 4 + deviates[:, i, j]
        step, spread = half, spread / decay**2
    for image in range(n):
        low, high = maps[image].min(), maps[image].max()
        torch.testing.assert_close(fast[image], (maps[image] - low) / (high - low), rtol=0, atol=1e-5)


def test_fog_is_plasma_dimmed_by_the_brightest_element():
    x = scene(2, 3, 20, 28) * torch.tensor([0.5, 1]).view(2, 1, 1, 1)
    density, decay = CONSTANTS["cifar_c"]["fog"][3]
    haze = plasma(2, 28, decay, replayed("fog", 4))
    assert haze.shape == (2, 32, 32) and haze.amin() == 0 and haze.amax() == 1
    brightest = x.flatten(1).max(1).values.view(2, 1, 1, 1)
    expected = (x + density * haze[:, None, :20, :28]) * brightest / (brightest + density)
    torch.testing.assert_close(corrupt("fog", x, 4), expected.clamp(0, 1))


# ---------------------------------------------------------------- digital


@pytest.mark.parametrize(("constants", "severity"), [("cifar_c", 1), ("cifar_c", 2), ("imagenet_c", 2)])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (13, 19), (5, 4)])
def test_elastic_transform_is_an_affine_map_and_a_displacement_by_scipy(height, width, constants, severity):
    x = scene(2, 1, height, width)
    side = min(height, width)
    size, sigma, shift = (side * c for c in CONSTANTS[constants]["elastic_transform"][severity - 1])
    stream = replayed("elastic_transform", severity)
    shifts = shift * (2 * torch.rand(2, 3, 2, generator=stream, dtype=torch.float64).numpy() - 1)
    fields = 2 * torch.rand(2, 2, height, width, generator=stream).double().numpy() - 1
    rows, columns = np.mgrid[:height, :width]
    arm = max(side // 3, 1)
    expected = []
    for image in range(2):
        points = np.array([width // 2, height // 2]) + arm * np.array([[1, 1], [1, -1], [-1, -1]])
        # The matrix that moves the points; the pixel at a place comes from where its inverse points to.
        system, ends = np.column_stack([points, np.ones(3)]), points + shifts[image]
        forwards = np.vstack([np.linalg.solve(system, ends).T, [0, 0, 1]])
        source = np.linalg.inv(forwards) @ np.stack([columns.ravel(), rows.ravel(), np.ones(rows.size)])
        places = source[1::-1].reshape(2, height, width)
        moved = ndimage.map_coordinates(x[image, 0].double().numpy(), places, order=1, mode="mirror")
        right, down = (size * ndimage.gaussian_filter(f, sigma, mode="reflect", truncate=3) for f in fields[image])
        expected.append(ndimage.map_coordinates(moved, [rows + down, columns + right], order=1, mode="reflect"))
    y = corrupt("elastic_transform", x, severity, constants=constants)
    np.testing.assert_allclose(y[:, 0].numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("constants", CONSTANTS)
@pytest.mark.parametrize(("height", "width"), [(28, 28), (32, 32), (13, 25), (2, 1)])
def test_pixelate_is_pillow_box(height, width, constants):
    x = torch.rand(1, 1, height, width, generator=torch.Generator().manual_seed(0))
    for severity in SEVERITIES:
        c = CONSTANTS[constants]["pixelate"][severity - 1]
        small = max(int(width * c), 1), max(int(height * c), 1)
        image = Image.fromarray(x[0, 0].numpy()).resize(small, Image.Resampling.BOX)
        expected = np.asarray(image.resize((width, height), Image.Resampling.BOX))
        y = corrupt("pixelate", x, severity, constants=constants)
        np.testing.assert_allclose(y[0, 0].numpy(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("channels", "constants"), [(1, "cifar_c"), (3, "cifar_c"), (1, "imagenet_c"), (3, "imagenet_c")]
)
def test_jpeg_compression_is_a_file_of_its_quality(channels, constants):
    x = scene(2, channels, 32, 32)
    for severity in SEVERITIES:
        y = corrupt("jpeg_compression", x, severity, constants=constants)
        for before, after in zip(x, y, strict=True):
            levels = (before * 255).round().byte().permute(1, 2, 0).numpy()
            file = io.BytesIO()
            quality = CONSTANTS[constants]["jpeg_compression"][severity - 1]
            Image.fromarray(levels.squeeze()).save(file, "JPEG", quality=quality)
            expected = np.asarray(Image.open(file), dtype=np.float32).reshape(levels.shape) / 255
            np.testing.assert_array_equal(after.permute(1, 2, 0).numpy(), expected)
