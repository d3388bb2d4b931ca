"""Grids of noise scales and copies: their figures, their recommendation, and what the command prints."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import pty
import re
import struct
import termios
from pathlib import Path

import pytest
import torch

from glr_dist import cli, config
from glr_dist.diagnostics import Grid, diagnose_grid
from glr_dist.diagnostics.grid import CLEAN, SMALLEST
from glr_dist.diagnostics.grid_picture import grid_figure
from glr_dist.diagnostics.grid_table import grid_table
from glr_dist.diagnostics.pairs import Cosine, Pair, advice, recommended
from glr_dist.figures import draw
from glr_dist.training import checkpoint
from glr_dist.training.train import train

SMALL = (
    "model.activation=sigmoid",
    "diagnose.batch=24",
    "diagnose.copies=[2, 64, 8]",
    "diagnose.scales=[3, 0.1]",
    "diagnose.draws=12",
    "diagnose.reference_passes=400",
)


@pytest.fixture(scope="module")
def measured(tiny, tmp_path_factory) -> tuple[Path, Grid]:
    out = tmp_path_factory.mktemp("grid") / "out"
    return out, diagnose_grid(tiny(*SMALL), out)


@pytest.fixture
def run(tiny, tmp_path):
    """`run(*overrides)`: a small grid."""
    return lambda *overrides: diagnose_grid(tiny(*SMALL, *overrides), tmp_path / "out")


def pair(scale: float, copies: int, cosine: float, passes: float) -> Pair:
    found = Cosine(cosine, 0.01)
    return Pair(scale, copies, found, found, 1.0, passes, 1.0, {"1": found})


# ---------------------------------------------------------------- what is measured


def test_every_pair_is_measured_in_order(measured):
    _, grid = measured
    assert [(p.scale, p.copies) for p in grid.pairs] == [(s, k) for s in (0.1, 3.0) for k in (2, 8, 64)]
    assert all(p.sites.keys() == {"1", "3"} for p in grid.pairs)
    assert grid.target == CLEAN
    assert grid.references == {0.1: "pathwise", 3.0: "pathwise"}


def test_copies_lower_the_variance_and_raise_both_cosines(measured):
    by_scale = {scale: [p for p in measured[1].pairs if p.scale == scale] for scale in (0.1, 3.0)}
    for rows in by_scale.values():
        for few, many in itertools.pairwise(rows):
            assert many.cosine.mean > few.cosine.mean
            assert many.target_cosine.mean > few.target_cosine.mean
            assert many.variance < few.variance
            assert many.forward_passes > few.forward_passes


@pytest.mark.slow
def test_a_larger_scale_is_farther_from_the_gradient_without_noise(run):
    # Smoothing, which no K removes: far more of it where the weights are large.
    overrides = ("model.init_scale=8", "diagnose.copies=[400]", "diagnose.draws=2", "diagnose.scales=[0.1, 6]")
    small, large = run(*overrides).pairs
    assert small.target_cosine.mean > 0.98
    assert large.cosine.mean - large.target_cosine.mean > 0.1


@pytest.mark.slow
def test_the_target_is_the_gradient_of_autograd_without_noise(tiny, tmp_path):
    # With many copies at a tiny σ, the estimate is that gradient.
    settings = tiny(
        *SMALL, "diagnose.reference_passes=40", "diagnose.scales=[0.001]", "diagnose.copies=[2000]", "diagnose.draws=2"
    )
    (found,) = diagnose_grid(settings, tmp_path / "out").pairs
    assert found.target_cosine.mean > 0.99


def test_the_mean_over_the_sites_is_that_of_their_cosines(measured):
    for p in measured[1].pairs:
        assert p.target_cosine.mean == pytest.approx(sum(site.mean for site in p.sites.values()) / 2)


@pytest.mark.slow
def test_threshold_units_are_compared_with_the_smallest_scale(run):
    grid = run("model.activation=threshold", "diagnose.reference_passes=400", "diagnose.draws=4")
    assert grid.target == SMALLEST
    assert set(grid.references.values()) == {"joint"}
    for p in grid.pairs:
        if p.scale == 0.1:
            assert p.target_cosine == p.cosine
    assert "the target favours the smallest σ: choose σ by accuracy" in str(grid).splitlines()[-1]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_numbers(run):
    def numbers(grid: Grid) -> list[tuple[Cosine, Cosine]]:
        return [(p.cosine, p.target_cosine) for p in grid.pairs]

    small = ("diagnose.copies=[2]", "diagnose.draws=2", "diagnose.reference_passes=40")
    first = numbers(run(*small))
    assert numbers(run(*small, "execution.threads=1")) == first
    assert numbers(run(*small, "seed=1")) != first


@pytest.mark.slow
def test_scales_of_the_grid_replace_those_of_the_configuration(run):
    small = ("diagnose.copies=[2]", "diagnose.draws=2", "diagnose.reference_passes=40")
    plain = [p.cosine for p in run(*small).pairs]
    for own in (
        ["noise.scale=9"],
        ["noise.scale={'1': 2, '*': 3}"],
        ["noise.learn=unit"],
        ["noise.schedule={1: 0.7}"],
    ):
        assert [p.cosine for p in run(*small, *own).pairs] == plain


@pytest.mark.slow
def test_it_measures_at_a_checkpoint_and_at_the_weights_of_a_warm_start(tiny, tmp_path):
    train(tiny("model.activation=sigmoid", "noise.learn=unit", "model.dropout=0.1"), tmp_path / "run")
    weights = tmp_path / "run" / "checkpoints" / checkpoint.name_of(3)
    small = (*SMALL, "diagnose.copies=[2]", "diagnose.draws=2", "diagnose.reference_passes=40", "model.dropout=0.1")
    found = {
        name: [p.cosine for p in diagnose_grid(tiny(*small, *own), tmp_path / name, path).pairs]
        for name, own, path in (
            ("initial", [], None),
            ("checkpoint", [], weights),
            ("warm", [f"model.weights={tmp_path / 'run'}"], None),
        )
    }
    assert found["checkpoint"] == found["warm"] != found["initial"]


# ---------------------------------------------------------------- the recommendation


def test_the_fewest_passes_that_reach_95_percent_of_the_highest_cosine_are_recommended():
    pairs = [
        pair(0.1, 10, 0.80, 2), pair(0.1, 20, 0.86, 4), pair(0.1, 40, 0.90, 8),
        pair(0.5, 10, 0.70, 2), pair(0.5, 20, 0.88, 4), pair(0.5, 40, 0.89, 8),
        pair(1.0, 10, 0.60, 2), pair(1.0, 20, 0.65, 4), pair(1.0, 40, 0.70, 8),
    ]  # fmt: skip
    chosen = recommended(pairs)
    assert chosen is pairs[4]  # 0.855 is enough: 20 copies, and of those the higher cosine
    line = advice(pairs, chosen, clean=True)
    assert line == ("recommended: noise.scale=0.5 estimator.copies=20, 98 % of the highest target cosine in 4.0 passes")


@pytest.mark.parametrize(("best", "word"), [(0.1, "smaller"), (1.0, "larger")])
def test_a_recommendation_at_the_edge_of_the_grid_says_so(best, word):
    pairs = [pair(scale, 10, 0.9 if scale == best else 0.5, 2) for scale in (0.1, 0.5, 1.0)]
    assert advice(pairs, recommended(pairs), clean=True).endswith(f"; try {word} diagnose.scales too")


def test_pairs_without_a_figure_are_never_recommended():
    pairs = [pair(0.1, 10, float("nan"), 1), pair(0.5, 10, 0.5, 2), pair(0.5, 20, -0.1, 1)]
    assert recommended(pairs) is pairs[1]
    assert recommended(pairs[:1]) is None
    assert "raise diagnose.reference_passes" in advice(pairs[:1], None, clean=True)
    assert recommended(pairs[2:]) is None
    assert "raise diagnose.copies" in advice(pairs[2:], None, clean=True)


# ---------------------------------------------------------------- what is written


@pytest.mark.slow
@pytest.mark.usefixtures("pictures")
def test_the_picture_is_a_png(tmp_path):
    pairs = [pair(0.1, 10, 0.80, 2), pair(0.1, 20, float("nan"), 4), pair(0.5, 10, 0.70, 2), pair(0.5, 20, 0.88, 4)]
    for chosen in (pairs[0], None):
        assert draw(tmp_path / "grid.png", lambda chosen=chosen: grid_figure(pairs, chosen))
        assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")


def test_the_folder_holds_the_figures_the_picture_and_the_config(measured, tiny):
    out, grid = measured
    assert sorted(path.name for path in out.iterdir()) == ["diagnose.yaml", "grid.json", "grid.pdf", "grid.png"]
    written = json.loads((out / "grid.json").read_text())
    assert written["target"] == CLEAN
    assert [(p["scale"], p["copies"]) for p in written["pairs"]] == [(p.scale, p.copies) for p in grid.pairs]
    for row in written["pairs"]:
        assert row.keys() == {
            "scale", "copies", "cosine", "target_cosine", "variance", "forward_passes", "milliseconds", "sites",
        }  # fmt: skip
    assert written["recommended"] in written["pairs"]
    assert written["reference_errors"]["0.1"].keys() == {"1", "3"}
    assert config.load_config(out / "diagnose.yaml") == tiny(*SMALL)


def test_the_table_has_a_line_for_each_pair_and_marks_the_recommended_one(measured):
    _, grid = measured
    reference, target, head, *rows, advised = str(grid).splitlines()
    assert "conditional" in reference
    assert "pathwise" in reference
    assert target == f"target: {CLEAN}"
    assert head.split() == ["σ", "K", "target", "cosine", "passes", "cosine", "variance", "ms"]
    assert len(rows) == len(grid.pairs)
    (marked,) = [row for row in rows if row.endswith(" *")]
    assert grid.recommended is not None
    assert marked.split()[:2] == [f"{grid.recommended.scale:g}", str(grid.recommended.copies)]
    assert advised.startswith("recommended: noise.scale=")


@pytest.mark.parametrize("columns", [None, 200, 80, 72, 60, 44])
def test_the_table_is_no_wider_than_the_terminal(measured, columns):
    pairs, chosen = measured[1].pairs, measured[1].recommended
    *table, _ = grid_table(pairs, chosen, clean=True, columns=columns)
    assert max(map(len, table)) <= (columns or 80)
    for row, p in zip(table[1:], pairs, strict=True):
        assert row.split()[:3] == [f"{p.scale:g}", str(p.copies), f"{p.target_cosine.mean:.4f}"]


def test_the_colours_also_differ_in_grey_print():
    from matplotlib import colormaps

    from glr_dist.diagnostics.grid_picture import _COLOURS

    red, green, blue, _ = torch.tensor(colormaps[_COLOURS](range(256))).T
    lightness = 0.299 * red + 0.587 * green + 0.114 * blue
    assert (lightness.diff() > -1e-2).all()
    assert lightness[-1] - lightness[0] > 0.6


# ---------------------------------------------------------------- the command


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["estimator={name: pathwise}"], "--grid: estimator.name 'pathwise' does not redraw noise"),
        (["diagnose.copies=[3]"], "3 is odd"),
        (["diagnose.scales=[0.1, -1]"], "diagnose.scales.1: -1 is not allowed"),
        (["diagnose.scales=[]"], "diagnose.scales"),
    ],
    ids=str,
)
def test_a_wrong_grid_is_one_line_before_anything_is_written(capsys, tiny_yaml, tmp_path, overrides, said):
    out = tmp_path / "out"
    assert cli.main(["diagnose", str(tiny_yaml), "--grid", *SMALL, *overrides, "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not out.exists()


@pytest.mark.long
def test_a_terminal_shows_a_bar_and_a_table_that_fits(start, tiny_yaml, tmp_path):
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    small = [*SMALL, "diagnose.draws=2", "diagnose.reference_passes=40"]
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    command = ("diagnose", tiny_yaml, "--grid", *small, "--out", tmp_path / "out")
    process = start(*command, stdout=child, stderr=child, env=environment)
    os.close(child)
    printed = b""
    while True:
        try:
            part = os.read(parent, 4096)
        except OSError:  # the other side is closed
            break
        if not part:
            break
        printed += part
    os.close(parent)
    assert process.wait(timeout=60) == 0, printed.decode()
    text = printed.decode()
    assert "diagnose: 100%" in text
    rows = [line for line in re.split(r"[\r\n]+", text) if re.match(r"\s+(0\.1|3)\s+\d+\s", line)]
    assert len(rows) == 6
    assert max(map(len, rows)) <= 60
