"""Registries: built-in rows, entries of the user's own, and the error for a name that is in none."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from glr_dist import data, registry
from glr_dist.build import network_of, optimizer_of
from glr_dist.data import Split
from glr_dist.errors import ConfigError
from glr_dist.noise import Gaussian
from glr_dist.registry import DATASETS, LAWS, LOSSES, MODELS, OPTIMIZERS, Registry, UnknownNameError
from glr_dist.training.train import train

ALL = [value for value in vars(registry).values() if isinstance(value, Registry)]


@pytest.fixture(autouse=True)
def without_additions(monkeypatch):
    for each in ALL:
        monkeypatch.setattr(each, "_added", {})


@pytest.mark.parametrize("each", ALL, ids=lambda each: each.kind)
def test_every_row_names_something_that_can_be_called(each):
    for name in each:
        assert callable(each[name])
    assert len(each) == len(list(each))


@pytest.mark.parametrize("each", ALL, ids=lambda each: each.kind)
def test_an_unknown_name_is_an_error_that_names_the_nearest_or_all(each):
    assert "zzz" not in each
    assert each.get("zzz") is None
    with pytest.raises(UnknownNameError) as caught:
        each["zzz"]
    assert str(caught.value).startswith(f"{each.kind}: 'zzz' is unknown; ")
    assert str(caught.value).endswith(f"known are {', '.join(each)}" if each else "none is known")
    for name in each:
        with pytest.raises(ConfigError, match=f"did you mean '{name}'"):
            each[f"{name}s"]


@pytest.mark.process
def test_the_names_are_known_without_torch(python):
    done = python("import sys; from glr_dist.registry import LOSSES; print(*LOSSES); print('torch' in sys.modules)")
    assert done.stdout.split() == [*LOSSES, "False"], done.stderr


def test_a_law_has_the_name_that_it_is_registered_by():
    assert {name: LAWS[name].law for name in LAWS} == {name: name for name in LAWS}


def test_a_built_in_entry_cannot_be_replaced_but_one_of_the_user_s_own_can():
    with pytest.raises(ConfigError, match="'zero_one' is built in"):
        LOSSES.add("zero_one")
    first, second = LOSSES.add("mine")(len), LOSSES.add("mine")(max)
    assert (first, second, LOSSES["mine"], "mine" in LOSSES) == (len, max, max, True)


def test_a_run_uses_a_model_a_data_set_a_loss_a_law_and_an_optimizer_of_the_user_s_own(tiny, tmp_path):
    @DATASETS.add("stripes")
    def stripes(settings):
        labels = torch.arange(90) % 3
        images = torch.zeros(90, 1, 3, 3, dtype=torch.uint8)
        images[torch.arange(90), 0, labels] = 1
        return {"train": Split(images, labels, 1)}, ()

    @MODELS.add("one_layer")
    def one_layer(model, shape, classes, stream):
        return nn.Sequential(nn.Flatten(), nn.Linear(shape.numel(), classes))

    @LOSSES.add("squared")
    def squared(outputs, targets):
        return (outputs - nn.functional.one_hot(targets, outputs.shape[-1])).square().sum(-1)

    @LAWS.add("shifted")
    class Shifted(Gaussian):
        law = "shifted"

    @OPTIMIZERS.add("Slow")
    class Slow(torch.optim.SGD):
        pass

    config = tiny(
        "data.name=stripes",
        "model.name=one_layer",
        "training.loss=squared",
        "noise.law=shifted",
        "training.optimizer={name: Slow, lr: 0.01}",
    )
    dataset = data.load(config.data)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test), dataset.classes) == (65, 7, 18, 3)
    net = network_of(config, dataset, torch.device("cpu"))
    assert type(net.noise) is Shifted
    assert [type(module) for module in net.model] == [nn.Flatten, nn.Linear]
    assert type(optimizer_of(config.training, net)) is Slow
    assert train(config, tmp_path / "run")["epochs"] == 3
