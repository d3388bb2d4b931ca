"""Checks the pages: Python blocks and commands run as shown; settings, links and file names are valid."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from test_architecture import LAYERS
from torch import nn

import glr_dist
from glr_dist.cli import main
from glr_dist.cli.parser import parse
from glr_dist.config import load_config
from glr_dist.registry import LOSSES
from glr_dist.robustness.suite import load_suite
from glr_dist.tracking import follower
from glr_dist.training.trainer import Trainer
from glr_dist.tuning.search_config import load_search

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [
        *ROOT.glob("*.md"),
        *(path for folder in ("configs", "jobs", "glr_dist") for path in (ROOT / folder).rglob("*.md")),
    ]
)

# The commands that run here, one page after the other from top to bottom, with overrides that make them short.
TINY = ["training.epochs=1", "estimator.copies=8", "execution.device=cpu"]
SMALL = [
    "examples=20",
    "attacks=[{name: fgsm, eps: 0.1}]",
    "corruptions={names: [contrast], severities: [1]}",  # a sheet of fewer pictures, which take seconds
    "surrogate.training.epochs=1",
    "adaptive={spreads: [0.1], copies: 8}",
]
RUNS = {
    "glr-dist train configs/digits.yaml": TINY,
    "glr-dist evaluate runs/digits-1 --suite quick": SMALL,
    "glr-dist train configs/digits.yaml seed=1 noise.scale=0.8 --out runs/my-run": TINY,
    "glr-dist config configs/digits.yaml": [],
    "glr-dist train configs/digits.yaml --resume": TINY,
    "glr-dist train --resume --out runs/my-run": [],
    "glr-dist train configs/digits.yaml training.schedule=null --out runs/plain": TINY,
    "glr-dist train --resume --out runs/plain training.epochs=40": ["training.epochs=2"],
    "glr-dist train configs/digits.yaml model.weights=runs/my-run training.epochs=5 --out runs/warm": TINY,
    "glr-dist evaluate runs/my-run --suite quick --checkpoint best": SMALL,
    "glr-dist train configs/digits.yaml --out runs/lrt": TINY,
    "glr-dist train configs/digits.yaml robustness.every=5 robustness.at_end=paper --out runs/watched": [
        *TINY,
        "robustness.examples=20",
        "robustness.suite={name: few, attacks: [{name: random_sign}], corruptions: {names: []}}",
        "robustness.at_end={name: few, examples: 20, attacks: [{name: random_sign}], corruptions: {names: []}}",
    ],
    "glr-dist train configs/digits.yaml estimator.name=pathwise model.activation=sigmoid --out runs/bp": TINY[:1],
    "glr-dist evaluate runs/lrt runs/bp --suite quick examples=200": SMALL,
    "glr-dist compare runs/bp runs/lrt": [],
    "glr-dist evaluate runs/lrt --suite authors name=authors-1 surrogate.seed=1001": [
        "examples=20",
        "surrogate.training.epochs=1",
        "corruptions={names: [glass_blur], severities: [1], constants: authors}",
    ],
    "glr-dist certify runs/lrt norm=linf examples=100": ["examples=4", "steps=2", "adaptive.copies=8"],
    "glr-dist certify runs/lrt examples=500 n=10000": ["examples=4", "n=200", "attack={examples: 2, draws: 20}"],
    "glr-dist plan configs/diagnose/mnist_sigmoid.yaml estimator.copies=1000 training.batch_size=1024 "
    "--actors 1 2 4 8 16 64": ["data.name=digits", "estimator.copies=20", "training.batch_size=64"],
    "glr-dist diagnose configs/digits.yaml --grid model.activation=sigmoid diagnose.scales=[0.1,0.5,1]": [
        "diagnose.copies=[4,8]",
        "diagnose.draws=2",
        "diagnose.batch=8",
        "diagnose.reference_passes=50",
    ],
    "glr-dist train configs/zoo/mnist_spiking_mlp.yaml": [*TINY, "data.name=digits"],
    "glr-dist train configs/fashion_mnist/lrt.yaml estimator.passes=1 training.epochs=12 --out runs/lrt": [
        *TINY,
        "data.name=digits",
    ],
    "glr-dist train configs/fashion_mnist/lrtz.yaml estimator.passes=1 "
    "training.epochs=12 training.optimizer.lr=0.003 model.weights=runs/lrt": [*TINY, "data.name=digits"],
    "glr-dist train configs/certified/mnist_lrtz.yaml --out runs/lrtz": [
        *TINY,
        "data.name=digits",
        "noise.schedule={}",
    ],
    "glr-dist certify runs/lrtz input_noise=0.3 passes=25 examples=500 n=10000": [
        *("examples=8", "n=200", "attack.examples=2", "attack.draws=50")
    ],
    "glr-dist init my-project": [],
    "glr-dist train my-project/config.yaml --out runs/mine": TINY[:2],
    "glr-dist export runs/mine --to net.pt2": [],
    "glr-dist runs": [],
    "glr-dist diagnose configs/diagnose/mnist_sigmoid.yaml": [
        "data.name=digits",
        "diagnose.copies=[4,8]",
        "diagnose.draws=2",
        "diagnose.batch=8",
        "diagnose.reference_passes=50",
    ],
}

# The commands that start Ray or a compiler, or create a database of MLflow, which takes seconds.
ON_RAY = {
    "glr-dist train configs/mnist/lrs.yaml execution.compile=step": ["data.name=digits", *TINY],
    "glr-dist train configs/digits.yaml execution.kind=layers execution.actors=2": TINY,
    "glr-dist tune configs/tune/digits_noise_scale.yaml": [
        "tune.trials=3",
        "training.epochs=1",
        "tune.robustness.surrogate.training.epochs=1",
        "tune.robustness.examples=20",
        "tracking.kind=none",
    ],
    "glr-dist tune configs/tune/digits_noise_schedule.yaml": [
        "tune.trials=4",
        "tune.interval=1",
        "training.epochs=2",
        "tracking.kind=none",
    ],
}
WITH_MLFLOW = {
    "glr-dist train configs/digits.yaml tracking.kind=mlflow": TINY,
    "glr-dist sync runs/digits-1": [],
    "glr-dist sync runs/digits-1 --uri sqlite:///copy.db": [],
}


class Command(NamedTuple):
    """A command of a page and the output that the page shows for it."""

    page: str
    text: str
    output: list[str]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


def commands(page: str) -> Iterator[Command]:
    for block in blocks(page, "console"):
        for part in re.split(r"^\w*\$ ", block.replace("\\\n", " "), flags=re.MULTILINE)[1:]:
            first, *output = part.splitlines()
            text = " ".join(re.sub(r"\s#\s.*", "", first).split())
            for command in re.split(r" && | \| ", text):
                yield Command(page, command, output if command == text else [])


COMMANDS = [command for page in PAGES for command in commands(page)]


def shape(line: str) -> str:
    """Masks the numbers, units and column widths of a line, and what else differs from run to run."""
    line = re.sub(r"\d[\d,]*(\.\d+)?(e[+-]?\d+)?", "#", line)
    line = re.sub(r"\b[kMG]?B\b", "B", line)
    line = re.sub(r"#: #(, #: #)*", "#", line)  # a schedule
    line = line.replace(" * |", " |")  # the star of a Pareto front
    return re.sub(r"(?<=[-# |])[-# ]+", "", line).strip()


def agrees(shown: list[str], printed: list[str]) -> bool:
    """True if the printed lines have the shape of the shown ones, where "…" stands for any text or any lines."""
    pattern = ""
    for line in shown:
        if line.strip() == "…":
            pattern += r"(?:[^\n]*\n)*?"
        else:
            pattern += ".*".join(map(re.escape, shape(line).split("…"))) + r"\n"
    return re.fullmatch(pattern, "".join(shape(line) + "\n" for line in printed)) is not None


def test_the_comparison_of_outputs_sees_a_difference():
    printed = ["epoch 1/1  loss 0.5", "test_accuracy  0.96", "results  /tmp/x"]
    assert agrees(["epoch 30/30  loss 0.0786", "…", "results  …"], printed)
    assert agrees(["epoch 1/1  loss 7", "test_accuracy  1", "results  /tmp/x"], printed)
    assert not agrees(["epoch 1/1  loss 7", "results  …"], printed)
    assert not agrees(["epoch 1/1  loss 7", "…", "result  …"], printed)
    assert not agrees(["epoch 1/1  loss 7", "test_loss  1", "results  …"], printed)


# ---------------------------------------------------------------- Python


def run_python(page: str, number: int) -> dict[str, Any]:
    """Runs a block and returns its names."""
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(blocks(page, "python")[number], page, "exec"), names)
    return names


@pytest.mark.slow
def test_a_newcomers_script_learns_exclusive_or_and_is_saved_loaded_and_asked(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert len(blocks("README.md", "python")[0].splitlines()) <= 15
    torch.manual_seed(0)
    names = run_python("README.md", 0)
    assert capsys.readouterr().out == "tensor([1, 0, 1])\n"
    x = torch.randn(1000, 2)
    accuracy = (names["net"](x).argmax(1) == (x.prod(1) > 0)).float().mean()
    assert accuracy > 0.85  # guessing gives 0.5
    saved = torch.load("xor.pt", weights_only=True)
    fresh = glr_dist.GLR(nn.Sequential(nn.Linear(2, 32), names["Step"](), nn.Linear(32, 2)), noise=names["Sech"](0.3))
    fresh.load_state_dict(saved)
    assert torch.equal(fresh(x), names["net"](x))


@pytest.mark.slow
def test_the_example_of_the_estimators_learns_exclusive_or_and_its_scales(capsys):
    names = run_python("glr_dist/estimators/README.md", 0)
    assert names["accuracy"] > 0.9
    assert f"{names['accuracy']:.3f}" in capsys.readouterr().out
    assert set(names["net"].scales()) == {"hidden", "out"}
    assert all(scale.item() != 0.5 for scale in names["net"].scales().values())


@pytest.mark.slow
def test_the_further_blocks_of_the_estimators_page_run(capsys):
    names: dict[str, Any] = {}
    for number in range(11):
        exec(blocks("glr_dist/estimators/README.md", "python")[number], names)
    printed = capsys.readouterr().out
    assert "BatchNorm1d" in printed
    assert "5" in next(line for line in printed.splitlines() if line.startswith("cell ")).split()  # calls
    assert names["reader"].model.cell.weight.grad.any()
    assert "column_space (40)" in printed
    assert "noise on the weights at 0.weights" in printed
    assert names["net"].bind(names["x"], names["y"], names["CostlyMistakes"]()).head.kind == "expected"
    assert names["exact"].bind(names["x"], names["y"]).unit_wise["0"].name == "differences"
    exec(blocks("glr_dist/estimators/README.md", "python")[11], names)
    assert "forward passes a step" in capsys.readouterr().out
    assert 0 < names["net"].allotment.forward_passes <= 20


def test_the_examples_of_the_networks_run():
    assert len(run_python("glr_dist/nn/README.md", 0)["net"].model) == 6
    assert all(parameter.grad is not None for parameter in run_python("glr_dist/nn/README.md", 1)["model"].parameters())


@pytest.mark.slow
def test_the_example_of_the_configurations_trains_with_its_own_loss(tmp_path, monkeypatch, capsys):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(LOSSES, "_added", {})
    names = run_python("configs/README.md", 0)
    assert names["summary"]["test_accuracy"] > 0.6  # guessing gives 0.1
    assert str(names["summary"]["test_accuracy"]) in capsys.readouterr().out
    assert glr_dist.load_config("runs/margin/config.yaml").training.loss == "margin"


@pytest.mark.long
@pytest.mark.ray
def test_the_example_of_the_execution_estimates_on_actors(local_ray):
    names = run_python("glr_dist/execution/README.md", 0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 32), nn.Sigmoid(), nn.Linear(32, 2))
    inline = glr_dist.GLR(model, noise=0.5)
    assert torch.equal(inline.estimate(names["x"], names["y"]), names["loss"])
    assert torch.equal(model[0].weight.grad, names["model"][0].weight.grad)


def test_no_page_has_a_python_block_that_no_test_runs():
    tested = {
        "README.md": 2,
        "configs/README.md": 1,
        "glr_dist/estimators/README.md": 12,
        "glr_dist/execution/README.md": 1,
        "glr_dist/nn/README.md": 2,
    }
    assert {page: len(found) for page in PAGES if (found := blocks(page, "python"))} == tested


# ---------------------------------------------------------------- commands


def test_every_command_is_run_and_none_is_listed_in_vain():
    ours = {command.text for command in COMMANDS if command.text.startswith("glr-dist ")}
    assert parse(["completion", "bash"]).command == "completion"  # of the shell's own `eval`
    assert ours == RUNS.keys() | ON_RAY.keys() | WITH_MLFLOW.keys()


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A folder with the configurations of this repository, in which commands run."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_commands(page: str, listed: dict[str, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    """Runs the listed commands of a page, and compares what they print with what the page shows."""
    for command in commands(page):
        if command.text in listed:
            words = shlex.split(command.text)[1:]
            end = words.index("--actors") if "--actors" in words else len(words)  # it would take overrides as numbers
            assert main([*words[:end], *listed[command.text], *words[end:]]) == 0, command.text
            printed = capsys.readouterr().out.splitlines()
            assert printed
            if command.output:
                assert agrees(command.output, printed), "\n".join([command.text, *printed])


def pages_with(listed: dict[str, list[str]]) -> list[str]:
    return [page for page in PAGES if any(command.text in listed for command in commands(page))]


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.long] * page.startswith("glr_dist/robustness"))
        for page in pages_with(RUNS)
    ],
)
def test_commands_run_and_print_what_the_page_shows(page, checkout, capsys):
    run_commands(page, RUNS, capsys)
    if page == "README.md":
        named = set(re.findall(r"\bruns/[\w./-]*\w", (ROOT / page).read_text()))
        assert [path for path in named if not Path(path).exists()] == []
        run = run_python(page, 1)["run"]
        assert len(run.metrics) == run.epoch == 1
        assert len(re.findall(r"tensor\(\[[\d, ]+\]\)", capsys.readouterr().out)) == 2


def test_a_stopped_run_prints_what_the_page_of_jobs_shows(checkout, tiny_yaml, monkeypatch, capsys):
    def interrupted(trainer: Trainer) -> None:
        trainer.advance(1)
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "run", interrupted)
    assert main(["train", str(tiny_yaml), "--out", "runs/digits-0"]) == 130
    (shown,) = re.findall(r"^stopped after.*", (ROOT / "jobs/README.md").read_text(), re.MULTILINE)
    assert agrees([shown.replace("/shared", "…")], capsys.readouterr().err.splitlines())


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.parametrize("page", pages_with(ON_RAY))
def test_commands_run_on_ray_and_print_what_the_page_shows(page, checkout, local_ray, capsys):
    run_commands(page, ON_RAY, capsys)


@pytest.mark.long
@pytest.mark.parametrize("page", pages_with(WITH_MLFLOW))
def test_commands_run_with_mlflow(page, checkout, monkeypatch, capsys):
    monkeypatch.setattr(follower, "_PATIENCE", 60.0)  # on a machine that may be busy
    run_commands(page, WITH_MLFLOW, capsys)
    assert Path("mlflow.db").stat().st_size
    assert Path("copy.db").stat().st_size


@pytest.mark.parametrize(
    "text", sorted({command.text for command in COMMANDS if command.text.startswith("python jobs/")})
)
def test_the_jobs_exist_and_know_the_options(text):
    words = shlex.split(text)
    source = (ROOT / words[1]).read_text()
    for option in [word for word in words[2:] if word.startswith("--")]:
        assert f'"{option}"' in source, option


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.text.startswith("ray job submit")], ids=str)
def test_submitted_jobs_have_a_configuration_and_options_that_exist(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    entrypoint = command.text.partition(" -- python ")[2]
    own = entrypoint.startswith("-m glr_dist ")  # a configuration of the reader's
    words = entrypoint.removeprefix("-m glr_dist " if own else "jobs/").split()
    name = words[0] if own else words[0].removesuffix(".py")
    assert name in ("train", "tune")
    options = parse([name, *words[1:]])
    if not own:
        load_config(options.config, options.overrides)
    assert options.out.is_absolute()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of their imports
def test_the_programs_of_others_are_known():
    """Commands of Ray and MLflow exist with their options; the rest belongs to the system."""
    from mlflow.cli import cli as mlflow
    from ray.scripts.scripts import cli as ray

    for command in COMMANDS:
        program, *words = shlex.split(command.text)
        if program in ("ray", "mlflow"):
            found = {"ray": ray, "mlflow": mlflow}[program]
            words = words[: words.index("--")] if "--" in words else words
            while words and words[0] in getattr(found, "commands", ()):
                found = found.commands[words.pop(0)]
            assert not hasattr(found, "commands"), command.text
            known = {option for parameter in found.params for option in parameter.opts}
            given = {word for word in words if word.startswith("--")}
            assert given <= known, (command.text, given - known)
        else:
            others = {
                "pip",
                "pytest",
                "python",
                "pre-commit",
                "export",
                "chmod",
                "sudo",
                "tail",
                "glr-dist",
                ".",
                "eval",
            }
            assert program in others, command.text


# ---------------------------------------------------------------- settings, links, names, form


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "yaml")])
def test_settings_are_valid(page, tmp_path):
    for number, block in enumerate(blocks(page, "yaml")):
        path = tmp_path / f"{number}.yaml"
        path.write_text(block)
        values = yaml.safe_load(block)
        if "tune" in values:
            load_search(path, [])
        elif "attacks" in values:
            load_suite(str(path))
        else:
            load_config(path, [])


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / page).read_text())
    local = [link for link in links if not link.startswith("http")]
    assert [link for link in local if not ((ROOT / page).parent / link).exists()] == []


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])
def test_files_that_a_page_names_exist(page):
    named = re.findall(r"\b(?:configs|jobs|tests|glr_dist)/[\w/]*\w(?:\.\w+)?\b/?", (ROOT / page).read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_contributing_lists_the_layers_in_the_order_of_their_imports():
    table = (ROOT / "CONTRIBUTING.md").read_text().partition("| layer | content |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| (`[^|]+`) \|", table, re.MULTILINE)
    assert len(rows) == len(LAYERS)
    for row, layer in zip(rows, LAYERS, strict=True):
        assert {name.strip("`/") for name in row.split(", ")} <= layer


@pytest.mark.slow
def test_the_names_of_contributing_are_in_the_code():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"`([A-Za-z]\w{3,})`", text)) | set(re.findall(r"`([A-Za-z]\w+)\(", text))
    sources = [path for folder in ("glr_dist", "tests") for path in (ROOT / folder).rglob("*.py")]
    code = (
        "\n".join(path.read_text() for path in sources if path != Path(__file__))
        + (ROOT / "pyproject.toml").read_text()
    )
    places = {path.stem for path in sources} | {path.parent.name for path in sources}
    assert len(named) > 30
    assert {name for name in named if not re.search(rf"\b{name}\b", code)} - places == set()


def test_the_readme_is_short_and_leads_to_every_page():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 100] == []
    linked = set(re.findall(r"\]\(([^)#]+)\)", "\n".join(lines)))
    assert set(PAGES) - {"README.md"} <= linked


@pytest.mark.parametrize("page", PAGES)
def test_prose_is_wrapped(page):
    prose = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)
    assert [line for line in prose.splitlines() if len(line) > 100 and not line.startswith("|")] == []
