"""Comparisons of runs: the table, the plot, and the paper's results."""

from __future__ import annotations

import pytest

from glr_dist.config import Config, build
from glr_dist.errors import ConfigError
from glr_dist.robustness.compare import compare
from glr_dist.robustness.measurement import Measurement
from glr_dist.robustness.published import COLUMNS, published
from glr_dist.robustness.report import FILE

from .reports import NOISE, report, suite_of, whole

ATTACKS = "{name: fgsm, eps: [0.1, 0.13], threats: [white_box, transfer]}"


def config(data="mnist", hidden=(50,), activation="threshold", loss="zero_one", name="conditional", law="gaussian"):
    sections = {
        "data": {"name": data},
        "model": {"hidden": hidden, "activation": activation},
        "noise": {"law": law},
        "estimator": {"name": name},
        "training": {"loss": loss},
    }
    return build(Config, sections).model_dump(mode="json")


@pytest.fixture
def evaluated(tmp_path):
    """`evaluated(name, …)`: the folder of a run with a report; `right` of 8 images stay correct under FGSM at 0.13."""

    def write(name, suite=None, right=2, refused=True, **options):
        suite = suite or suite_of(ATTACKS, NOISE, corruptions="[contrast]", severities="[1, 5]")
        made = report(
            suite,
            8,
            config(**options),
            **{
                "fgsm/white_box/eps_0.1": Measurement(reason="no derivative") if refused else whole("1" * 8),
                "fgsm/white_box/eps_0.13": Measurement(reason="no derivative") if refused else whole("1" * 8),
                "fgsm/transfer/eps_0.1": whole("11111110"),
                "fgsm/transfer/eps_0.13": whole("1" * right + "0" * (8 - right)),
                "random_sign/control/eps_0.1": whole("11111111"),
                "contrast/s1": Measurement("11111111", "1" * 8, "11111110"),
                "contrast/s5": Measurement("11110000", "1" * 8, "11111110"),
            },
        )
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / FILE).write_text(made.model_copy(update={"run": folder.name}).model_dump_json())
        return folder

    return write


def cells(text):
    """The table's rows by their names, each as its cells by the heads of the columns."""
    lines = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("|")]
    head, *rows = [[cell.strip() for cell in line] for line in lines if "---" not in line[0]]
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}


def test_runs_are_compared_with_the_papers_results(evaluated, tmp_path):
    folders = [evaluated("lrtz"), evaluated("other", right=4, refused=False, hidden=(20,))]
    text = compare(folders, tmp_path / "out")
    found = cells(text)
    assert found["clean"] == {"lrtz": "100.00", "paper's LRTZ": "90.22", "other": "100.00"}
    assert found["fgsm, transfer"] == {"lrtz": "25.00", "paper's LRTZ": "61.36", "other": "50.00"}
    assert found["fgsm, white box"] == {"lrtz": "–", "paper's LRTZ": "", "other": "100.00"}
    assert found["contrast"] == {"lrtz": "75.00", "paper's LRTZ": "79.81", "other": "75.00"}
    assert "random_sign, control" not in found  # measured at another ε only
    assert "ε = 0.13" in text
    assert "mCE 2.000 relative to surrogate" in text  # 4 errors against 2
    assert (tmp_path / "out" / "compare.md").read_text().startswith(text)
    assert (tmp_path / "out" / "compare.png").stat().st_size > 10_000


def test_at_another_eps_the_papers_result_is_left_out(evaluated, tmp_path):
    found = cells(compare([evaluated("lrtz")], tmp_path / "out", 0.1))
    assert found["fgsm, transfer"] == {"lrtz": "87.50", "paper's LRTZ": ""}
    assert found["random_sign, control"]["lrtz"] == "100.00"
    with pytest.raises(ConfigError, match=r"--eps: 0.2 was not measured; measured values: 0.1, 0.13"):
        compare([tmp_path / "lrtz"], tmp_path / "out", 0.2)


def test_runs_with_the_same_folder_name_get_longer_names(evaluated, tmp_path):
    text = compare([evaluated("mnist/bp"), evaluated("fashion/bp", right=3)], tmp_path / "out")
    assert cells(text)["fgsm, transfer"]["fashion/bp"] == "37.50"


def test_runs_of_different_suites_are_not_compared(evaluated, tmp_path):
    other = suite_of(ATTACKS, NOISE, corruptions="[contrast]", severities="[1, 5]").model_copy(update={"seed": 3})
    with pytest.raises(ConfigError, match=r"another suite .* 'seed' differs") as raised:
        compare([evaluated("one"), evaluated("two", suite=other)], tmp_path / "out")
    assert "\n" not in str(raised.value)


def test_runs_of_different_data_are_not_compared(evaluated, tmp_path):
    with pytest.raises(ConfigError, match=r"data.name is 'fashion_mnist', not 'mnist'"):
        compare([evaluated("one"), evaluated("two", data="fashion_mnist")], tmp_path / "out")


def test_a_run_that_was_not_evaluated_is_refused(evaluated, tmp_path):
    with pytest.raises(ConfigError, match="glr-dist evaluate"):
        compare([evaluated("one"), tmp_path], tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({}, "LRTZ"),
        ({"loss": "cross_entropy"}, "LRT"),
        ({"activation": "sigmoid"}, "LRSZ"),
        ({"activation": "sigmoid", "loss": "cross_entropy"}, "LRS"),
        ({"activation": "sigmoid", "loss": "cross_entropy", "name": "pathwise", "law": "none"}, "BP"),
        ({"activation": "sigmoid", "loss": "cross_entropy", "name": "pathwise"}, None),  # with noise: not the paper's
        ({"activation": "relu", "loss": "cross_entropy", "name": "pathwise", "law": "none"}, None),
        ({"activation": "tanh"}, None),
        ({"hidden": (50, 50)}, None),
        ({"data": "digits"}, None),
    ],
    ids=str,
)
def test_a_run_is_matched_with_the_papers_model(options, kind):
    found = published(config(**options))
    assert (found and found[0]) == kind
    if found:
        assert tuple(found[1]) == COLUMNS


def test_fashion_mnist_has_its_own_results():
    assert published(config(data="fashion_mnist"))[1]["clean"] == 62.05
    assert published(config())[1]["clean"] == 90.22
