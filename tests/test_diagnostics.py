"""Gradient quality: what `diagnose` reports is what is there, a planted bias included."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from tqdm import tqdm

from glr_dist import cli, config
from glr_dist.diagnostics import Diagnosis, diagnose, diagnosis
from glr_dist.diagnostics.estimates import Networks, cosines_of, draws_of, reference_of
from glr_dist.errors import CheckpointError, ConfigError
from glr_dist.estimators.feedback import Feedback
from glr_dist.figures import draw
from glr_dist.glr import GLR
from glr_dist.training import checkpoint
from glr_dist.training.train import train

SMALL = (
    "model.activation=sigmoid",
    "diagnose.batch=24",
    "diagnose.copies=[8]",
    "diagnose.draws=20",
    "diagnose.reference_passes=400",
)
Z = 4.5  # standard errors


@pytest.fixture
def run(tiny, tmp_path):
    """`run(*overrides)`: a small diagnosis."""
    return lambda *overrides: diagnose(tiny(*SMALL, *overrides), tmp_path / "out")


@pytest.fixture(scope="module")
def measured(tiny, tmp_path_factory) -> tuple[Path, Diagnosis]:
    out = tmp_path_factory.mktemp("diagnose") / "out"
    return out, diagnose(tiny(*SMALL, "diagnose.copies=[2, 8, 64]", "diagnose.passes=[1, 4]"), out)


# ---------------------------------------------------------------- what is written


def test_the_folder_holds_the_report_the_picture_and_the_config(measured, tiny):
    out, report = measured
    assert sorted(path.name for path in out.iterdir()) == [
        "diagnose.json",
        "diagnose.pdf",
        "diagnose.png",
        "diagnose.yaml",
    ]
    written = json.loads((out / "diagnose.json").read_text())
    assert written["estimator"] == "conditional"
    assert written["reference"] == "pathwise"
    assert written["reference_error"] == report.reference_error
    assert len(written["qualities"]) == len(report.qualities)
    for row in written["qualities"]:
        assert row.keys() == {
            "site", "copies", "passes", "cosine", "cosine_error", "bias", "bias_error", "variance", "forward_passes",
            "milliseconds", "allotted",
        }  # fmt: skip
    overrides = ["diagnose.copies=[2, 8, 64]", "diagnose.passes=[1, 4]"]
    assert config.load_config(out / "diagnose.yaml") == tiny(*SMALL, *overrides)


@pytest.mark.slow
@pytest.mark.usefixtures("pictures")
def test_the_picture_is_a_png(measured, tmp_path):
    assert draw(tmp_path / "diagnose.png", lambda: diagnosis.diagnosis_figure(measured[1]))
    assert (tmp_path / "diagnose.png").read_bytes().startswith(b"\x89PNG")


def test_every_site_is_measured_at_every_k_and_m(measured):
    rows = {(row.site, row.copies, row.passes) for row in measured[1].qualities}
    assert rows == {(site, copies, passes) for site in "13" for copies in (2, 8, 64) for passes in (1, 4)}
    assert len(measured[1].qualities) == len(rows)


def test_the_table_has_a_line_for_each_row(measured):
    _, report = measured
    first, head, *lines = str(report).splitlines()
    assert "conditional" in first
    assert "pathwise" in first
    assert [word in head for word in ("site", "K", "M", "cosine", "relative bias", "variance")] == [True] * 6
    assert len(lines) == len(report.qualities) + len(report.recommendations)
    assert lines[len(report.qualities)].startswith("for cosine 0.95 at every site: estimator.copies=")


def test_the_numbers_lie_in_their_ranges(measured):
    for row in measured[1].qualities:
        assert -1 <= row.cosine - Z * row.cosine_error <= 1
        assert row.cosine_error > 0
        assert row.bias_error > 0
        assert row.variance > 0
        assert row.milliseconds > 0
        assert math.isfinite(row.forward_passes)
    for error in measured[1].reference_error.values():
        assert 0 < error < 1


def test_the_first_site_costs_more_than_its_copies_of_the_head_and_cost_grows_with_k_and_m(measured):
    cost = {(row.copies, row.passes): row.forward_passes for row in measured[1].qualities}
    assert cost[2, 1] < cost[8, 1] < cost[64, 1]
    assert cost[8, 4] == pytest.approx(4 * cost[8, 1])


# ---------------------------------------------------------------- what is recommended


def test_the_recommendation_is_written_with_its_figures(measured):
    out, report = measured
    first, *others = report.recommendations
    written = json.loads((out / "diagnose.json").read_text())["recommendations"]
    assert len(written) == 1 + len(others)
    assert written[0]["forward_passes"] == first.forward_passes
    assert written[0]["copies"] == first.copies
    assert first.head == "sampled"
    assert set(first.cosines) == {"1", "3"}
    assert all(cosine >= 0.95 for cosine in first.cosines.values())


@pytest.mark.long
@pytest.mark.montecarlo
@pytest.mark.parametrize(
    "overrides",
    [(), ("model.activation=threshold", "training.loss=zero_one", "diagnose.cosine=0.9")],
    ids=str,
)
def test_the_recommended_options_reach_the_cosine_at_every_site(tiny, tmp_path, overrides):
    """Measured on independent estimates: at least the cosine minus 4.5 standard errors and 0.01 for the reference."""
    chosen = (*SMALL, "diagnose.reference_passes=4000", *overrides)
    report = diagnose(tiny(*chosen), tmp_path / "first")
    networks = Networks(tiny(*chosen), None)
    batch = networks.batch(tqdm(disable=True))
    _, reference = reference_of(tiny(*chosen), networks.net, batch)
    for found in report.recommendations:
        options = [option.replace("'", "") for option in found.options()]
        applied = tiny(*chosen, *options)
        assert applied.estimator.redraw == "copies" or "redraw" in found.changed
        net = networks.net(applied)
        estimates, _ = draws_of(net, batch, 20)
        assert net.cost(batch.x, batch.y, batch.loss)[1] == pytest.approx(found.forward_passes)
        for site, g in estimates.items():
            cosines = cosines_of(g, reference[site])
            error = (cosines.std() / len(cosines) ** 0.5).item()
            assert cosines.mean().item() >= found.cosine - Z * error - 0.01, (site, options)
            assert cosines.mean().item() <= found.cosines[site] + Z * error + 0.03, (site, options)
    costs = [found.forward_passes for found in report.recommendations]
    assert costs == sorted(costs, reverse=True)


@pytest.mark.long
def test_a_better_head_is_recommended_where_it_saves_passes(run):
    report = run("model.activation=threshold", "training.loss=zero_one", "diagnose.reference_passes=4000")
    plain, *others = report.recommendations
    assert plain.changed == ()
    assert any("estimator.head=auto" in str(found) for found in others)
    assert others[-1].forward_passes < 0.8 * plain.forward_passes


@pytest.mark.slow
@pytest.mark.parametrize("options", [["estimator.name=joint"], ["estimator.sampler=sobol"], ["estimator.share=0.5"]])
def test_nothing_is_recommended_where_the_variance_has_no_known_law(run, options):
    report = run(*options, "diagnose.draws=2")
    assert report.recommendations == ()
    assert "for cosine" not in str(report)


@pytest.mark.slow
def test_an_allotted_budget_has_rows_of_its_own(run):
    budget = ("estimator.copies=auto", "estimator.passes=auto", "estimator.redraw=auto", "estimator.budget=10")
    report = run(*budget, "diagnose.draws=4")
    rows = [row for row in report.qualities if row.allotted]
    assert {row.site for row in rows} == {"1", "3"}
    assert all(row.forward_passes <= 10 for row in rows)
    assert len(report.qualities) == 4


# ---------------------------------------------------------------- what is measured


def test_more_copies_and_passes_bring_the_estimate_closer_to_the_gradient(measured):
    for site in "13":
        rows = {(row.copies, row.passes): row for row in measured[1].qualities if row.site == site}
        for few, many in (((2, 1), (8, 1)), ((8, 1), (64, 1)), ((8, 1), (8, 4))):
            assert rows[many].cosine > rows[few].cosine
            assert rows[many].variance < rows[few].variance
        assert rows[64, 4].cosine > 0.9


def test_an_unbiased_estimator_shows_no_bias(measured):
    for row in measured[1].qualities:
        assert abs(row.bias) <= Z * row.bias_error


@pytest.mark.slow
@pytest.mark.parametrize("factor", [1.3, pytest.param(0.8, marks=pytest.mark.long)])
def test_a_factor_on_every_estimate_shows_as_a_relative_bias(run, monkeypatch, factor):
    gradients = GLR.gradients

    def scaled(self: GLR, *arguments: object) -> object:
        total = gradients(self, *arguments)
        if self.options.name == "conditional":  # not the reference
            total.grads = {name: factor * grad for name, grad in total.grads.items()}
        return total

    monkeypatch.setattr(GLR, "gradients", scaled)
    for row in run("diagnose.copies=[200]", "diagnose.passes=[4]", "diagnose.reference_passes=1000").qualities:
        assert row.bias == pytest.approx(factor - 1, abs=Z * row.bias_error)
        assert row.bias_error < abs(factor - 1) / 2 / Z  # precise enough to tell it from no bias


@pytest.mark.slow
def test_another_objective_shows_as_a_bias(run):
    # `layerwise` estimates another objective than J: with much noise it shows.
    report = run("estimator.name=layerwise", "noise.scale=3", "diagnose.copies=[200]", "diagnose.reference_passes=2000")
    (first, _) = report.qualities
    assert first.site == "1"
    assert abs(first.bias) > Z * first.bias_error


@pytest.mark.slow
def test_a_longer_reference_has_a_smaller_error(run):
    cheap = ("diagnose.copies=[2]", "diagnose.draws=2")
    few = run(*cheap, "diagnose.reference_passes=40").reference_error
    many = run(*cheap, "diagnose.reference_passes=1000").reference_error
    for site in few:
        assert many[site] < few[site] / 2  # five times smaller, up to chance


@pytest.mark.slow
def test_the_same_seed_gives_the_same_numbers(run):
    def numbers(report: Diagnosis) -> list[tuple[float, ...]]:
        return [(row.cosine, row.bias, row.variance) for row in report.qualities]

    small = ("diagnose.draws=4", "diagnose.reference_passes=40")
    first = numbers(run(*small))
    assert numbers(run(*small, "execution.threads=1")) == first
    assert numbers(run(*small, "seed=1")) != first


# ---------------------------------------------------------------- references


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "reference"),
    [
        ([], "pathwise"),
        (["model.activation=threshold"], "joint"),
        (["model.activation=threshold", "estimator.name=joint"], "conditional"),
        (["training.loss=zero_one"], "joint"),
        (["training.loss=zero_one", "estimator.name=layerwise"], "conditional"),
        (["diagnose.reference=joint"], "joint"),
        (["estimator={name: pathwise}"], "pathwise"),
    ],
    ids=str,
)
def test_the_reference_is_one_that_the_network_and_the_loss_allow(run, overrides, reference):
    report = run(*overrides, "diagnose.draws=2", "diagnose.reference_passes=40")
    assert report.reference == reference
    assert {row.site for row in report.qualities} == {"1", "3"}


@pytest.mark.slow
def test_a_threshold_network_shows_no_bias_against_the_other_estimator(run):
    report = run("model.activation=threshold", "diagnose.copies=[64]", "diagnose.reference_passes=20000")
    for row in report.qualities:
        assert abs(row.bias) <= Z * row.bias_error
        assert row.bias_error < 0.5


def test_a_reference_that_the_network_refuses_is_an_error(run):
    with pytest.raises(ConfigError, match=r"diagnose\.reference: .*autograd gives no gradient") as caught:
        run("model.activation=threshold", "diagnose.reference=pathwise")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["diagnose.copies=[3]"], "3 is odd"),
        (["diagnose.passes=[2]", "estimator.name=joint"], "'joint'"),
        (["diagnose.passes=[2]", "estimator.name=layerwise"], "'layerwise'"),
    ],
    ids=str,
)
def test_a_k_or_m_that_the_estimator_refuses_is_an_error_before_anything_is_written(run, tmp_path, overrides, said):
    with pytest.raises(ConfigError, match=said):
        run(*overrides)
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- at a checkpoint


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    train(tiny("model.activation=sigmoid", "noise.learn=unit", "model.dropout=0.1"), out)
    return out / "checkpoints" / checkpoint.name_of(3)


@pytest.mark.slow
def test_it_measures_at_a_checkpoint_with_learned_scales_and_dropout(tiny, tmp_path, trained):
    settings = tiny(*SMALL, "noise.learn=unit", "model.dropout=0.1", "diagnose.reference_passes=200")
    initial = diagnose(settings, tmp_path / "initial")
    later = diagnose(settings, tmp_path / "later", trained)
    assert [row.site for row in later.qualities] == [row.site for row in initial.qualities]
    assert [row.cosine for row in later.qualities] != [row.cosine for row in initial.qualities]
    for row in later.qualities:
        assert abs(row.bias) <= Z * row.bias_error


@pytest.mark.slow
def test_it_measures_at_the_scale_that_the_schedule_has_at_the_checkpoint(tiny, tmp_path):
    scheduled = ["noise.scale=0.9", "noise.schedule={1: 0.6, 2: 0.2}"]
    train(tiny(*scheduled, "training.epochs=4"), tmp_path / "run")
    weights = tmp_path / "run" / "checkpoints" / checkpoint.name_of(4)
    small = (*SMALL, "diagnose.draws=4", "diagnose.reference_passes=40")
    found = diagnose(tiny(*small, *scheduled), tmp_path / "scheduled", weights)
    plain = diagnose(tiny(*small, "noise.scale=0.2"), tmp_path / "plain", weights)
    assert [row.cosine for row in found.qualities] == [row.cosine for row in plain.qualities]


def test_a_checkpoint_of_another_network_is_an_error(tiny, tmp_path, trained):
    with pytest.raises(ConfigError, match="belongs to another network") as caught:
        diagnose(tiny(*SMALL, "model.hidden=[9]", "noise.learn=unit"), tmp_path / "out", trained)
    assert "\n" not in str(caught.value)


def test_a_damaged_checkpoint_is_named(tiny, tmp_path, trained):
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(trained.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"damaged\.pt"):
        diagnose(tiny(*SMALL, "noise.learn=unit"), tmp_path / "out", damaged)


@pytest.mark.parametrize("kind", ["missing", "a folder", "another file", "another network"])
def test_a_wrong_checkpoint_is_one_line_and_exit_code_2(capsys, tiny_yaml, tmp_path, trained, kind):
    file = tmp_path / "file"
    file.write_text("text")
    path = {"a folder": tmp_path, "another file": file, "another network": trained}.get(kind, tmp_path / "no.pt")
    out = tmp_path / "out"
    assert cli.main(["diagnose", str(tiny_yaml), *SMALL, "--out", str(out), "--checkpoint", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(path) in line


@pytest.mark.slow
def test_the_command_prints_the_table(capsys, tiny_yaml, tmp_path):
    small = ["diagnose.draws=2", "diagnose.reference_passes=40"]
    assert cli.main(["diagnose", str(tiny_yaml), *SMALL, *small, "--out", str(tmp_path / "out")]) == 0
    said, errors = capsys.readouterr()
    assert errors == ""
    assert said.splitlines()[-1] == f"results  {tmp_path / 'out'}"
    told = [line for line in said.splitlines() if line.startswith("for cosine")]
    assert 1 <= len(told) <= 3  # as configured, and what needs fewer passes
    assert len(said.splitlines()) == 2 + 2 + len(told) + 1


def test_a_constant_estimator_draws_its_picture_without_a_warning(tiny, tmp_path, recwarn):
    # Without noise all estimates are one: their variance is 0, which no logarithm shows.
    report = diagnose(tiny(*SMALL, "estimator={name: pathwise}", "noise.law=none"), tmp_path / "out")
    for row in report.qualities:
        assert row.cosine == pytest.approx(1, abs=1e-5)
        assert row.bias == pytest.approx(0, abs=1e-5)
        assert row.variance == pytest.approx(0, abs=1e-9)
    assert [str(warning.message) for warning in recwarn] == []


@pytest.mark.long
def test_the_table_tells_where_redraws_stay_inside_a_column_space(run, tmp_path):
    report = run(
        "model={name: vgg8, width: 2, activation: relu}",
        'estimator.redraw={"0": column_space, "*": copies}',
        "diagnose.draws=2",
    )
    assert report.spaces == {"0": 20}
    assert "redraws inside the column space of 0 (20 dimensions), reference" in str(report)
    assert json.loads((tmp_path / "out" / "diagnose.json").read_text())["spaces"] == {"0": 20}


@pytest.mark.slow
def test_a_checkpoint_brings_the_maps_of_its_control_variate(tiny, tmp_path, monkeypatch):
    settings = tiny(*SMALL, "estimator.feedback=control_variate", "training.epochs=2", "diagnose.draws=2")
    train(settings, tmp_path / "run")
    weights = checkpoint.newest(tmp_path / "run" / "checkpoints")[0]
    with_maps = diagnose(settings, tmp_path / "with", weights)
    monkeypatch.setattr(Feedback, "load", lambda *_: None)
    without = diagnose(settings, tmp_path / "without", weights)
    assert with_maps.reference_error == without.reference_error
    assert all(a.cosine != b.cosine for a, b in zip(with_maps.qualities, without.qualities, strict=True))
