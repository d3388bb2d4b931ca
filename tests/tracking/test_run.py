"""A run in MLflow: its metrics and artifacts, its model, its final status."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient
from tracking.uploaded import assert_complete, tracked_run

from glr_dist import cli, tracking
from glr_dist.errors import ConfigError
from glr_dist.robustness.certificates.certify import certify
from glr_dist.robustness.certificates.settings import load_certification
from glr_dist.robustness.evaluate import evaluate
from glr_dist.robustness.suite import load_suite
from glr_dist.tracking.audit import _missing_certificates, forget_missing
from glr_dist.tracking.state import State, locked
from glr_dist.training.trained_run import load_run
from glr_dist.training.trainer import Trainer


@pytest.fixture(scope="module")
def followed(tiny, database, tmp_path_factory) -> tuple[Path, MlflowClient]:
    out = tmp_path_factory.mktemp("runs") / "mine"
    tags = f"tracking={{kind: mlflow, uri: '{database}', tags: {{mlflow.note.content: hello}}, register_as: digits}}"
    tracked_run(tiny(tags, "model.dropout=0.2"), out)
    return out, MlflowClient(database)


def test_no_run_is_tracked_by_default(tiny, tmp_path):
    tracked_run(tiny("training.epochs=1"), tmp_path / "run")
    assert not [path.name for path in (tmp_path / "run").iterdir() if "track" in path.name or "system" in path.name]


def test_a_run_is_uploaded_completely(followed):
    out, client = followed
    assert_complete(client, out, epochs=3)
    run = client.get_run(State.read(out).run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "mine")
    assert client.get_logged_model(State.read(out).model_id).name == "mine"
    assert run.data.params["noise.scale"] == "0.5"
    assert run.data.params["training.optimizer.name"] == "Adam"
    assert run.data.tags.keys() >= {"mlflow.note.content", "version.torch", "version.mlflow", "version.python"}
    (dataset,) = run.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.tags[0].value) == ("digits", "training")
    summary = json.loads((out / "summary.json").read_text())
    assert run.data.metrics["test/accuracy"] == summary["test_accuracy"]
    names = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert names == {"config.yaml", "learning_curve.pdf", "learning_curve.png", "metrics.jsonl", "summary.json"}


PATTERNS = [
    "noise.scale={'?': 0.5, '*': 0.2}",
    "noise.scale={'[0-1]': 0.5, '*': 0.2}",
    "noise.scale={'1': 0.3, '[!1]': 0.4, '*': 0.2}",
    "noise.scale={'[1-1]': 0.3, '[!ä=%]': 0.4, '*?': 0.6, '*': 0.2}",
]


@pytest.mark.slow
@pytest.mark.parametrize("scales", PATTERNS)
def test_patterns_of_sites_arrive_as_parameters(tiny, database, tmp_path, scales):
    """MLflow refuses many characters in the names of parameters, and one bad name would spoil the others."""
    config = tiny(scales, "training.epochs=1", f"tracking={{kind: mlflow, uri: '{database}'}}")
    out, client = tmp_path / "run", MlflowClient(database)
    tracked_run(config, out)
    assert_complete(client, out, epochs=1)
    params = client.get_run(State.read(out).run_id).data.params
    assert params["training.epochs"] == "1"
    found = sorted(value for name, value in params.items() if name.startswith("noise.scale"))
    assert found == sorted(str(scale) for scale in config.noise.scale.values())


def test_the_registered_model_predicts_as_the_network_does(followed):
    out, client = followed
    mlflow.set_tracking_uri(client.tracking_uri)
    (version,) = client.search_model_versions("name = 'digits'")
    assert version.run_id == State.read(out).run_id
    loaded = mlflow.pyfunc.load_model("models:/digits/1")
    trained = load_run(out, "cpu")  # threshold units, and dropout that must be off
    x, _ = trained.data.test.batch(slice(None))
    for some in (x, x[:1]):
        assert np.array_equal(loaded.predict(some.numpy()), trained.net.model(some).detach().numpy())
    assert loaded.metadata.signature.inputs.inputs[0].shape == (-1, 1, 8, 8)
    assert loaded.input_example.shape == (2, 1, 8, 8)


def test_certificates_are_uploaded_and_again_only_if_the_server_lost_them(followed):
    out, client = followed
    few = ["examples=6", "n=200", "attack={examples: 2, draws: 20, steps: 2}"]
    report = certify(out, load_certification(few), actors=0)
    tracking.send_report(out)
    run_id = State.read(out).run_id
    metrics = client.get_run(run_id).data.metrics
    assert metrics["certified/l2/clean"] == report.clean.accuracy
    assert report.metrics().items() <= metrics.items()
    names = {artifact.path for artifact in client.list_artifacts(run_id, "certificates")}
    assert names == {f"certificates/l2-test.{end}" for end in ("json", "md", "png", "pdf")}
    assert "certificates l2-test" in State.read(out).sent
    forget_missing(client, State.read(out))
    assert "certificates l2-test" in State.read(out).sent
    lost = SimpleNamespace(data=SimpleNamespace(metrics={"certified/l2/clean": 1.0}))
    assert _missing_certificates(lost, State.read(out)) == {"certificates l2-test"}


CURVE = "robust_by_1000_eps/quick-test/fgsm_transfer"


@pytest.mark.slow
def test_a_report_is_uploaded_and_nothing_twice(followed, capsys):
    out, client = followed
    smaller = ["examples=100", "surrogate.training.epochs=2", "corruptions.names=[glass_blur, contrast]"]
    (test,) = evaluate([out], load_suite("quick", smaller), actors=0)
    few = ["split=validation", "examples=50", "attacks=[]", "corruptions.names=[]"]
    (validation,) = evaluate([out], load_suite("quick", few), actors=0)
    tracking.send_report(out)
    run_id = State.read(out).run_id
    metrics = client.get_run(run_id).data.metrics  # reports of several suites and splits do not mix
    assert metrics["clean/quick-test/accuracy"] == test.clean.accuracy
    assert metrics["clean/quick-validation/accuracy"] == validation.clean.accuracy
    assert test.clean.accuracy != validation.clean.accuracy
    assert "warning" not in capsys.readouterr().err

    def everything() -> tuple:
        run = client.get_run(run_id)
        history = {name: len(client.get_metric_history(run_id, name)) for name in run.data.metrics}
        models = client.search_logged_models([run.info.experiment_id])
        return history, run.data.tags, run.info.end_time, len(models), client.search_model_versions("name = 'digits'")

    before = everything()
    assert before[0]["clean/quick-test/accuracy"] == 1
    assert before[0]["robust/quick-test/fgsm_transfer_eps_0.1"] == 1
    assert before[0]["corruption/quick-test/glass_blur_s3"] == 1
    assert any(re.fullmatch(r"robust/quick-test/all_attacks_linf_eps_0\.1", name) for name in before[0])
    curve = [(point.step, point.value) for point in client.get_metric_history(run_id, CURVE)]
    results = {a.eps: a.rate.accuracy for a in test.attacks if (a.attack, a.threat) == ("fgsm", "transfer")}
    assert curve == [(0, test.clean.accuracy), (100, results[0.1]), (200, results[0.2])]
    assert before[0]["corruption_by_severity/quick-test/glass_blur"] > 1
    assert {len(name.split("/")) for name in before[0] if "quick-" in name} == {3}  # one section per suite
    table = json.loads(Path(client.download_artifacts(run_id, "robustness/table.json")).read_text())
    assert table["columns"][0] == "condition"
    assert table["data"][0][0] == "clean"
    assert cli.main(["sync", str(out)]) == 0
    assert f"run {run_id}" in capsys.readouterr().out
    # Also if the record of the uploads is lost.
    State.read(out).change(lines={}, sent={})
    tracking.sync(out)
    after = everything()
    assert after[0] == before[0]
    assert after[1:4] == before[1:4]
    assert len(after[4]) == 1


ENDS = {
    "Ctrl-C": (KeyboardInterrupt, "KILLED", "false"),
    "stopped by Tune": (SystemExit, "FINISHED", "true"),
    "exception": (RuntimeError, "FAILED", "false"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("error", "status", "early"), ENDS.values(), ids=ENDS)
def test_a_run_has_the_status_of_its_end_and_continues_as_the_same_run(tiny, database, tmp_path, error, status, early):
    out, client = tmp_path / "run", MlflowClient(database)
    config = tiny("training.epochs=3", f"tracking={{kind: mlflow, uri: '{database}'}}")
    trainer = Trainer(config, out)
    square_norms = trainer._square_norms

    def stopped(squares: dict) -> None:
        if trainer.net.step == 5:
            raise error
        square_norms(squares)

    trainer._square_norms = stopped
    with pytest.raises(error), tracking.tracked(config, out):
        trainer.run()
    run_id = State.read(out).run_id
    run = client.get_run(run_id)
    assert (run.info.status, run.data.tags["stopped_early"]) == (status, early)
    assert_complete(client, out, epochs=1)
    # Resumed without a URI, it stays on its server.
    elsewhere = tiny("training.epochs=3", "tracking.kind=mlflow")
    tracked_run(elsewhere, out, resume=True)
    assert State.read(out).run_id == run_id
    run = client.get_run(run_id)
    assert (run.info.status, run.data.tags["stopped_early"]) == ("FINISHED", "false")
    assert_complete(client, out, epochs=3)


def test_a_run_that_has_not_ended_is_not_synced(followed):
    out, _ = followed
    with locked(out) as acquired:
        assert acquired
        with pytest.raises(ConfigError, match="has not ended"):
            tracking.sync(out)


def test_a_run_that_was_not_tracked_is_not_synced(tiny, tmp_path):
    Trainer(tiny(), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"tracking\.kind=mlflow"):
        tracking.sync(tmp_path / "run")


@pytest.mark.slow
def test_a_run_that_is_resumed_with_more_epochs_is_uploaded_again(tiny, database, tmp_path, capsys):
    out, client = tmp_path / "run", MlflowClient(database)
    settings = ["estimator.copies=2", f"tracking={{kind: mlflow, uri: '{database}'}}"]
    tracked_run(tiny(*settings, "training.epochs=2"), out)
    tracked_run(tiny(*settings, "training.epochs=3"), out, resume=True)
    assert capsys.readouterr().err == ""
    assert_complete(client, out, epochs=3)
    run = client.get_run(State.read(out).run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["training.epochs"] == "2"  # MLflow changes no parameter; config.yaml has the new value
    summary = json.loads((out / "summary.json").read_text())
    assert run.data.metrics["test/accuracy"] == summary["test_accuracy"]
    assert run.data.tags["params_sha256"] == summary["params_sha256"]
