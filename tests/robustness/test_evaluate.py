"""Evaluations: contents of the report, reproducibility, continuation after a stop, and refusals."""

from __future__ import annotations

import json

import pytest

from glr_dist.errors import CheckpointError, ConfigError, UserError
from glr_dist.robustness import evaluate as command
from glr_dist.robustness.conditions import conditions_of
from glr_dist.robustness.evaluate import evaluate
from glr_dist.robustness.ledger import Ledger
from glr_dist.robustness.measurement import Measurement
from glr_dist.robustness.report import FILE, read_report
from glr_dist.robustness.suite import load_suite
from glr_dist.training import checkpoint

SMALL = (
    "block=64",
    "surrogate.training.epochs=2",
    "corruptions.names=[gaussian_noise, contrast]",
    "corruptions.severities=[1, 5]",
    "attacks=[{name: random_sign, eps: 0.2}, {name: fgsm, eps: 0.2}, {name: pgd, eps: 0.2, steps: 5},"
    " {name: lbfgs, examples: 40, iterations: 8, searches: 5}, {name: square, eps: 0.2, queries: 60, examples: 70}]",
)
PICTURES = ("robustness_eps.png", "robustness_severity.png", "robustness_images.png")


FAST = "attacks=[{name: fgsm, eps: 0.2}, {name: square, eps: 0.2, queries: 60, examples: 70}]"
ATTACKS = "{name: pgd, eps: 0.2, steps: 3}, {name: lbfgs, examples: 20}, {name: square, eps: 0.2, queries: 300}"


def small(*overrides):
    return load_suite("quick", [*SMALL, *overrides])


def by_label(report):
    return {(a.attack, a.threat): a for a in report.attacks}


@pytest.fixture
def blocks(monkeypatch):
    """Counts the measured blocks; `blocks.stop_at = n` simulates Ctrl-C during block n."""

    class Counter:
        measured = 0
        stop_at = None

    original = command.measure

    def measure(*arguments):
        if Counter.measured == Counter.stop_at:
            raise KeyboardInterrupt
        Counter.measured += 1
        return original(*arguments)

    monkeypatch.setattr(command, "measure", measure)
    return Counter


# ---------------------------------------------------------------- contents of the report


def test_a_threshold_network_is_attacked_by_applicable_attacks_only(run):
    folder = run("threshold")
    (report,) = evaluate([folder], small("examples=300"))
    attacks = by_label(report)
    for name in ("fgsm", "pgd", "lbfgs"):
        refused = attacks[name, "white_box"]
        assert refused.rate is None
        assert "no gradient" in refused.reason
    noise = attacks["random_sign", "control"].rate.accuracy
    adaptive = attacks["pgd", "adaptive"].rate.accuracy
    assert adaptive < report.clean.accuracy - 0.2
    assert adaptive < noise - 0.05
    assert attacks["square", "black_box"].rate.examples == 70
    assert attacks["lbfgs", "transfer"].mean_l2_norm > 0
    whole, few = report.robust_accuracies
    assert (whole.rate.examples, few.rate.examples) == (300, 70)
    assert whole.rate.accuracy <= min(
        a.rate.accuracy for a in report.attacks if a.rate and a.eps and a.rate.examples == 300
    )
    assert len(report.corruptions) == 4
    assert report.corruption_errors.mean > 0
    assert all((folder / name).stat().st_size > 10_000 for name in PICTURES)
    page = (folder / "robustness.md").read_text()
    assert all(name in page for name in (*PICTURES, "not testable by this attack", "## Robust accuracy"))
    assert read_report(folder) == report
    assert not (folder / ".robustness.jsonl").exists()


def test_without_noise_the_adaptive_attack_equals_the_white_box_attack(run):
    suite = small("examples=128", "attacks=[{name: fgsm, eps: 0.1}]", "corruptions.names=[]")
    (report,) = evaluate([run("bp")], suite)
    attacks = by_label(report)
    assert attacks["fgsm", "adaptive"].rate == attacks["fgsm", "white_box"].rate
    assert attacks["fgsm", "white_box"].rate.accuracy < report.clean.accuracy - 0.2


def test_clean_accuracy_equals_that_of_the_run(run):
    folder = run("threshold")
    nothing = ("attacks=[]", "corruptions.names=[]", "examples=null")
    (report,) = evaluate([folder], small(*nothing))
    summary = json.loads((folder / "summary.json").read_text())
    assert report.clean.accuracy == summary["test_accuracy"]
    assert report.params_sha256 == summary["params_sha256"]
    (report,) = evaluate([folder], small(*nothing, "split=validation"))
    assert report.clean.accuracy == summary["validation_accuracy"]
    assert report.robust_accuracies == report.corruptions == ()


def test_predictions_by_vote_are_attacked_through_their_noise(run):
    few = ("examples=128", "corruptions.names=[]", f"attacks=[{ATTACKS}]", "inference={votes: 7, draws: 5}")
    (report,) = evaluate([run("threshold")], small(*few))
    (again,) = evaluate([run("threshold")], small(*few))
    assert again == report
    (silent,) = evaluate([run("threshold")], small(*few, "inference.votes=0"))
    assert report.clean != silent.clean
    assert abs(report.clean.accuracy - silent.clean.accuracy) < 0.1
    attacks = by_label(report)
    assert attacks["pgd", "white_box"].rate is None
    assert attacks["pgd", "adaptive"].rate.accuracy < report.clean.accuracy - 0.1
    assert "vote" in attacks["lbfgs", "white_box"].reason
    # One lucky pass must not stop the search, which uses the mean of several passes.
    square, before = attacks["square", "black_box"].rate, by_label(silent)["square", "black_box"].rate
    assert square.accuracy < before.accuracy + 0.15
    with pytest.raises(ConfigError, match=r"inference.votes: 7 .* has no noise"):
        evaluate([run("bp")], small(*few))


def test_corruption_errors_are_relative_to_the_named_baseline(run):
    folder = run("bp")
    suite = small("examples=128", "attacks=[]", f"baseline={folder}")
    (report,) = evaluate([folder], suite)
    assert all(result.rate == result.baseline for result in report.corruptions)
    assert report.corruption_errors.mean == 1


# ---------------------------------------------------------------- reproducibility


@pytest.mark.ray
def test_the_report_does_not_depend_on_the_number_of_actors(run, local_ray, monkeypatch):
    """Two evaluations in this process, one on one actor and one on two actors give the same bytes."""
    folder = run("threshold")
    contents = []
    for actors in (0, 0, 1, 2):
        evaluate([folder], small("examples=130"), actors=actors)
        contents.append((folder / FILE).read_bytes())
    assert len(set(contents)) == 1
    evaluate([folder], small("examples=130", "seed=1"))
    assert (folder / FILE).read_bytes() != contents[0]


def test_evaluating_several_runs_equals_evaluating_each(run):
    folders = [run("threshold"), run("bp")]
    suite = small("examples=70", "corruptions.names=[contrast]", FAST)
    together = evaluate(folders, suite)
    assert together == [evaluate([folder], suite)[0] for folder in folders]
    assert [report.run for report in together] == ["threshold", "bp"]


# ---------------------------------------------------------------- continuation


def test_an_evaluation_that_was_stopped_continues(run, blocks):
    folder, suite = run("threshold"), small("examples=130", FAST)
    (expected,) = evaluate([folder], suite)
    (folder / FILE).unlink()
    total, blocks.measured = blocks.measured, 0
    blocks.stop_at = total // 2
    with pytest.raises(KeyboardInterrupt):
        evaluate([folder], suite)
    assert not (folder / FILE).exists()
    kept = folder / ".robustness.jsonl"
    known = len(kept.read_text().splitlines()) - 1
    assert known > total // 4
    with kept.open("a") as file:
        file.write('["square/black_box/eps_0.2", 1, {"corr')  # killed while writing
    blocks.measured, blocks.stop_at = 0, None
    assert evaluate([folder], suite) == [expected]
    # Blocks of refused attacks may have been in flight.
    assert blocks.measured <= total - known + 8
    assert not kept.exists()


@pytest.mark.parametrize(
    "line",
    [
        "{",
        '["clean"]',
        '["clean", 0, {}]',
        '["clean", 9, {"correct": "1"}]',
        '["x", 0, {}]',
        '["clean", 0, {"a": 1}]',
        "\udcff",
    ],
)
def test_the_block_of_a_damaged_line_is_measured_again(run, blocks, line):
    folder, suite = run("threshold"), small("examples=64", "attacks=[]")
    (expected,) = evaluate([folder], suite)
    blocks.measured, blocks.stop_at = 0, 1
    with pytest.raises(KeyboardInterrupt):
        evaluate([folder], suite)
    kept = folder / ".robustness.jsonl"
    head = kept.read_text().splitlines()[0]
    kept.write_bytes(f"{head}\n{line}\n".encode(errors="surrogateescape"))
    blocks.stop_at = None
    assert evaluate([folder], suite) == [expected]


def test_untested_examples_are_counted_over_all_blocks(run, blocks):
    """Inactive units pass no gradient. The number of such images does not depend on blocks, threads or their order."""
    folder = run("bp")
    path = folder / "config.yaml"
    path.write_text(path.read_text().replace("activation: sigmoid", "activation: relu"))
    newest = max((folder / "checkpoints").iterdir())
    state = checkpoint.load(newest)
    state["network"]["model.1.bias"] -= 6  # most units are inactive for most images
    checkpoint.save(newest, state)
    reports = []
    for block in (1, 3, 64):
        suite = small("examples=64", "corruptions.names=[]", "attacks=[{name: fgsm, eps: 0.1}]", f"block={block}")
        (report,) = evaluate([folder], suite)
        reports.append([(a.threat, a.rate, a.untested, a.reason) for a in report.attacks])
    assert reports[0] == reports[1] == reports[2]
    assert 0 < reports[0][0][2] < 64
    assert reports[0][0][3]


def test_the_ledger_of_another_evaluation_is_not_used(run, blocks):
    folder = run("threshold")
    suite = small("examples=64", "attacks=[]")
    evaluate([folder], suite)
    total, blocks.measured, blocks.stop_at = blocks.measured, 0, 2
    with pytest.raises(KeyboardInterrupt):
        evaluate([folder], suite)
    blocks.measured, blocks.stop_at = 0, None
    evaluate([folder], small("examples=64", "attacks=[]", "seed=9"))
    assert blocks.measured == total


def test_a_finished_evaluation_is_measured_again(run, blocks):
    folder, suite = run("threshold"), small("examples=64", "attacks=[]")
    evaluate([folder], suite)
    total, blocks.measured = blocks.measured, 0
    evaluate([folder], suite)
    assert blocks.measured == total == 5


# ---------------------------------------------------------------- refusals


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is not a run"):
        evaluate([tmp_path], small())


def test_a_damaged_checkpoint_is_refused_though_an_older_one_is_whole(run):
    folder = run("threshold")
    older, newest = sorted((folder / "checkpoints").iterdir())
    assert older.name < newest.name
    newest.write_bytes(newest.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match=r"epoch-00012.pt: is not a whole checkpoint"):
        evaluate([folder], small())


def test_a_run_without_a_checkpoint_is_refused(run):
    folder = run("threshold")
    for path in (folder / "checkpoints").iterdir():
        path.unlink()
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        evaluate([folder], small())


def test_a_checkpoint_of_another_network_is_refused(run):
    folder = run("threshold")
    path = folder / "config.yaml"
    path.write_text(path.read_text().replace("- 32", "- 16"))
    with pytest.raises(CheckpointError, match="belongs to another network") as raised:
        evaluate([folder], small())
    assert "\n" not in str(raised.value)


def test_actors_and_a_gpu_do_not_go_together(run):
    with pytest.raises(UserError, match="--actors 0"):
        evaluate([run("bp")], small(), device="cuda:0", actors=1)


def test_an_input_that_bypasses_the_sites_refuses_the_adaptive_attacks(run, monkeypatch):
    """The report states the reason, and the other attacks run."""
    from glr_dist.errors import SiteError
    from glr_dist.robustness import subject

    def refuse(*_, **__):
        raise SiteError("no site owns the parameter '0.r'")

    monkeypatch.setattr(subject, "shifted", refuse)
    (report,) = evaluate([run("threshold")], small("examples=64", "corruptions.names=[]"))
    attacks = by_label(report)
    assert "0.r" in attacks["pgd", "adaptive"].reason
    assert attacks["pgd", "transfer"].rate is not None


def test_a_ledger_counts_the_missing_blocks(tmp_path):
    suite = small("examples=130", "attacks=[{name: fgsm, threats: [transfer]}]")
    conditions = conditions_of(suite, 500)
    ledger = Ledger.open(tmp_path / "ledger", "0f", conditions, suite.block)
    assert ledger.missing == 6 * 3
    ledger.add(conditions[0], 2, Measurement("11", "11"))
    assert ledger.missing == 6 * 3 - 1
    assert not ledger.is_pending(conditions[0], 2)
    ledger.add(conditions[1], 0, Measurement(reason="no gradient"))  # the attack's other blocks are not needed
    assert ledger.missing == 5 * 3 - 1
    assert not ledger.is_pending(conditions[1], 1)
