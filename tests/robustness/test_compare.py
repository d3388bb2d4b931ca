"""Comparisons of runs: the table, the plot, and the paper's results."""

from __future__ import annotations

import json

import numpy as np
import pytest

from glr_dist.config import Config, build, dump_config
from glr_dist.errors import ConfigError
from glr_dist.robustness.compare import compare
from glr_dist.robustness.measurement import Measurement
from glr_dist.robustness.published import COLUMNS, published
from glr_dist.robustness.report_files import ReportFiles

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
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(dump_config(build(Config, made.config)))
        files = ReportFiles(folder, made.name)
        files.folder.mkdir(exist_ok=True)
        files.report.write_text(made.model_copy(update={"run": folder.name}).model_dump_json())
        return folder

    return write


def cells(text):
    """The table's rows by their names, each as its cells by the heads of the columns."""
    lines = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("|")]
    head, *rows = [[cell.strip() for cell in line] for line in lines if "---" not in line[0]]
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}


@pytest.mark.slow
@pytest.mark.usefixtures("pictures")
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


# ---------------------------------------------------------------- which reports


def test_the_comparison_is_written_as_json_too(evaluated, tmp_path):
    compare([evaluated("lrtz"), evaluated("other", hidden=(20,))], tmp_path / "out")
    content = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert (content["report"], content["eps"]) == ("quick-test", 0.13)
    first, second = content["runs"]
    assert (first["run"], first["paper_model"], second["paper_model"]) == ("lrtz", "LRTZ", None)
    cells = {cell["condition"]: cell for cell in first["accuracies"]}
    assert cells["fgsm, transfer"]["accuracy"] == 0.25
    assert cells["fgsm, transfer"]["paper"] == 0.6136
    assert cells["fgsm, white box"]["accuracy"] is None
    assert 0 < cells["fgsm, transfer"]["low"] < 0.25 < cells["fgsm, transfer"]["high"]


def named(name, split="test"):
    suite = suite_of(ATTACKS, NOISE, corruptions="[contrast]", severities="[1, 5]")
    return suite.model_copy(update={"name": name, "split": split})


@pytest.mark.slow
def test_the_only_shared_report_is_compared_or_the_named_one(evaluated, tmp_path):
    for run, right in (("one", 2), ("two", 3)):
        evaluated(run, suite=named("paper"), right=right)
        evaluated(run, suite=named("mine", "validation"), right=right + 3)
    folders, out = [tmp_path / "one", tmp_path / "two"], tmp_path / "out"
    with pytest.raises(ConfigError, match="choose one of mine-validation, paper-test"):
        compare(folders, out)
    for suite, expected in (("paper", "25.00"), ("paper-test", "25.00"), ("mine-validation", "62.50")):
        assert cells(compare(folders, out, suite=suite))["fgsm, transfer"]["one"] == expected
    with pytest.raises(ConfigError, match=r"one has no report of 'mine'; it has mine-validation, paper-test"):
        compare(folders, out, suite="mine")  # which means the test images
    (tmp_path / "two" / "robustness" / "paper-test.json").unlink()
    assert cells(compare(folders, out))["fgsm, transfer"]["two"] == "75.00"
    with pytest.raises(ConfigError, match=r"two has no report of 'paper'"):
        compare(folders, out, suite="paper")


def test_runs_without_a_shared_report_are_refused(evaluated, tmp_path):
    folders = [evaluated("one", suite=named("paper")), evaluated("two", suite=named("quick"))]
    with pytest.raises(ConfigError, match=r"share no report .*one has paper-test; .*two has quick-test"):
        compare(folders, tmp_path / "out")


# ---------------------------------------------------------------- reports that do not belong


def test_a_report_of_another_network_is_refused(evaluated, tmp_path):
    folder = evaluated("one")
    (folder / "summary.json").write_text('{"params_sha256": "0f"}')
    compare([folder], tmp_path / "out")
    (folder / "summary.json").write_text('{"params_sha256": "1f"}')
    with pytest.raises(ConfigError, match="another network than the run's; evaluate the run again"):
        compare([folder], tmp_path / "out")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("noise", {"scale": 0.25}, "'noise.scale' differs"),
        ("seed", 7, "'seed' differs"),
        ("training", {"loss": "cross_entropy"}, "'training.loss' differs"),
        ("noise", 3, "its config is damaged"),
        ("model", {"hidden": [-1]}, "its config is damaged"),
    ],
)
def test_a_report_of_other_settings_or_with_a_damaged_config_is_one_line(evaluated, tmp_path, key, value, words):
    folder = evaluated("one")
    path = folder / "robustness" / "quick-test.json"
    content = json.loads(path.read_text())
    content["config"][key] = {**content["config"][key], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=words) as raised:
        compare([folder], tmp_path / "out")
    assert "\n" not in str(raised.value)


def test_settings_that_do_not_change_the_result_may_differ(evaluated, tmp_path):
    folder = evaluated("one")
    path = folder / "robustness" / "quick-test.json"
    content = json.loads(path.read_text())
    content["config"]["execution"]["threads"] = 3
    content["config"]["data"]["root"] = "/elsewhere"
    path.write_text(json.dumps(content))
    compare([folder], tmp_path / "out")


VALUES = [None, True, -1, 0, 1e308, 10**40, "", "x", "\n", "é" * 500, [], [[]], {}, {"a\nb": 1}, [None] * 3]


def mutated(content, stream):
    """Returns a report with one value, key or byte changed, removed or added."""
    text = json.dumps(content)
    kind = stream.integers(4)
    if kind == 0:  # a byte
        raw = bytearray(text.encode())
        raw[stream.integers(len(raw))] = stream.integers(256)
        return bytes(raw)
    if kind == 1:  # the end is missing
        return text.encode()[: stream.integers(len(text))]
    inner = content = json.loads(text)
    while True:
        keys = list(inner) if isinstance(inner, dict) else range(len(inner))
        key = keys[stream.integers(len(keys))]
        if not inner[key] or not isinstance(inner[key], dict | list) or stream.random() < 0.2:
            break
        inner = inner[key]
    if kind == 2:
        del inner[key]
    else:
        inner[key] = VALUES[stream.integers(len(VALUES))]
        if isinstance(inner, dict) and stream.random() < 0.2:
            inner["new\n" * 200] = inner.pop(key)
    return json.dumps(content).encode()


@pytest.mark.slow
def test_a_mutated_report_is_compared_or_refused_in_one_short_line(evaluated, tmp_path, monkeypatch):
    monkeypatch.setattr("glr_dist.robustness.compare.draw", lambda *_: False)
    folder, stream = evaluated("one"), np.random.default_rng(0)
    path = folder / "robustness" / "quick-test.json"
    content = json.loads(path.read_text())
    refused = 0
    for _ in range(300):
        path.write_bytes(mutated(content, stream))
        try:
            compare([folder], tmp_path / "out")
        except ConfigError as error:
            refused += 1
            assert "\n" not in str(error)
            assert len(str(error)) < 300 + 2 * len(str(path))
    assert refused > 150


def test_a_plot_that_fails_is_a_warning(evaluated, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError("no fonts")

    monkeypatch.setattr("glr_dist.robustness.compare.comparison_figure", fail)
    compare([evaluated("one")], tmp_path / "out")
    assert capsys.readouterr().err == f"warning: {tmp_path}/out/compare.png: cannot be drawn (no fonts)\n"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"compare.md", "compare.json"}
    assert "compare.png" not in (tmp_path / "out" / "compare.md").read_text()


def test_a_network_of_the_zoo_has_no_published_figures():
    config = Config(data={"name": "mnist"}, model={"name": "lenet5", "activation": "sigmoid"}).model_dump(mode="json")
    assert published(config) is None
