"""Evaluations: contents of the report, reproducibility, continuation after a stop, and refusals."""

from __future__ import annotations

import json
import os

import pytest

from glr_dist.claims import ClaimedError
from glr_dist.errors import CheckpointError, ConfigError, UserError
from glr_dist.execution.inline import Inline
from glr_dist.robustness import workers
from glr_dist.robustness.evaluate import evaluate
from glr_dist.robustness.report_files import ReportFiles, read_report, report_names
from glr_dist.robustness.suite import load_suite
from glr_dist.training import checkpoint
from glr_dist.training.trained_run import load_run

SMALL = (
    "block=64",
    "surrogate.training.epochs=2",
    "corruptions.names=[gaussian_noise, contrast]",
    "corruptions.severities=[1, 5]",
    "attacks=[{name: random_sign, eps: 0.2}, {name: fgsm, eps: 0.2}, {name: pgd, eps: 0.2, steps: 5},"
    " {name: lbfgs, examples: 40, iterations: 8, searches: 5}, {name: square, eps: 0.2, queries: 60, examples: 70}]",
)
PICTURES = ("quick-test-eps.png", "quick-test-severity.png", "quick-test-images.png")


FAST = "attacks=[{name: fgsm, eps: 0.2}, {name: square, eps: 0.2, queries: 60, examples: 70}]"
ATTACKS = (
    "{name: pgd, eps: 0.2, steps: 3}, {name: lbfgs, examples: 10, iterations: 8, searches: 5},"
    " {name: square, eps: 0.2, queries: 200}"
)


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

    original = workers.measure

    def measure(*arguments):
        if Counter.measured == Counter.stop_at:
            raise KeyboardInterrupt
        Counter.measured += 1
        return original(*arguments)

    monkeypatch.setattr(workers, "measure", measure)
    return Counter


@pytest.fixture
def one_by_one(monkeypatch):
    """Blocks are measured one after the other, so that those before a stop are in the ledger."""
    monkeypatch.setattr(workers, "Inline", lambda threads: Inline(1))


# ---------------------------------------------------------------- contents of the report


@pytest.mark.slow
def test_a_threshold_network_is_attacked_by_applicable_attacks_only(run):
    folder = run("threshold")
    (report,) = evaluate([folder], small("examples=160"))
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
    assert (whole.rate.examples, few.rate.examples) == (160, 70)
    assert whole.rate.accuracy <= min(
        a.rate.accuracy for a in report.attacks if a.rate and a.eps and a.rate.examples == 160
    )
    assert len(report.corruptions) == 4
    assert report.corruption_errors.mean > 0
    files = ReportFiles(folder, "quick-test")
    assert all((files.folder / name).with_suffix(end).exists() for name in PICTURES for end in (".png", ".pdf"))
    page = files.page.read_text()
    assert all(name in page for name in (*PICTURES, "not testable by this attack", "## Robust accuracy"))
    assert read_report(folder, "quick-test") == report
    assert not files.ledger.exists()
    assert not [path for path in files.folder.iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_without_noise_the_adaptive_attack_equals_the_white_box_attack(run):
    suite = small("examples=128", "attacks=[{name: fgsm, eps: 0.1}]", "corruptions.names=[]")
    (report,) = evaluate([run("bp")], suite)
    attacks = by_label(report)
    assert attacks["fgsm", "adaptive"].rate == attacks["fgsm", "white_box"].rate
    assert attacks["fgsm", "white_box"].rate.accuracy < report.clean.accuracy - 0.2


@pytest.mark.slow
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


@pytest.mark.slow
def test_only_images_that_the_surrogate_gets_right(run):
    few = ("examples=60", "surrogate_right=true", "surrogate.training.epochs=1", "corruptions.names=[contrast]")
    (report,) = evaluate([run("threshold")], small(*few, "attacks=[{name: torch_lbfgs, examples: 20}]"))
    assert report.clean.examples == 60
    (weak,) = evaluate(
        [run("bp")], small(*few, "attacks=[]", "examples=null", "corruptions={names: [brightness], severities: [1]}")
    )
    whole = len(load_run(run("bp")).data.test)
    assert 60 < weak.clean.examples < whole
    page = ReportFiles(run("threshold"), "quick-test").page.read_text()
    assert "test images that the surrogate classifies correctly" in page
    assert "| torch_lbfgs | transfer" in page
    assert "the paper's L-BFGS" in page


@pytest.mark.long
def test_predictions_by_vote_are_attacked_through_their_noise(run):
    few = ("examples=64", "corruptions.names=[]", f"attacks=[{ATTACKS}]", "inference={votes: 7, draws: 5}")
    (report,) = evaluate([run("threshold")], small(*few))
    (again,) = evaluate([run("threshold")], small(*few))
    assert again == report
    (silent,) = evaluate([run("threshold")], small(*few, "inference.votes=0", "name=silent"))
    # On so few images, the clean accuracies may be equal.
    assert [each.rate for each in by_label(report).values()] != [each.rate for each in by_label(silent).values()]
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


@pytest.mark.slow
def test_corruption_errors_are_relative_to_the_named_baseline(run):
    folder = run("bp")
    suite = small("examples=128", "attacks=[]", f"baseline={folder}")
    (report,) = evaluate([folder], suite)
    assert all(result.rate == result.baseline for result in report.corruptions)
    assert report.corruption_errors.mean == 1


# ---------------------------------------------------------------- reproducibility


@pytest.mark.long
@pytest.mark.ray
def test_the_report_does_not_depend_on_the_number_of_actors(run, local_ray, monkeypatch):
    """Two evaluations in this process, one on one actor and one on two actors give the same bytes."""
    folder = run("threshold")
    contents = []
    for actors in (0, 0, 1, 2):
        evaluate([folder], small("examples=70"), actors=actors)
        contents.append(ReportFiles(folder, "quick-test").report.read_bytes())
    assert len(set(contents)) == 1
    evaluate([folder], small("examples=70", "seed=1", "name=other"))
    other = ReportFiles(folder, "other-test").report.read_bytes()
    assert other.replace(b'"other"', b'"quick"').replace(b'"seed": 1', b'"seed": 0') != contents[0]


@pytest.mark.slow
def test_evaluating_several_runs_equals_evaluating_each(run):
    folders = [run("threshold"), run("bp")]
    cheap = ("corruptions.names=[contrast]", "corruptions.severities=[5]", "attacks=[{name: fgsm, eps: 0.2}]")
    suite = small("examples=70", *cheap)
    together = evaluate(folders, suite)
    assert together == [evaluate([folder], suite)[0] for folder in folders]
    assert [report.run for report in together] == ["threshold", "bp"]


# ---------------------------------------------------------------- continuation


@pytest.mark.slow
def test_an_evaluation_that_was_stopped_continues(run, blocks):
    folder, suite = run("threshold"), small("examples=70", FAST)
    (expected,) = evaluate([folder], suite)
    files = ReportFiles(folder, "quick-test")
    files.report.unlink()
    total, blocks.measured = blocks.measured, 0
    blocks.stop_at = total // 2
    with pytest.raises(KeyboardInterrupt):
        evaluate([folder], suite)
    assert not files.report.exists()
    kept = files.ledger
    known = len(kept.read_text().splitlines()) - 1
    assert known > total // 4
    with kept.open("a") as file:
        file.write('["square/black_box/eps_0.2", 1, {"corr')  # killed while writing
    blocks.measured, blocks.stop_at = 0, None
    assert evaluate([folder], suite) == [expected]
    # Blocks of refused attacks may have been in flight.
    assert blocks.measured <= total - known + 8
    assert not kept.exists()


@pytest.mark.slow
def test_the_block_of_an_altered_line_is_measured_again(run, blocks, one_by_one):
    """A "1" in the place of a "0", or the reverse, would be another accuracy."""
    folder, suite = run("threshold"), small("examples=64", "attacks=[]")
    (expected,) = evaluate([folder], suite)
    total, blocks.measured, blocks.stop_at = blocks.measured, 0, 2
    with pytest.raises(KeyboardInterrupt):
        evaluate([folder], suite)
    ledger = ReportFiles(folder, "quick-test").ledger
    lines = ledger.read_text().splitlines(keepends=True)
    known = len(lines) - 1
    before, start, bits = lines[1].partition('"correct": "')
    lines[1] = before + start + str(1 - int(bits[0])) + bits[1:]
    assert lines[1] not in ledger.read_text()
    ledger.write_text("".join(lines))
    blocks.measured, blocks.stop_at = 0, None
    assert evaluate([folder], suite) == [expected]
    assert blocks.measured == total - known + 1


@pytest.mark.slow
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
    for block in (1, 3, 32):
        suite = small(
            "examples=32",
            "corruptions.names=[]",
            "attacks=[{name: fgsm, eps: 0.1}]",
            f"block={block}",
            f"name=of-{block}",
        )
        (report,) = evaluate([folder], suite)
        reports.append([(a.threat, a.rate, a.untested, a.reason) for a in report.attacks])
    assert reports[0] == reports[1] == reports[2]
    assert 0 < reports[0][0][2] < 32
    assert reports[0][0][3]


@pytest.mark.slow
def test_the_ledger_of_another_evaluation_is_not_used(run, blocks, one_by_one, capsys):
    folder = run("threshold")
    suite = small("examples=64", "attacks=[]")
    evaluate([folder], suite)
    total, blocks.measured, blocks.stop_at = blocks.measured, 0, 2
    with pytest.raises(KeyboardInterrupt):
        evaluate([folder], suite)
    blocks.measured, blocks.stop_at = 0, None
    ReportFiles(folder, "quick-test").report.unlink()
    evaluate([folder], small("examples=64", "attacks=[]", "seed=9"))
    assert blocks.measured == total
    assert "starting anew" in capsys.readouterr().err


@pytest.mark.slow
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
    *_, older, newest = sorted((folder / "checkpoints").iterdir())
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


@pytest.mark.slow
def test_actors_and_a_gpu_do_not_go_together(run):
    with pytest.raises(UserError, match="--actors 0"):
        evaluate([run("bp")], small(), device="cuda:0", actors=1)


@pytest.mark.slow
def test_an_input_that_bypasses_the_sites_refuses_the_adaptive_attacks(run, monkeypatch):
    """The report states the reason, and the other attacks run."""
    from glr_dist.errors import SiteError
    from glr_dist.robustness import subject

    def refuse(*_, **__):
        raise SiteError("no site owns the parameter '0.r'")

    monkeypatch.setattr(subject, "shifted", refuse)
    few = ("examples=64", "corruptions.names=[]", "attacks=[{name: pgd, eps: 0.2, steps: 5}]")
    (report,) = evaluate([run("threshold")], small(*few))
    attacks = by_label(report)
    assert "0.r" in attacks["pgd", "adaptive"].reason
    assert attacks["pgd", "transfer"].rate is not None


# ---------------------------------------------------------------- several reports, several processes

NOTHING = ("examples=64", "attacks=[]", "corruptions.names=[]")


@pytest.mark.slow
def test_each_suite_and_split_has_a_report_of_its_own(run):
    folder = run("bp")
    (test,) = evaluate([folder], small(*NOTHING))
    (validation,) = evaluate([folder], small(*NOTHING, "split=validation"))
    (mine,) = evaluate([folder], small(*NOTHING, "name=mine", "seed=3"))
    assert report_names(folder) == ["mine-test", "quick-test", "quick-validation"]
    assert [report.name for report in (test, validation, mine)] == ["quick-test", "quick-validation", "mine-test"]
    assert read_report(folder, "quick-test") == test
    assert read_report(folder, "quick-validation") == validation


@pytest.mark.parametrize("override", ["seed=3", "examples=32", "corruptions.constants=imagenet_c", "block=10"])
def test_another_suite_of_the_same_name_replaces_nothing(run, override):
    folder = run("bp")
    evaluate([folder], small(*NOTHING))
    before = ReportFiles(folder, "quick-test").report.read_bytes()
    with pytest.raises(ConfigError, match=f"holds another suite 'quick' .'{override.split('.')[0].split('=')[0]}' is"):
        evaluate([folder], small(*NOTHING, override))
    assert ReportFiles(folder, "quick-test").report.read_bytes() == before


def test_a_report_of_an_older_network_is_replaced(run):
    folder = run("bp")
    (before,) = evaluate([folder], small(*NOTHING))
    newest = max((folder / "checkpoints").iterdir())
    newest.unlink()
    (after,) = evaluate([folder], small(*NOTHING))
    assert after.epoch < before.epoch
    assert read_report(folder, "quick-test") == after


@pytest.mark.slow
def test_a_damaged_report_is_replaced_with_a_warning(run, capsys):
    folder = run("bp")
    (before,) = evaluate([folder], small(*NOTHING))
    ReportFiles(folder, "quick-test").report.write_text("{")
    assert evaluate([folder], small(*NOTHING)) == [before]
    assert "is not a valid report and will be replaced" in capsys.readouterr().err
    assert read_report(folder, "quick-test") == before


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
@pytest.mark.parametrize("end", [".json", ".md"])
def test_something_else_in_the_place_of_a_report_is_refused_before_measuring(run, blocks, make, end):
    folder = run("bp")
    (folder / "robustness").mkdir()
    make(folder / "robustness" / f"quick-test{end}")
    with pytest.raises(ConfigError, match=f"quick-test{end}: is not a file"):
        evaluate([folder], small(*NOTHING))
    assert blocks.measured == 0


@pytest.mark.process
def test_a_second_evaluation_of_a_run_is_one_clear_line(run, claimed_elsewhere):
    folder = run("bp")
    claimed_elsewhere(folder / "robustness", "quick-test")
    with pytest.raises(ClaimedError, match="robustness: is in use by process") as raised:
        evaluate([folder], small(*NOTHING))
    assert "\n" not in str(raised.value)
    (other,) = evaluate([folder], small(*NOTHING, "split=validation"))  # another report may be written meanwhile
    assert report_names(folder) == [other.name]


def test_a_refused_evaluation_leaves_no_folder_behind(run, tmp_path):
    folder = run("bp")
    with pytest.raises(ConfigError, match="has no noise"):
        evaluate([folder], small(*NOTHING, "inference.votes=3"))
    assert not (folder / "robustness").exists()
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ConfigError, match="is not a run"):
        evaluate([tmp_path / "nothing"], small(*NOTHING))
    assert not list((tmp_path / "nothing").iterdir())


# ---------------------------------------------------------------- pictures


@pytest.mark.slow
@pytest.mark.usefixtures("pictures")
def test_pictures_are_png_and_pdf(run):
    folder = run("bp")
    few = ("examples=64", "attacks=[{name: random_sign, eps: 0.2}]", "corruptions.names=[contrast]")
    evaluate([folder], small(*few))
    for name in PICTURES:
        assert (folder / "robustness" / name).stat().st_size > 10_000
        assert (folder / "robustness" / name).with_suffix(".pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.slow
@pytest.mark.parametrize("error", [RuntimeError("no fonts"), OSError(28, "No space left on device"), KeyError("x")])
@pytest.mark.parametrize("figure", ["severity_figure", "sheet_figure"])
def test_a_picture_that_fails_is_a_warning(run, monkeypatch, capsys, figure, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(f"glr_dist.robustness.output.{figure}", fail)
    folder = run("bp")
    (report,) = evaluate([folder], small("examples=64", "attacks=[]", "corruptions.names=[contrast]"))
    assert read_report(folder, "quick-test") == report
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert len(warnings) == 1
    assert "cannot be drawn" in warnings[0]
    page = (folder / "robustness" / "quick-test.md").read_text()
    assert page.count("![](") == 1  # the other one
    assert page.startswith("# Robustness of bp (quick-test)")


@pytest.mark.slow
def test_pictures_of_an_older_report_do_not_stay(run):
    folder = run("bp")
    files = ReportFiles(folder, "quick-test")
    evaluate([folder], small("examples=64", "attacks=[]", "corruptions.names=[contrast]"))
    assert files.picture("severity").exists()
    files.report.unlink()
    evaluate([folder], small(*NOTHING))
    assert {path.name for path in files.all()} == {
        f"quick-test{end}" for end in (".json", ".md", "-images.png", "-images.pdf")
    }
