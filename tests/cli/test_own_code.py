"""A folder outside the package with a user's network, data, loss and configuration: every command works on it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import torch
from error_lines import error_line

from glr_dist import cli, load_config, load_run
from glr_dist.runs import RunFolder
from glr_dist.training.train import train

NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, width: int = 16, classes: int = 3):
        super().__init__()
        self.first = nn.Linear(6, width)
        self.second = nn.Linear(width, classes)

    def forward(self, x):
        return self.second((self.first(x) > 0).float())


def small(**arguments):
    return Net(width=4, **arguments)


def wrong(outputs, targets):
    return (outputs.argmax(-1) != targets).float()


def pair(x):
    return x


class Reader(nn.Module):
    # Reads a sequence [T, 2] and returns the scores of its last state, in a mapping.
    def __init__(self, units: int, num_classes: int):
        super().__init__()
        self.rnn = nn.GRU(2, units, batch_first=True)
        self.head = nn.Linear(units, num_classes)

    def forward(self, x):
        states, _ = self.rnn(x)
        return {"states": states, "scores": self.head(states[:, -1])}


class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8 + 1, 3)

    def forward(self, features, count):
        return self.b(torch.cat([(self.a(features) > 0).float(), count.float()[:, None]], 1))


def mean(outputs, targets):
    return wrong(outputs, targets).mean()


def failing(outputs, targets):
    raise KeyError("of the loss")


def undefined(outputs, targets):
    return outputs[:, 0] * float("nan")


class Undefined(Net):
    def forward(self, x):
        return super().forward(x) * float("nan")


class Each(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 2)

    def forward(self, x):
        return self.layer(x[:, :, None])


def pixels():
    # Of three classes, for images [1, 2, 3] and for sequences [3]: the scores are the second or the last dimension.
    return nn.Conv2d(1, 3, 1)


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 3)

    def forward(self, x):
        return self.layer(x[:, :, None])


class Scalar(nn.Module):
    def forward(self, x):
        return x.sum()
"""
DATA = """
import numpy as np
from torch.utils.data import Dataset, IterableDataset


def blobs(examples=300, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, examples)
    x = rng.normal(size=(examples, 6)) + 2 * np.eye(6)[y]
    return {"train": (x, np.array(["cat", "dog", "eel"])[y])}


def sequences(examples=300):
    # The class is the number of positive sums of two steps at a time.
    x = np.random.default_rng(1).normal(size=(examples, 4, 2))
    return x, (x.sum(2).reshape(-1, 2, 2).sum(2) > 0).sum(1)


def two_inputs(examples=300):
    x, y = blobs(examples)["train"]
    return {"features": x, "count": np.arange(examples)}, y


def damaged(examples=300):
    parts = blobs(examples)
    parts["train"][0][7, 2] = np.nan
    return parts


def shorter(examples=300):
    x, y = blobs(examples)["train"]
    return {"train": (x, y[:-1])}


def one_class():
    x, _ = blobs()["train"]
    return x, np.zeros(len(x), int)


def real():
    x, _ = blobs()["train"]
    return x, x.sum(1)


def misspelt():
    return blobs() | {"validaton": blobs()["train"]}


def masks(kind):
    x = np.random.default_rng(3).random((200, 1, 2, 3) if kind == "pixels" else (200, 3), np.float32)
    classes = np.digitize(x, [1 / 3, 2 / 3])
    return x, classes[:, 0] if kind == "pixels" else classes


def below(wrong=-1):
    y = np.zeros((30, 6), int)
    y[7, 2], y[8, 2] = wrong, 2
    return np.zeros((30, 6), np.float32), y


def row():
    return np.linspace(0, 1, 30), np.arange(30) % 3


def from_file(path, channels):
    assert channels == 1
    return tuple(np.load(path).values())


class Damaged(Dataset):
    def __len__(self):
        return 30

    def __getitem__(self, index):
        if index == 5:
            raise RuntimeError("a damaged file")
        return np.zeros(6, np.float32), index % 3


class Stream(IterableDataset):
    def __iter__(self):
        return iter(())


class Changed(Dataset):  # holds arrays under the names that torchvision uses
    data, targets = np.zeros((30, 6), np.float32), np.arange(30) % 3

    def __len__(self):
        return 30

    def __getitem__(self, index):
        return self.data[index] + index, self.targets[index]


def nothing():
    return {"training": (np.zeros((3, 6)), np.zeros(3))}


def raising():
    return 1 / 0
"""
CONFIG = """
data: {name: "DATA:blobs", examples: 300}
model: {name: "NET:Net", width: 12, normalize: train}
training: {epochs: 3, batch_size: 64, loss: "NET:wrong"}
estimator: {copies: 8}
"""
_folders = iter(range(10**6))


class Folder:
    """A user's folder; the modules have names of their own, since Python imports a module once."""

    def __init__(self, path: Path) -> None:
        self.path, number = path, next(_folders)
        self.net, self.data = f"net{number}_of_user", f"data{number}_of_user"
        (path / f"{self.net}.py").write_text(NET)
        (path / f"{self.data}.py").write_text(DATA)
        self.config = path / "my.yaml"
        self.config.write_text(self.text(CONFIG))

    def text(self, text: str) -> str:
        """Returns a text with the names of this folder's modules."""
        return text.replace("NET:", f"{self.net}:").replace("DATA:", f"{self.data}:")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Folder]:
    """The user's folder. The working directory is another one."""
    monkeypatch.chdir(tmp_path_of(tmp_path, "elsewhere"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield Folder(tmp_path_of(tmp_path, "project"))


def tmp_path_of(tmp_path: Path, name: str) -> Path:
    (tmp_path / name).mkdir()
    return tmp_path / name


def digest(out: Path) -> str:
    summary = RunFolder(out).summary()
    return str(summary["params_sha256"])


@pytest.mark.slow
def test_the_commands_work_on_a_user_s_network_data_and_loss(folder, tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    assert cli.main(["train", str(folder.config), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert f"{folder.data}:blobs: 216 training, 24 validation, 60 test examples" in printed
    assert (out / "code" / f"{folder.net}.py").read_text() == NET
    assert load_config(out / "config.yaml").code == str(folder.path)

    run = load_run(out)
    assert run.data.names == ("cat", "dog", "eel")
    np.save(tmp_path / "new.npy", run.data.test.batch(slice(0, 5))[0].numpy())
    assert cli.main(["predict", str(out), str(tmp_path / "new.npy"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    expected = run.predict(run.data.test.batch(slice(0, 5))[0])
    assert [row["class"] for row in rows] == [run.data.names[number] for number in expected]

    exported = tmp_path / "net.pt2"
    assert cli.main(["export", str(out), "--to", str(exported)]) == 0
    x = run.data.test.batch(slice(None))[0]  # another number of examples than at the export
    torch.testing.assert_close(torch.export.load(exported).module()(x).detach(), run(x))

    assert cli.main(["summary", str(folder.config)]) == 0
    assert "model.second" in capsys.readouterr().out
    few = ["diagnose={copies: [4], draws: 2, batch: 16, reference_passes: 20}"]
    assert cli.main(["diagnose", str(folder.config), *few, "--out", str(tmp_path / "diagnosis")]) == 0
    assert cli.main(["plan", str(folder.config), "--actors", "1", "--out", str(tmp_path / "plan")]) == 0
    capsys.readouterr()
    assert cli.main(["runs", str(tmp_path)]) == 0
    assert f"{folder.net}:Net" in capsys.readouterr().out
    assert "need images of one class each" in error_line(capsys, "evaluate", out)


@pytest.mark.slow
def test_another_working_directory_and_a_resume_give_the_same_bits(folder, tmp_path, monkeypatch):
    first = tmp_path / "first"
    assert cli.main(["train", str(folder.config), "--out", str(first)]) == 0
    monkeypatch.chdir(folder.path)
    second = tmp_path / "second"
    assert cli.main(["train", "my.yaml", "training.epochs=1", "--out", str(second)]) == 0
    assert cli.main(["train", "--resume", "--out", str(second), "training.epochs=3"]) == 0
    assert digest(first) == digest(second)


def test_a_resume_with_other_data_is_refused(folder, tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    assert cli.main(["train", str(folder.config), "training.epochs=1", "--out", str(out)]) == 0
    real = sys.modules[folder.data].blobs

    def changed(**arguments: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        x, y = real(**arguments)["train"]
        return {"train": (x, np.roll(y, 1))}

    monkeypatch.setattr(sys.modules[folder.data], "blobs", changed)
    capsys.readouterr()
    line = error_line(capsys, "train", "--resume", "--out", out, "training.epochs=2")
    assert "data: the training examples are not those that the run in" in line
    monkeypatch.undo()
    assert len(RunFolder(out).metrics()) == 1


@pytest.mark.slow
def test_a_resume_with_changed_code_is_said(folder, tmp_path, capsys):
    """The network's file imports one beside it: the run keeps both, and a change of either is noticed."""
    beside, net = f"layers_{folder.net}", folder.path / f"{folder.net}.py"
    (folder.path / f"{beside}.py").write_text("WIDTH = 8\n")
    net.write_text(f"import {beside}\n{net.read_text()}")
    out = tmp_path / "run"
    assert cli.main(["train", str(folder.config), "training.epochs=1", "--out", str(out)]) == 0
    assert {path.stem for path in (out / "code").iterdir()} == {folder.net, folder.data, beside}
    resume = ["train", "--resume", "--out", str(out)]
    assert cli.main([*resume, "training.epochs=2"]) == 0
    assert "has changed since" not in capsys.readouterr().err
    (folder.path / f"{beside}.py").write_text("WIDTH = 9\n")
    assert cli.main([*resume, "training.epochs=3"]) == 0
    assert f"warning: {beside} has changed since the run began" in capsys.readouterr().err


def test_foreign_initial_weights_depend_on_the_seed_alone(folder, tmp_path):
    def initial(*overrides: str) -> str:
        from glr_dist.build import module_of
        from glr_dist.data import load
        from glr_dist.training.checkpoint import digest

        config = load_config(folder.config, overrides)
        return digest(module_of(config, load(config.data, config.code)).state_dict())

    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = initial()
    assert torch.equal(torch.get_rng_state(), before)  # the user's own stream is untouched
    torch.rand(7)
    assert initial() == first
    assert initial("seed=1") != first


@pytest.mark.slow
def test_sequences_train_with_a_recurrent_module_of_torch(folder, tmp_path, capsys):
    model = f"model={{name: '{folder.net}:Reader', units: 6, opened: true, output: scores}}"
    data = f"data={{name: '{folder.data}:sequences'}}"
    few = ["training.loss=cross_entropy", "training.epochs=2", "noise.scale=0.3"]
    out = tmp_path / "run"
    assert cli.main(["train", str(folder.config), model, data, *few, "--out", str(out)]) == 0
    assert "[3]" in capsys.readouterr().out  # one call for each step of the sequence
    losses = [record["train_loss"] for record in RunFolder(out).metrics()]
    assert losses[1] < losses[0]
    exported = tmp_path / "reader.pt2"
    assert cli.main(["export", str(out), "--to", str(exported)]) == 0
    run = load_run(out)
    x = run.data.test.batch(slice(0, 3))[0]
    torch.testing.assert_close(torch.export.load(exported).module()(x).detach(), run(x))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "network"), [("pixels", "pixels"), ("tokens", "Tokens")])
def test_every_pixel_or_token_gets_its_class(folder, tmp_path, capsys, kind, network):
    own = [f"model={{name: '{folder.net}:{network}'}}", f"data={{name: '{folder.data}:masks', kind: {kind}}}"]
    few = ["training.loss=cross_entropy", "training.epochs=1", "noise.scale=0.3"]
    out = tmp_path / "run"
    assert cli.main(["train", str(folder.config), *own, *few, "--out", str(out)]) == 0
    assert f"next                 glr-dist runs {tmp_path}" in capsys.readouterr().out  # nothing to evaluate
    run = load_run(out)
    x, y = run.data.test.batch(slice(0, 5))
    found = run.predict(x)
    assert found.shape == y.shape
    assert torch.equal(found, run(x).argmax(1 if kind == "pixels" else 2))
    np.save(tmp_path / "new.npy", x.numpy())
    assert cli.main(["predict", str(out), str(tmp_path / "new.npy"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["classes"] for row in rows] == found.tolist()
    assert cli.main(["predict", str(out), str(tmp_path / "new.npy")]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 120


@pytest.mark.slow
def test_a_network_with_several_inputs_trains(folder, tmp_path, capsys):
    names = [f"model={{name: '{folder.net}:Both'}}", f"data={{name: '{folder.data}:two_inputs'}}"]
    out = tmp_path / "run"
    assert cli.main(["train", str(folder.config), *names, "--out", str(out)]) == 0
    run = load_run(out)
    x, _ = run.data.test.batch(slice(0, 3))
    assert set(x) == {"features", "count"}
    assert run.predict(x).shape == (3,)
    normalised = [names[0].replace("}", ", normalize: train}"), names[1]]
    line = error_line(capsys, "train", folder.config, *normalised, "--out", tmp_path / "other")
    assert "model.normalize: is not allowed: the inputs are several tensors" in line


@pytest.mark.ray
def test_actors_compute_the_same_bits(folder, tmp_path, local_ray):
    config = load_config(folder.config)
    inline = train(config, tmp_path / "inline")["params_sha256"]
    layers = load_config(folder.config, ["execution={kind: layers, actors: 2}"])
    assert train(layers, tmp_path / "layers")["params_sha256"] == inline


@pytest.mark.long
@pytest.mark.process
def test_a_killed_run_continues(folder, tmp_path, start):
    out, whole = tmp_path / "run", tmp_path / "whole"
    more = ["training.epochs=40", "--out"]
    process = start("train", folder.config, *more, out)
    deadline = time.monotonic() + 120
    while len(RunFolder(out).metrics()) < 2:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(RunFolder(out).metrics()) < 40
    assert cli.main(["train", "--resume", "--out", str(out)]) == 0
    assert cli.main(["train", str(folder.config), *more, str(whole)]) == 0
    assert digest(out) == digest(whole)


MISTAKES = {
    "module": (["model.name=no_such_module:Net"], "model.name: module 'no_such_module' was not found in"),
    "class": (["model.name=NET:Nett"], "does not define 'Nett'; did you mean 'Net'?"),
    "argument": (["model.widht=3"], "model.widht: is not an argument of NET:Net; did you mean 'width'?"),
    "not a module": (["model={name: 'NET:pair', x: 1}"], "returns a int, not a torch.nn.Module"),
    "argument is missing": (["model={name: 'NET:pair'}"], "model.x: is missing; NET:pair needs it"),
    "no parameters": (["model={name: 'NET:Scalar'}"], "has no parameter to train"),
    "scores": (["model.classes=2"], "returns 2 scores for each example, the data have 3 classes"),
    "error inside": (["model.width=-1"], "model: NET:Net"),
    "dot": (["model.name=NET.Net"], "or your own package.module:name"),
    "loss": (["training.loss=NET:wrongg"], "training.loss:"),
    "loss is not a function": (["training.loss=NET:__name__"], "is a str, not a function"),
    "data module": (["data.name=no_such_data:load"], "data.name: module 'no_such_data' was not found in"),
    "data function": (["data.name=DATA:bloobs"], "did you mean 'blobs'?"),
    "data argument": (["data.exampels=3"], "data.exampels: is not an argument of DATA:blobs; did you mean 'examples'?"),
    "NaN": (["data.name=DATA:damaged"], "the inputs of train are not finite at example 7"),
    "lengths": (["data.name=DATA:shorter"], "every tensor must hold the same number of examples"),
    "parts": (["data={name: 'DATA:nothing'}"], "returns 'training', but not 'train'"),
    "data raises": (["data={name: 'DATA:raising'}"], "(ZeroDivisionError: division by zero)"),
    "freeze": (["model.freeze=[third.*]"], "model.freeze: 'third.*' matches no parameter"),
    "normalize": (["model.normalize={mean: [0, 0]}"], "model.normalize.mean: 2 values are not allowed: 1 or 6"),
    "metric": (["training.metrics=[r2]"], "training.metrics: 'r2' is not allowed: the targets are not real values"),
    "weights": (["model.weights=nowhere.pt"], "model.weights:"),
    "effect": (["data.resize=4"], "data.resize: has no effect with data.name 'DATA:blobs'"),
    "augment": (["data.augment={flip: true}"], "data.augment: changes images [C, H, W] only"),
    "path": (["data={name: arrays, path: nowhere.npz}"], "data.path: 'nowhere.npz' does not exist; looked for"),
    "one class": (["data={name: 'DATA:one_class'}"], "all examples of DATA:one_class are of the class '0'"),
    "misspelt part": (
        ["data={name: 'DATA:misspelt'}"],
        "returns 'validaton', which is not a part; did you mean 'valid",
    ),
    "damaged example": (
        ["data={name: 'DATA:Damaged'}"],
        "reading example 5 of 'train' of DATA:Damaged failed at ",
    ),
    "no length": (["data={name: 'DATA:Stream'}"], "is Stream, which does not give its length"),
    "negative class": (
        ["data={name: 'DATA:below'}", "model={name: 'NET:Each'}", "data.wrong=-2"],
        "data.name: the class -2 in DATA:below is not allowed: classes from 0 on, or -100 for none",
    ),
    "class of a token": (
        ["data={name: 'DATA:below'}", "model={name: 'NET:Each'}", "data.wrong=-100"],
        "returns 2 scores for each token or pixel, the data have 3 classes",
    ),
    "real targets": (
        ["data={name: 'DATA:real'}", "training.loss=cross_entropy"],
        "training.loss: 'cross_entropy' does not fit (the targets are real numbers",
    ),
    "reduced loss": (["training.loss=NET:mean"], "training.loss: 'NET:mean' does not fit (must return one value per"),
    "loss raises": (["training.loss=NET:failing"], "training.loss: NET:failing refuses outputs [32, 3]"),
    "loss is NaN": (["training.loss=NET:undefined"], "training.loss: NET:undefined is NaN or infinite"),
    "outputs are NaN": (["model={name: 'NET:Undefined'}"], "model: NET:Undefined returns NaN or infinity"),
    "empty layer": (["model.width=0"], "model: the parameter 'first.weight' of NET:Net has the shape [0, 6]"),
    "normalize word": (["model.normalize=trian"], "model.normalize: 'trian' is not allowed: a mapping or 'train'"),
    "f1 of values": (
        ["data={name: 'DATA:real'}", "training.loss=mse", "model.classes=1", "training.metrics=[f1]"],
        "training.metrics: 'f1' is not allowed: the targets are neither classes nor labels 0 and 1",
    ),
    "no path": (["data={name: table, target: y}"], "data.path: is missing"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(folder, tmp_path, capsys, name):
    overrides, expected = MISTAKES[name]
    line = error_line(capsys, "train", folder.config, *map(folder.text, overrides), "--out", tmp_path / "run")
    assert folder.text(expected) in line
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_function_takes_settings_of_the_section(folder, tmp_path):
    np.savez(folder.path / "set.npz", x=np.eye(6)[np.arange(30) % 3], y=np.arange(30) % 3)
    section = folder.text("data={name: 'DATA:from_file', path: set.npz, channels: 1}")
    assert cli.main(["train", str(folder.config), section, "training.epochs=1", "--out", str(tmp_path / "run")]) == 0


def test_predictions_do_not_mix_with_what_the_network_prints(folder, tmp_path, capsys):
    (folder.path / f"{folder.net}.py").write_text(NET + "print('imported')\n")
    out = tmp_path / "run"
    assert cli.main(["train", str(folder.config), "training.epochs=1", "--out", str(out)]) == 0
    sys.modules.pop(folder.net)
    np.save(tmp_path / "x.npy", np.zeros((2, 6)))
    capsys.readouterr()
    assert cli.main(["predict", str(out), str(tmp_path / "x.npy"), "--json"]) == 0
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)) == 2
    assert captured.err == "imported\n"
    (tmp_path / "x.npy").unlink()
    np.save(tmp_path / "x.npy", np.zeros((2, 5)))
    assert "an input has shape [5]" in error_line(capsys, "predict", out, tmp_path / "x.npy")


@pytest.mark.slow
def test_a_network_with_several_inputs_is_planned(folder, tmp_path):
    sections = map(folder.text, ["data={name: 'DATA:two_inputs'}", "model={name: 'NET:Both'}"])
    assert cli.main(["plan", str(folder.config), *sections, "--out", str(tmp_path / "plan")]) == 0


def test_damaged_runs_are_listed(folder, tmp_path, capsys):
    out = tmp_path / "runs" / "good"
    assert cli.main(["train", str(folder.config), "training.epochs=1", "--out", str(out)]) == 0
    damages = {"config.yaml": "a: [1", "metrics.jsonl": "3\n", "summary.json": "3"}
    for name, text in damages.items():
        copytree(out, out.with_name(name))
        (out.with_name(name) / name).write_text(text)
    (tmp_path / "runs" / "circle").symlink_to(tmp_path / "runs")
    capsys.readouterr()
    assert cli.main(["runs", str(tmp_path / "runs"), "--json"]) == 0
    states = {row["run"]: row["state"] for row in json.loads(capsys.readouterr().out)}
    assert states == dict(zip(damages, ("damaged", "damaged", "stopped"), strict=True)) | {"good": "finished"}


def test_a_dataset_of_the_user_s_gives_its_own_examples(folder):
    from glr_dist.data import load

    config = load_config(folder.config, [folder.text("data={name: 'DATA:Changed'}")])
    train = load(config.data, config.code).train.batch(slice(None))[0]
    assert sorted(train[:, 0].tolist()) != [0.0] * len(train)


def test_inputs_of_one_number_are_normalised(folder):
    from glr_dist.build import module_of
    from glr_dist.data import load

    sections = ["data={name: 'DATA:row'}", "model={name: 'torch.nn:Linear', in_features: 1, out_features: 3}"]
    config = load_config(folder.config, [*map(folder.text, sections), "model.normalize=train"])
    dataset = load(config.data, config.code)
    x = module_of(config, dataset)[0](dataset.train.batch(slice(None))[0])
    assert torch.allclose(torch.stack([x.mean(), x.std(correction=0)]), torch.tensor([0.0, 1.0]), atol=1e-5)


def test_a_run_that_is_read_back_takes_its_normalisation_from_the_checkpoint(tiny, tmp_path, monkeypatch):
    from glr_dist import build

    out = tmp_path / "run"
    train(tiny("model.normalize=train", "training.epochs=1"), out)
    x = load_run(out).data.test.batch(slice(0, 9))[0]
    expected, measured = load_run(out)(x), build.mean_and_std
    read = []
    monkeypatch.setattr(build, "mean_and_std", lambda split: (read.append(len(split)), measured(split))[1])
    assert torch.equal(load_run(out)(x), expected)
    assert read == [1]  # not the training set, which may be large


def test_a_builder_of_torchvision_gets_the_number_of_classes(tiny):
    from glr_dist.build import module_of
    from glr_dist.data import load

    settings = tiny("model={name: 'torchvision.models:squeezenet1_1'}")
    assert module_of(settings, load(settings.data)).classifier[1].out_channels == 10


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import torch\n\nx = torch.zeros(3\n", "SyntaxError"),
        ("import torch\n\n\ntorch.no_such_function\n", ":4 (AttributeError"),
        ("import no_such_package_of_user\n", "No module named 'no_such_package_of_user'"),
        ("raise SystemExit(3)\n", ":1 (SystemExit: 3)"),
    ],
)
def test_an_error_in_the_user_s_file_shows_its_own_line(folder, tmp_path, capsys, text, reason):
    name = f"broken{next(_folders)}_of_user"
    (folder.path / f"{name}.py").write_text(text)
    line = error_line(capsys, "train", folder.config, f"model={{name: '{name}:Net'}}", "--out", tmp_path / "run")
    assert reason in line
    assert f"{name}" in line


def test_a_user_s_file_does_not_hide_a_package(folder, tmp_path):
    (folder.path / "colorsys.py").write_text("raise RuntimeError\n")
    assert cli.main(["train", str(folder.config), "training.epochs=1", "--out", str(tmp_path / "run")]) == 0
    import colorsys

    assert "project" not in str(colorsys.__file__)


@pytest.mark.slow
def test_a_state_dict_begins_a_run(folder, tmp_path):
    from safetensors.torch import save_file

    state = {"first.weight": torch.ones(12, 6), "first.bias": torch.zeros(12)}
    state |= {"second.weight": torch.ones(3, 12), "second.bias": torch.zeros(3)}
    torch.save(state, tmp_path / "state.pt")
    save_file(state, tmp_path / "state.safetensors")
    digests = set()
    for name in ("state.pt", "state.safetensors"):
        out = tmp_path / f"run-{name}"
        weights = f"model.weights={tmp_path / name}"
        assert cli.main(["train", str(folder.config), weights, "--out", str(out)]) == 0
        digests.add(digest(out))
    assert len(digests) == 1


def test_frozen_parameters_stay(folder, tmp_path):
    from glr_dist.build import module_of
    from glr_dist.data import load

    config = load_config(folder.config, ["model.freeze=['first.*']"])
    before = module_of(config, load(config.data, config.code)).state_dict()
    train(config, tmp_path / "run")
    after = load_run(tmp_path / "run").net.model.state_dict()
    assert torch.equal(before["model.first.weight"], after["model.first.weight"])
    assert not torch.equal(before["model.second.weight"], after["model.second.weight"])


@pytest.mark.slow
def test_the_starter_trains(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert cli.main(["init", "project"]) == 0
    assert cli.main(["train", "project/config.yaml", "training.epochs=4", "--out", "run"]) == 0
    accuracy = RunFolder(tmp_path / "run").summary()["test_accuracy"]
    assert accuracy > 0.5  # of three classes
    capsys.readouterr()
    assert "exists; choose another folder" in error_line(capsys, "init", "project")


@pytest.mark.long
@pytest.mark.process
def test_tune_searches_arguments_of_the_user_s_network(folder, tmp_path, start):
    folder.config.write_text(
        folder.config.read_text()
        + "tune: {space: {model.width: {choice: [4, 12]}, data.examples: {choice: [200, 300]}}, trials: 2}\n"
    )
    process: subprocess.Popen[str] = start("tune", folder.config, "--out", tmp_path / "search")
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    assert list((tmp_path / "search").rglob("summary.json")), out
