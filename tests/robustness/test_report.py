"""Reports: intervals, robust accuracy, corruption errors, and reading them back."""

from __future__ import annotations

import json

import pytest
from scipy.stats import binomtest

from glr_dist.config import Config
from glr_dist.errors import ConfigError
from glr_dist.robustness.measurement import Measurement
from glr_dist.robustness.page import described, markdown
from glr_dist.robustness.rate import Rate
from glr_dist.robustness.report_files import ReportFiles, read_report
from glr_dist.tracking.metric_names import report_curves

from .reports import CONFIG, FGSM, NOISE, SQUARE, report, report_of_blocks, suite_of, whole


@pytest.mark.parametrize("examples", [1, 7, 200, 10_000])
def test_intervals_are_wilson_intervals(examples):
    for correct in sorted({0, 1, examples // 3, examples - 1, examples}):
        rate = Rate.of(correct, examples)
        expected = binomtest(correct, examples).proportion_ci(0.95, method="wilson")
        assert rate.accuracy == correct / examples
        assert rate.low == pytest.approx(expected.low, abs=1e-12)
        assert rate.high == pytest.approx(expected.high, abs=1e-12)


def test_the_description_of_a_run_includes_its_noise_schedule():
    noise = {**CONFIG["noise"], "scale": 1.0, "schedule": {"12": 0.1, "4": 0.5}}
    assert described({**CONFIG, "noise": noise}).endswith("noise 1.0, 0.5 after epoch 4, 0.1 after epoch 12")


def test_blocks_are_joined_in_order():
    suite = suite_of("{name: square, eps: 0.1}")
    clean = [Measurement("110", "111"), Measurement("01", "11")]
    attacked = [Measurement("100", "111"), Measurement("01", "11")]
    made = report_of_blocks(suite, 5, {"clean": clean, "square/black_box/eps_0.1": attacked})
    assert made.clean.accuracy == 3 / 5
    assert made.attacks[0].rate == Rate.of(2, 5)
    assert made.robust_accuracies[0].rate == Rate.of(2, 5)


def test_robust_accuracy_counts_images_that_stay_correct_under_every_attack():
    made = report(
        suite_of(FGSM, SQUARE, NOISE),
        8,
        clean=whole("11111110"),
        **{
            "fgsm/white_box/eps_0.1": whole("11110000"),
            "fgsm/transfer/eps_0.1": whole("11001100"),
            "square/black_box/eps_0.1": whole("1011"),
            "random_sign/control/eps_0.1": whole("11111111"),
        },
    )
    over_all, over_few = made.robust_accuracies
    assert over_all.rate == Rate.of(2, 8)
    assert "square/black_box/eps_0.1" not in over_all.attacks
    assert over_few.rate == Rate.of(1, 4)
    assert set(over_few.attacks) == {
        "fgsm/white_box/eps_0.1",
        "fgsm/transfer/eps_0.1",
        "square/black_box/eps_0.1",
        "random_sign/control/eps_0.1",
    }
    # An image that is misclassified without an attack is not robust, even if an attack corrects it.
    assert report(suite_of(NOISE, SQUARE), 4, clean=whole("0111"), **{
        "square/black_box/eps_0.1": whole("1111"), "random_sign/control/eps_0.1": whole("1111")
    }).robust_accuracies[0].rate == Rate.of(3, 4)  # fmt: skip


def test_a_refused_attack_has_no_accuracy_and_is_left_out_of_the_robust_accuracy():
    made = report(
        suite_of(FGSM, NOISE),
        4,
        **{
            "fgsm/white_box/eps_0.1": Measurement(reason="no derivative reaches the input"),
            "fgsm/transfer/eps_0.1": whole("1100"),
            "random_sign/control/eps_0.1": whole("1110"),
        },
    )
    refused = made.attacks[0]
    assert (refused.rate, refused.reason) == (None, "no derivative reaches the input")
    (robust,) = made.robust_accuracies
    assert robust.untestable == ("fgsm/white_box/eps_0.1",)
    assert robust.rate == Rate.of(2, 4)
    assert "not testable by this attack: no derivative" in markdown(made)
    assert "robust/white_box/fgsm/eps_0.1/accuracy" not in made.metrics()


def test_curves_start_at_the_clean_accuracy_and_leave_out_refused_attacks():
    made = report(
        suite_of(
            "{name: fgsm, eps: [0.05, 0.1], threats: [white_box, transfer]}", corruptions="[fog]", severities="[2, 5]"
        ),
        4,
        **{
            "fgsm/white_box/eps_0.05": Measurement(reason="no derivative"),
            "fgsm/white_box/eps_0.1": Measurement(reason="no derivative"),
            "fgsm/transfer/eps_0.05": whole("1110"),
            "fgsm/transfer/eps_0.1": whole("1000"),
            "fog/s2": Measurement("1110", "1111", baseline="1111"),
            "fog/s5": Measurement("1100", "1111", baseline="1111"),
        },
    )
    assert report_curves(made) == {
        "robust_by_1000_eps/quick-test/fgsm_transfer": [(0, 1.0), (50, 0.75), (100, 0.25)],
        "robust_by_1000_eps/quick-test/all_attacks_linf": [(0, 1.0), (50, 0.75), (100, 0.25)],
        "corruption_by_severity/quick-test/fog": [(0, 1.0), (2, 0.75), (5, 0.5)],
    }


def test_without_an_applicable_attack_the_robust_accuracy_is_undefined():
    made = report(
        suite_of("{name: fgsm, eps: 0.1, threats: [white_box]}", NOISE),
        4,
        **{
            "fgsm/white_box/eps_0.1": Measurement(reason="no derivative"),
            "random_sign/control/eps_0.1": whole("1111"),
        },
    )
    (robust,) = made.robust_accuracies
    assert robust.rate is None
    assert "no attack can test the network" in markdown(made)


def test_examples_without_a_gradient_count_as_errors_and_too_many_refuse_the_attack():
    suite = suite_of("{name: fgsm, eps: 0.1, threats: [white_box]}")
    few = Measurement("1" * 300, "1" * 298 + "0" * 2)
    result = report(suite, 300, **{"fgsm/white_box/eps_0.1": few}).attacks[0]
    assert (result.rate, result.untested) == (Rate.of(298, 300), 2)
    many = Measurement("1" * 300, "1" * 290 + "0" * 10)
    result = report(suite, 300, **{"fgsm/white_box/eps_0.1": many}).attacks[0]
    assert result.rate is None
    assert "zero, or not finite, for 10 of 300" in str(result.reason)
    # Misclassified examples need no gradient.
    wrong = Measurement("1" * 290 + "0" * 10, "1" * 290 + "0" * 10)
    assert report(suite, 300, **{"fgsm/white_box/eps_0.1": wrong}).attacks[0].rate == Rate.of(290, 300)


def test_corruption_errors_are_relative_to_the_baseline():
    """CE of noise: (1 + 2) / (2 + 4); of fog: (0 + 3) / (1 + 1); mCE is their mean."""
    made = report(
        suite_of(corruptions="[gaussian_noise, fog]", severities="[1, 5]"),
        4,
        **{
            "gaussian_noise/s1": Measurement("1110", "1111", "1100"),
            "gaussian_noise/s5": Measurement("1100", "1111", "0000"),
            "fog/s1": Measurement("1111", "1111", "0111"),
            "fog/s5": Measurement("1000", "1111", "0111"),
        },
    )
    errors = made.corruption_errors
    assert errors is not None
    assert errors.by_name == {"gaussian_noise": 0.5, "fog": 1.5}
    assert errors.mean == 1.0
    assert made.metrics()["corruption/mce"] == 1.0
    assert made.metrics()["corruption/fog/s5/accuracy"] == 0.25


def test_corruption_errors_are_undefined_if_the_baseline_makes_no_errors():
    made = report(suite_of(corruptions="[fog]"), 2, **{"fog/s1": Measurement("10", "11", "11")})
    assert made.corruption_errors is not None
    assert (made.corruption_errors.by_name, made.corruption_errors.mean) == ({"fog": None}, None)
    assert "undefined" in markdown(made)
    assert "corruption/mce" not in made.metrics()


def test_the_mean_norm_of_minimal_perturbations_excludes_unperturbed_images():
    suite = suite_of("{name: lbfgs, threats: [transfer]}")
    made = report(suite, 3, **{"lbfgs/transfer": Measurement("010", "111", l2_norms=(0.5, 0.0, 1.5))})
    assert made.attacks[0].mean_l2_norm == 1.0
    assert made.robust_accuracies == ()  # the attack has no ε
    assert made.metrics()["robust/transfer/lbfgs/accuracy"] == pytest.approx(1 / 3)


def test_a_report_survives_its_file(tmp_path):
    made = report(suite_of(), 4)
    path = ReportFiles(tmp_path, "quick-test").report
    path.parent.mkdir()
    path.write_text(made.model_dump_json())
    assert read_report(tmp_path, "quick-test") == made
    path.rename(path.with_name("quick-validation.json"))
    with pytest.raises(ConfigError, match="holds the report 'quick-test'"):
        read_report(tmp_path, "quick-validation")


def damaged(*path, value):
    """Returns a report as JSON with one value replaced."""
    content = json.loads(report(suite_of(NOISE), 4, **{"random_sign/control/eps_0.1": whole("1110")}).model_dump_json())
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return json.dumps(content).encode()


UNREADABLE = {
    "missing": (None, "cannot be read"),
    "empty": (b"", "is damaged"),
    "cut off": (damaged("epoch", value=3)[:-7], "is damaged"),
    "not UTF-8": (b"\xff\xfe", "is damaged"),
    "another object": (b"{}", "is damaged"),
    "a list": (b"[1]", "is damaged"),
    "an accuracy above 1": (damaged("clean", "accuracy", value=1.5), r"clean.accuracy"),
    "an accuracy as text": (damaged("attacks", 0, "rate", "low", value="x"), r"attacks.0.rate.low"),
    "another attack": (damaged("suite", "attacks", 0, "name", value="fgms"), r"suite.attacks.0"),
    "an unknown key": (damaged("worst_cases", value=[]), r"worst_cases"),
}


@pytest.mark.parametrize(("content", "words"), UNREADABLE.values(), ids=UNREADABLE)
def test_an_unreadable_report_is_one_line(tmp_path, content, words):
    path = ReportFiles(tmp_path, "quick-test").report
    path.parent.mkdir()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=words) as raised:
        read_report(tmp_path, "quick-test")
    assert "\n" not in str(raised.value)
    assert "evaluate the run" in str(raised.value)


def test_images_fooled_by_a_refused_attack_are_not_robust():
    """The attack had no gradient for too many other images, but the fooled image is fooled all the same."""
    found = {"fgsm/white_box/eps_0.1": Measurement("1110", "1001"), "fgsm/transfer/eps_0.1": whole("0111")}
    made = report(suite_of(FGSM), 4, **found)
    assert made.attacks[0].rate is None
    (robust,) = made.robust_accuracies
    assert robust.attacks == ("fgsm/transfer/eps_0.1",)
    assert robust.rate == Rate.of(2, 4)


def test_robust_accuracy_decreases_with_eps():
    """An image that is fooled within a ball is fooled within a larger one."""
    suite = suite_of("{name: square, eps: [0.1, 0.2]}")
    found = {"square/black_box/eps_0.1": whole("0011"), "square/black_box/eps_0.2": whole("1101")}
    assert [robust.rate for robust in report(suite, 4, **found).robust_accuracies] == [Rate.of(2, 4), Rate.of(1, 4)]


def test_blocks_of_a_refused_attack_that_were_measured_change_nothing():
    suite = suite_of("{name: square, eps: 0.1}")
    refused = Measurement(reason="no derivative")
    made = [
        report_of_blocks(suite, 4, {"clean": [whole("1111")], "square/black_box/eps_0.1": blocks})
        for blocks in ([refused], [Measurement("11", "01"), refused])
    ]
    assert made[0] == made[1]


def test_the_description_of_a_network_of_the_zoo_is_its_name():
    config = Config(model={"name": "lenet5"}).model_dump(mode="json")
    assert described(config) == "digits, lenet5, cross_entropy, conditional, gaussian noise 1.0"
