"""Suggested points, the ranking of trials, and their records."""

from __future__ import annotations

import pytest

from glr_dist.tuning.objectives import suite_metrics
from glr_dist.tuning.ranking import pareto_front, ranked
from glr_dist.tuning.search_config import Robustness
from glr_dist.tuning.study import Study
from glr_dist.tuning.trial_record import TrialRecord, read_records, trial_folder


def study_of(search, records=()):
    return Study(search.tune, search.base.model_dump(mode="json"), records)


def result(number, point, value, status="finished"):
    metrics = {"validation/accuracy": value, "validation/loss": 1 - value}
    return TrialRecord(number=number, point=point, status=status, metrics=metrics, epochs=2)


def score(point):
    return 1 - (point["noise.scale"] - 0.2) ** 2


def run(search, records=()):
    """Runs the remaining trials one after another."""
    records = list(records)
    study = study_of(search, records)
    for number in range(len(records), search.tune.number):
        point = study.suggest(number)
        records.append(result(number, point, score(point)))
        study.tell(records[-1])
    return records


@pytest.mark.parametrize("algorithm", ["random", "optuna"])
def test_the_same_seed_suggests_the_same_points_even_when_resumed(tiny_search, algorithm):
    search = tiny_search("tune.trials=14", f"tune.algorithm={algorithm}")
    whole = run(search)
    assert run(search) == whole
    assert run(search, whole[:9]) == whole  # rebuilt from the records alone
    points = [record.point["noise.scale"] for record in whole]
    assert points[0] == 0.5  # the base configuration
    assert len(set(points)) == 14
    assert all(0.05 <= point <= 3 for point in points)
    other = tiny_search("tune.trials=14", f"tune.algorithm={algorithm}", "tune.seed=1")
    assert run(other)[1:] != whole[1:]


def test_optuna_learns_the_best_region(tiny_search):
    def distance(algorithm):
        records = run(tiny_search("tune.trials=40", f"tune.algorithm={algorithm}"))
        return sum(abs(record.point["noise.scale"] - 0.2) for record in records[20:])

    assert distance("optuna") < 0.5 * distance("random")


def test_lists_integers_and_values_that_optuna_cannot_represent(tiny_search):
    search = tiny_search(
        "tune.trials=12",
        "tune.algorithm=random",
        "tune.space={model.hidden: {choice: [[4], [8, 8]]}, training.epochs: {randint: [1, 3]}}",
    )
    study = study_of(search)
    points = [study.suggest(number) for number in range(12)]
    assert {tuple(point["model.hidden"]) for point in points} == {(4,), (8, 8)}
    assert {point["training.epochs"] for point in points} == {1, 2, 3}


def test_a_grid_suggests_its_points_in_order(tiny_search):
    search = tiny_search("tune.algorithm=grid", "tune.trials=null", "tune.space={noise.scale: {grid: [3, 1, 2]}}")
    study = study_of(search)
    assert [study.suggest(number)["noise.scale"] for number in range(3)] == [3, 1, 2]


def test_stopped_and_failed_trials_give_the_study_no_values(tiny_search):
    study = study_of(tiny_search())
    for number, status in enumerate(("finished", "stopped", "failed")):
        study.tell(result(number, study.suggest(number), 0.5, status))
    assert [trial.state.name for trial in study.optuna.trials] == ["COMPLETE", "PRUNED", "FAIL"]


@pytest.mark.slow
def test_the_field_that_matters_has_the_highest_importance(tiny_search):
    space = "tune.space={noise.scale: {loguniform: [0.05, 3]}, noise.floor: {uniform: [0.001, 0.01]}}"
    search = tiny_search("tune.trials=40", "tune.algorithm=random", space)
    found = study_of(search, run(search)).importances(0)
    assert found["noise.scale"] > 0.8 > found["noise.floor"]


def test_trials_with_equal_values_give_no_field_an_importance(tiny_search):
    space = "tune.space={noise.scale: {loguniform: [0.05, 3]}, noise.floor: {uniform: [0.001, 0.01]}}"
    study = study_of(tiny_search("tune.trials=8", "tune.algorithm=random", space))
    for number in range(8):
        study.tell(result(number, study.suggest(number), 0.5))
    assert study.importances(0) == {"noise.scale": 0.0, "noise.floor": 0.0}


def test_the_best_trial_is_first_and_the_pareto_front_is_not_dominated():
    values = [(0.9, 0.1), (0.8, 0.5), (0.7, 0.4), (0.9, 0.1), (0.6, 0.9)]
    records = [
        TrialRecord(number=number, point={}, status="finished", metrics={"clean/accuracy": a, "x/accuracy": b})
        for number, (a, b) in enumerate(values)
    ]
    names = ("clean/accuracy", "x/accuracy")
    stopped = TrialRecord(number=5, point={}, status="stopped", metrics={"clean/accuracy": 1.0})
    assert [record.number for record in ranked([stopped, *records], names)] == [0, 3, 1, 2, 4, 5]
    assert {record.number for record in pareto_front([stopped, *records], names)} == {0, 3, 1, 4}
    losses = [
        TrialRecord(number=n, point={}, status="finished", metrics={"validation/loss": v}) for n, v in enumerate((2, 1))
    ]
    assert ranked(losses, ("validation/loss",))[0].number == 1


def test_records_round_trip(tmp_path):
    records = [result(number, {"noise.scale": 0.1 * number, "model.hidden": [4]}, 0.5) for number in range(11)]
    for record in records:
        record.save(tmp_path)
    (tmp_path / "trials" / "3").mkdir()
    assert read_records(tmp_path) == records


def test_a_parent_is_read_from_records_of_version_0_4_too(tmp_path):
    child = TrialRecord(number=5, point={"noise.scale": 1.0}, parent=3)
    child.save(tmp_path)
    assert read_records(tmp_path) == [child]
    path = trial_folder(tmp_path, 5).with_suffix(".json")
    assert path.read_text().count('"parent": 3') == 1
    path.write_text(path.read_text().replace('"parent"', '"donor"'))
    assert read_records(tmp_path) == [child]


def test_the_metrics_of_a_suite_are_known_before_it_runs():
    suite = {"attacks": [{"name": "pgd", "threats": ["adaptive"], "eps": [0.1, 0.2]}, {"name": "lbfgs"}]}
    suite["corruptions"] = {"names": ["contrast"], "severities": [3]}
    assert suite_metrics(Robustness.model_validate(suite)) == [
        "clean/accuracy",
        "robust/adaptive/pgd/eps_0.1/accuracy",
        "robust/adaptive/pgd/eps_0.2/accuracy",
        "robust/white_box/lbfgs/accuracy",
        "robust/transfer/lbfgs/accuracy",
        "robust/all_attacks/linf/eps_0.1/accuracy",
        "robust/all_attacks/linf/eps_0.2/accuracy",
        "corruption/contrast/s3/accuracy",
        "corruption/mce",
    ]
