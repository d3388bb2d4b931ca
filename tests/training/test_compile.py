"""`execution.compile`: the path of a run is chosen before its first step, written into the run, and kept on resume."""

from __future__ import annotations

import pytest
import torch

from glr_dist import inductor
from glr_dist.build import network_of
from glr_dist.config import load_config
from glr_dist.data import load
from glr_dist.estimators import compiled_step
from glr_dist.execution.compile_choice import choose
from glr_dist.inductor import CompileError
from glr_dist.losses import cross_entropy
from glr_dist.runs import RunFolder, deciding
from glr_dist.training.train import train
from glr_dist.training.trainer import Trainer

STEP = "execution.compile=step"


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inductor.shutil, "which", lambda name: None)


@pytest.mark.slow
def test_a_compiled_run_is_resumed_with_compiled_steps(tiny, tmp_path, graphs, capsys):
    whole = train(tiny(STEP), tmp_path / "whole")
    assert graphs
    assert whole["compile"] == "step"
    Trainer(tiny(STEP), tmp_path / "parts").advance(1)
    assert train(tiny(), tmp_path / "parts", resume=True)["params_sha256"] == whole["params_sha256"]
    assert "execution.compile: step, as the run began; none needs a new run" in capsys.readouterr().err
    assert RunFolder(tmp_path / "parts").config().execution.compile == "step"


@pytest.mark.slow
def test_without_a_compiler_the_run_is_eager_and_stays_so(tiny, tmp_path, no_compiler, capsys):
    eager = train(tiny(), tmp_path / "eager")
    assert "compile" not in eager
    Trainer(tiny(STEP), tmp_path / "run").advance(1)
    assert capsys.readouterr().err.count("is not installed") == 1
    assert RunFolder(tmp_path / "run").config().execution.compile == "none"
    assert train(tiny(STEP), tmp_path / "run", resume=True)["params_sha256"] == eager["params_sha256"]
    assert "execution.compile: none, as the run began" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_whose_shared_pass_cannot_be_compiled_says_so_once_and_compiles_its_redraws(
    tiny, tmp_path, graphs, monkeypatch, capsys
):
    def refused(call: object) -> None:
        raise CompileError("a graph break")

    monkeypatch.setattr(compiled_step, "fused_pass", refused)
    assert train(tiny(STEP, "training.epochs=2"), tmp_path)["compile"] == "step"
    assert graphs
    said = [line for line in capsys.readouterr().err.splitlines() if "eagerly" in line]
    assert said == [
        "execution.compile: step; the shared pass cannot be compiled (a graph break); shared passes run eagerly"
    ]


@pytest.mark.slow
def test_a_compiled_run_does_not_continue_without_the_compiler(tiny, tmp_path, graphs, monkeypatch):
    Trainer(tiny(STEP), tmp_path / "run").advance(1)
    monkeypatch.setattr(inductor.shutil, "which", lambda name: None)
    with pytest.raises(CompileError, match="is not installed") as caught:
        train(tiny(STEP), tmp_path / "run", resume=True)
    assert "\n" not in str(caught.value)


def test_auto_decides_by_the_steps_to_come(tiny, capsys):
    config = tiny("estimator.copies=100")
    dataset = load(config.data, config.code)
    net = network_of(config, dataset, torch.device("cpu"))
    step = net.bind(*dataset.train.batch(slice(0, 64)), cross_entropy)
    assert choose(net.estimator, step, 10, 1) == "none"
    assert choose(net.estimator, step, 10**6, 1) == "step"
    assert "in 1,000,000 steps" in capsys.readouterr().err
    assert choose(net.estimator, step, 10**6, 10**6) == "none"  # batches of a million sizes


@pytest.mark.slow
def test_auto_writes_what_it_chose(tiny, tmp_path):
    assert "compile" not in train(tiny("execution.compile=auto", "training.epochs=1"), tmp_path)
    assert RunFolder(tmp_path).config().execution.compile == "none"


def test_compiled_steps_decide_the_result(tiny):
    assert deciding(tiny(STEP)) == {**deciding(tiny()), "execution.compile": "step"}


@pytest.mark.parametrize("name", ["joint", "pathwise"])
def test_estimators_without_redraws_of_one_site_are_refused(tiny, name):
    loss = ["training.loss=cross_entropy", "estimator.head=sampled"]
    with pytest.raises(inductor.UserError, match=f"execution.compile: 'step' has no effect with '{name}'"):
        tiny(STEP, f"estimator={{name: {name}}}", *loss)


@pytest.mark.long
def test_real_code_gives_the_same_parameters_on_one_and_two_threads_and_after_a_resume(tiny, tmp_path, compiler):
    whole = train(tiny(STEP, "execution.threads=1"), tmp_path / "whole")
    Trainer(tiny(STEP, "execution.threads=2"), tmp_path / "parts").advance(1)
    resumed = train(tiny(STEP, "execution.threads=2"), tmp_path / "parts", resume=True)
    assert resumed["params_sha256"] == whole["params_sha256"]
    assert whole["compile"] == "step"


def test_the_setting_is_read(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("execution: {compile: auto}\n")
    assert load_config(path).execution.compile == "auto"
