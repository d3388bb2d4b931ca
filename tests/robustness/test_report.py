"""Reports: intervals, what counts as robust, the worst case, corruption errors, and how they are read again."""

from __future__ import annotations

import pytest
from scipy.stats import binomtest

from glr_dist.errors import ConfigError
from glr_dist.robustness.conditions import conditions_of
from glr_dist.robustness.outcome import Outcome
from glr_dist.robustness.page import described, markdown
from glr_dist.robustness.report import FILE, Rate, read_report, report_of

from .reports import FGSM, NOISE, SETTINGS, SQUARE, report, suite_of, whole


@pytest.mark.parametrize("examples", [1, 7, 200, 10_000])
def test_the_interval_is_wilsons(examples):
    for correct in sorted({0, 1, examples // 3, examples - 1, examples}):
        rate = Rate.of(correct, examples)
        expected = binomtest(correct, examples).proportion_ci(0.95, method="wilson")
        assert rate.accuracy == correct / examples
        assert rate.low == pytest.approx(expected.low, abs=1e-12)
        assert rate.high == pytest.approx(expected.high, abs=1e-12)


def test_a_schedule_of_the_noise_is_said():
    noise = {**SETTINGS["noise"], "scale": 1.0, "schedule": {"12": 0.1, "4": 0.5}}
    assert described({**SETTINGS, "noise": noise}).endswith("noise 1.0, 0.5 after epoch 4, 0.1 after epoch 12")


def test_blocks_are_put_together_in_their_order():
    suite = suite_of("{name: square, eps: 0.1}")
    clean = [Outcome("110", "111"), Outcome("01", "11")]
    attacked = [Outcome("100", "111"), Outcome("01", "11")]
    made = report_of(
        "run", SETTINGS, 3, "0f", suite, conditions_of(suite, 5), {"clean": clean, "square/black_box/eps_0.1": attacked}
    )
    assert made.clean.accuracy == 3 / 5
    assert made.attacks[0].rate == Rate.of(2, 5)
    assert made.worst_cases[0].rate == Rate.of(2, 5)


def test_the_worst_case_is_the_share_that_withstands_every_attack():
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
    over_all, over_few = made.worst_cases
    assert over_all.rate == Rate.of(2, 8)
    assert "square/black_box/eps_0.1" not in over_all.attacks
    assert over_few.rate == Rate.of(1, 4)
    assert set(over_few.attacks) == {
        "fgsm/white_box/eps_0.1",
        "fgsm/transfer/eps_0.1",
        "square/black_box/eps_0.1",
        "random_sign/control/eps_0.1",
    }
    # An image that an attack happens to turn right does not withstand.
    assert report(suite_of(NOISE, SQUARE), 4, clean=whole("0111"), **{
        "square/black_box/eps_0.1": whole("1111"), "random_sign/control/eps_0.1": whole("1111")
    }).worst_cases[0].rate == Rate.of(3, 4)  # fmt: skip


def test_an_attack_that_cannot_test_has_no_accuracy_and_no_part_in_the_worst_case():
    made = report(
        suite_of(FGSM, NOISE),
        4,
        **{
            "fgsm/white_box/eps_0.1": Outcome(reason="no derivative reaches the input"),
            "fgsm/transfer/eps_0.1": whole("1100"),
            "random_sign/control/eps_0.1": whole("1110"),
        },
    )
    refused = made.attacks[0]
    assert (refused.rate, refused.reason) == (None, "no derivative reaches the input")
    (worst,) = made.worst_cases
    assert worst.untestable == ("fgsm/white_box/eps_0.1",)
    assert worst.rate == Rate.of(2, 4)
    assert "not testable by this attack: no derivative" in markdown(made)
    assert "robust/white_box/fgsm/eps_0.1/accuracy" not in made.metrics()


def test_where_only_noise_could_try_there_is_no_robust_accuracy():
    made = report(
        suite_of("{name: fgsm, eps: 0.1, threats: [white_box]}", NOISE),
        4,
        **{
            "fgsm/white_box/eps_0.1": Outcome(reason="no derivative"),
            "random_sign/control/eps_0.1": whole("1111"),
        },
    )
    (worst,) = made.worst_cases
    assert worst.rate is None
    assert "none could test the network" in markdown(made)


def test_examples_without_a_derivative_count_as_errors_and_many_of_them_are_a_refusal():
    suite = suite_of("{name: fgsm, eps: 0.1, threats: [white_box]}")
    few = Outcome("1" * 300, "1" * 298 + "0" * 2)
    result = report(suite, 300, **{"fgsm/white_box/eps_0.1": few}).attacks[0]
    assert (result.rate, result.untested) == (Rate.of(298, 300), 2)
    many = Outcome("1" * 300, "1" * 290 + "0" * 10)
    result = report(suite, 300, **{"fgsm/white_box/eps_0.1": many}).attacks[0]
    assert result.rate is None
    assert "zero, or not finite, for 10 of 300" in str(result.reason)
    # Those that are wrong anyway need no derivative.
    wrong = Outcome("1" * 290 + "0" * 10, "1" * 290 + "0" * 10)
    assert report(suite, 300, **{"fgsm/white_box/eps_0.1": wrong}).attacks[0].rate == Rate.of(290, 300)


def test_corruption_errors_are_relative_to_the_baseline():
    """CE of noise: (1 + 2) / (2 + 4); of fog: (0 + 3) / (1 + 1); mCE is their mean."""
    made = report(
        suite_of(corruptions="[gaussian_noise, fog]", severities="[1, 5]"),
        4,
        **{
            "gaussian_noise/s1": Outcome("1110", "1111", "1100"),
            "gaussian_noise/s5": Outcome("1100", "1111", "0000"),
            "fog/s1": Outcome("1111", "1111", "0111"),
            "fog/s5": Outcome("1000", "1111", "0111"),
        },
    )
    errors = made.corruption_errors
    assert errors is not None
    assert errors.by_name == {"gaussian_noise": 0.5, "fog": 1.5}
    assert errors.mean == 1.0
    assert made.metrics()["corruption/mce"] == 1.0
    assert made.metrics()["corruption/fog/s5/accuracy"] == 0.25


def test_a_baseline_without_errors_leaves_the_ratio_undefined():
    made = report(suite_of(corruptions="[fog]"), 2, **{"fog/s1": Outcome("10", "11", "11")})
    assert made.corruption_errors is not None
    assert (made.corruption_errors.by_name, made.corruption_errors.mean) == ({"fog": None}, None)
    assert "not defined" in markdown(made)
    assert "corruption/mce" not in made.metrics()


def test_the_least_perturbations_are_averaged_over_those_that_were_needed():
    suite = suite_of("{name: lbfgs, threats: [transfer]}")
    made = report(suite, 3, **{"lbfgs/transfer": Outcome("010", "111", lengths=(0.5, 0.0, 1.5))})
    assert made.attacks[0].mean_length == 1.0
    assert made.worst_cases == ()  # it has no budget
    assert made.metrics()["robust/transfer/lbfgs/accuracy"] == pytest.approx(1 / 3)


def test_a_report_is_read_again(tmp_path):
    made = report(suite_of(), 4)
    (tmp_path / FILE).write_text(made.model_dump_json())
    assert read_report(tmp_path) == made


@pytest.mark.parametrize(
    ("content", "words"), [(None, "glr-dist evaluate"), ("{}", "no report"), ("{", "no report")], ids=str
)
def test_what_is_no_report_is_one_line(tmp_path, content, words):
    if content is not None:
        (tmp_path / FILE).write_text(content)
    with pytest.raises(ConfigError, match=words) as raised:
        read_report(tmp_path)
    assert "\n" not in str(raised.value)


def test_what_a_refused_attack_has_found_counts_in_the_worst_case():
    """An image that was fooled was fooled, though the attack could not try enough of the others."""
    found = {"fgsm/white_box/eps_0.1": Outcome("1110", "1001"), "fgsm/transfer/eps_0.1": whole("0111")}
    made = report(suite_of(FGSM), 4, **found)
    assert made.attacks[0].rate is None
    (worst,) = made.worst_cases
    assert worst.attacks == ("fgsm/transfer/eps_0.1",)
    assert worst.rate == Rate.of(2, 4)


def test_the_worst_case_falls_with_the_budget():
    """What fools within a ball fools within a larger one."""
    suite = suite_of("{name: square, eps: [0.1, 0.2]}")
    found = {"square/black_box/eps_0.1": whole("0011"), "square/black_box/eps_0.2": whole("1101")}
    assert [worst.rate for worst in report(suite, 4, **found).worst_cases] == [Rate.of(2, 4), Rate.of(1, 4)]


def test_blocks_of_a_refused_attack_that_came_too_early_change_nothing():
    suite = suite_of("{name: square, eps: 0.1}")
    refused = Outcome(reason="no derivative")
    conditions = conditions_of(suite, 4)
    made = [
        report_of("run", SETTINGS, 3, "0f", suite, conditions, {"clean": [whole("1111")], conditions[1].label: blocks})
        for blocks in ([refused], [Outcome("11", "01"), refused])
    ]
    assert made[0] == made[1]
