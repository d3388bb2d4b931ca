"""From a configuration to the objects of a run."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from glr_dist import data
from glr_dist.build import device_of, network_of, optimizer_of, schedule_of
from glr_dist.errors import ConfigError
from glr_dist.noise import LAWS
from glr_dist.registry import MODELS
from glr_dist.training.trainer import Trainer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits(tiny):
    return data.load(tiny().data)


def message_of(function, *arguments) -> str:
    with pytest.raises(ConfigError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


# ---------------------------------------------------------------- network


def test_the_network_is_the_configured_one(tiny, digits):
    settings = tiny("model.hidden=[8, 6]", "model.activation=tanh", "model.dropout=0.25", "noise.scale=0.75")
    net = network_of(settings, digits, CPU)
    shapes = {name: tuple(p.shape) for name, p in net.model.named_parameters()}
    assert list(shapes.values()) == [(8, 64), (8,), (6, 8), (6,), (10, 6), (10,)]
    assert sum(isinstance(module, nn.Tanh) for module in net.model) == 2
    assert [module.p for module in net.model if hasattr(module, "p")] == [0.25, 0.25]
    assert len(net.network.sites) == 3
    assert all(scale.item() == pytest.approx(0.75) for scale in net.scales().values())


@pytest.mark.parametrize("law", sorted(LAWS))
def test_the_noise_has_the_configured_law(tiny, digits, law):
    pairs = ["estimator.antithetic=false"] * (law == "gumbel")  # it is not symmetric
    assert type(network_of(tiny(f"noise.law={law}", *pairs), digits, CPU).noise) is LAWS[law]


def test_no_law_is_no_noise(tiny, digits):
    settings = tiny("estimator={name: pathwise}", "noise.law=none", "model.activation=tanh")
    assert network_of(settings, digits, CPU).noise is None


def test_initial_weights_depend_on_the_seed_alone(tiny, digits):
    def weights(*overrides: str) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in network_of(tiny(*overrides), digits, CPU).model.parameters()])

    torch.manual_seed(1)
    first = weights()
    torch.manual_seed(2)  # the global generator has no part in it
    assert torch.equal(first, weights())
    assert torch.equal(first, weights("noise.scale=3", "estimator.copies=2"))
    assert not torch.equal(first, weights("seed=1"))
    # torch's CPU generator keeps 32 bits of a seed: these two would coincide
    assert not torch.equal(weights("seed=5"), weights(f"seed={5 + 2**32}"))


def test_the_paper_s_initial_weights_have_its_variance(tiny, digits):
    settings = tiny("model.hidden=[400]", "model.init=paper", "model.init_scale=0.5")
    weight = network_of(settings, digits, CPU).model[1].weight
    assert weight.std().item() == pytest.approx(0.5 * 2 / 65**0.5, rel=0.03)
    assert weight.abs().max() > 64**-0.5  # unlike the uniform law of torch's own
    uniform = network_of(tiny("model.hidden=[400]"), digits, CPU).model[1].weight
    assert uniform.abs().max() <= 64**-0.5


def test_an_unknown_site_type_is_named_with_the_nearest(tiny, digits):
    message = message_of(network_of, tiny("noise.sites=[Linaer]"), digits, CPU)
    assert message.startswith("noise.sites: 'Linaer'")
    assert "did you mean 'Linear'?" in message


@pytest.mark.parametrize("device", ["cuda:99", "cuda:99999999999999999999", "cuda:1000000000"])
def test_a_device_that_is_not_here_is_named(tiny, device):
    message = message_of(device_of, tiny(f"execution.device='{device}'").execution)
    assert message.startswith(f"execution.device: '{device}' does not exist")


@pytest.mark.parametrize("hidden", ["[1000000000]", "[100000000, 100000000]", "[3, 1000000000, 1000000000]"])
def test_a_network_that_does_not_fit_into_memory_is_refused_before_it_is_built(tiny, digits, hidden):
    message = message_of(network_of, tiny(f"model.hidden={hidden}"), digits, CPU)
    assert re.match(r"model\.hidden: [\d,]+ parameters need [\d,]+ GiB, this machine has \d+ GiB$", message)


def test_a_model_that_cannot_be_built_is_named(tiny, digits, monkeypatch):
    def too_large(*arguments: object) -> nn.Module:
        raise RuntimeError("DefaultCPUAllocator: can't\nallocate memory")

    monkeypatch.setitem(MODELS._added, "large", too_large)
    message = message_of(network_of, tiny("model.name=large"), digits, CPU)
    assert message == "model: large cannot be built (DefaultCPUAllocator: can't allocate memory)"


# ---------------------------------------------------------------- optimizer


@pytest.fixture(scope="module")
def net(tiny, digits):
    return network_of(tiny(), digits, CPU)


def test_the_optimizer_is_the_configured_one(tiny, net):
    settings = tiny("training.optimizer={name: SGD, lr: 1e-2, momentum: 0.9, nesterov: true}")
    optimizer = optimizer_of(settings.training, net)
    assert type(optimizer) is torch.optim.SGD
    group = optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["nesterov"]) == (0.01, 0.9, True)


@pytest.mark.parametrize(("learn", "count"), [("none", 4), ("site", 6), ("unit", 6)])
def test_the_optimizer_steers_learned_scales_and_only_those(tiny, digits, learn, count):
    settings = tiny(f"noise.learn={learn}")
    optimizer = optimizer_of(settings.training, network_of(settings, digits, CPU))
    assert sum(len(group["params"]) for group in optimizer.param_groups) == count


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        ("{name: Adm}", ["training.optimizer.name: 'Adm'", "did you mean 'Adam'?"]),
        ("{name: Optimizer}", ["training.optimizer.name: 'Optimizer'"]),
        ("{name: lr_scheduler}", ["training.optimizer.name: 'lr_scheduler'"]),
        ("{name: Zzz}", ["known are", "SGD"]),
        ("{name: LBFGS}", ["LBFGS", "use another"]),
        ("{name: Adam, betas: [0.9]}", ["training.optimizer", "Adam refuses"]),
        ("{name: Adam, betas: x}", ["training.optimizer", "Adam refuses"]),
        ("{name: SGD, momentum: x}", ["training.optimizer", "SGD refuses"]),
        ("{name: SGD, lr: '0.1'}", ["training.optimizer", "SGD refuses"]),
        ("{name: AdamW, foreach: true, fused: true}", ["training.optimizer", "AdamW refuses"]),
        ("{name: Adam, lrr: 1}", ["training.optimizer.lrr", "did you mean 'lr'?"]),
        ("{name: Adam, zzz: 1}", ["training.optimizer.zzz", "it takes lr, betas"]),
        ("{name: Adam, params: []}", ["training.optimizer.params"]),
        ("{name: Adam, lr: -1}", ["training.optimizer", "Adam refuses", "-1"]),
        ("{name: Adam, lr: fast}", ["training.optimizer", "Adam refuses"]),
        ("{name: Adam, betas: [0.9, 2]}", ["training.optimizer", "Adam refuses", "2"]),
        ("{name: SparseAdam}", ["training.optimizer", "SparseAdam"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_optimizer_is_one_line(tiny, net, optimizer, words):
    message = message_of(optimizer_of, tiny(f"training.optimizer={optimizer}").training, net)
    for word in words:
        assert word in message


# ---------------------------------------------------------------- schedule

SCHEDULES = [
    "{name: CosineAnnealingLR}",
    "{name: CosineAnnealingLR, per: step}",
    "{name: CosineAnnealingWarmRestarts, T_0: 2}",
    "{name: ConstantLR, factor: 0.5}",
    "{name: LinearLR, per: step}",
    "{name: PolynomialLR, power: 2}",
    "{name: StepLR, step_size: 1, gamma: 0.5}",
    "{name: MultiStepLR, milestones: [1, 2]}",
    "{name: ExponentialLR, gamma: 0.9}",
    "{name: OneCycleLR, max_lr: 0.1, per: step}",
    "{name: OneCycleLR, max_lr: 0.1, epochs: 3, steps_per_epoch: 3, per: step}",
    "{name: CyclicLR, base_lr: 1e-3, max_lr: 0.1, cycle_momentum: false, per: step}",
    "{name: ReduceLROnPlateau, patience: 0, threshold: 10}",
]


def test_no_schedule_is_none(tiny, net):
    training = tiny().training
    assert schedule_of(training, optimizer_of(training, net), 3) is None


@pytest.mark.parametrize(
    ("schedule", "length"),
    [
        ("{name: CosineAnnealingLR}", 3),
        ("{name: CosineAnnealingLR, per: step}", 21),
        ("{name: CosineAnnealingLR, T_max: 5}", 5),
    ],
)
def test_a_length_that_is_not_given_is_that_of_the_run(tiny, net, schedule, length):
    training = tiny(f"training.schedule={schedule}").training
    assert schedule_of(training, optimizer_of(training, net), steps=7).T_max == length


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_runs_and_resumes_bit_for_bit(tiny, tmp_path, schedule):
    # Its state is plain enough for a checkpoint that is loaded without unpickling code.
    cheap = ("model={hidden: [2], activation: tanh}", "noise={law: none}", "estimator={name: pathwise}")
    settings = tiny(*cheap, f"training.schedule={schedule}")
    whole = Trainer(settings, tmp_path / "whole")
    summary = whole.run()
    cut = Trainer(settings, tmp_path / "cut")
    save = cut._keep

    def keep_then_stop(record: dict) -> None:
        save(record)
        raise KeyboardInterrupt

    cut._keep = keep_then_stop
    with pytest.raises(KeyboardInterrupt):
        cut.run()
    resumed = Trainer(settings, tmp_path / "cut", resume=True)
    assert resumed.epoch == 1
    assert resumed.run()["params_sha256"] == summary["params_sha256"]
    assert [r["learning_rate"] for r in resumed.history] == [r["learning_rate"] for r in whole.history]


@pytest.mark.slow
def test_a_schedule_changes_the_learning_rate_per_step_or_per_epoch(tiny, tmp_path):
    def last_rate(per: str) -> float:
        schedule = f"{{name: ExponentialLR, gamma: 0.5, per: {per}}}"
        trainer = Trainer(tiny("training.epochs=2", f"training.schedule={schedule}"), tmp_path / per)
        trainer.run()
        return trainer.optimizer.param_groups[0]["lr"]

    assert last_rate("epoch") == 0.02 * 0.5**2
    assert last_rate("step") == 0.02 * 0.5**6  # three steps an epoch


def test_a_plateau_lowers_the_rate(tiny, tmp_path):
    # No loss falls to a thousandth of the best: every epoch after the first one is a plateau.
    schedule = "{name: ReduceLROnPlateau, patience: 0, threshold: 0.999, factor: 0.5}"
    trainer = Trainer(tiny(f"training.schedule={schedule}"), tmp_path / "run")
    trainer.run()
    assert trainer.optimizer.param_groups[0]["lr"] == 0.02 * 0.5**2


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        ("{name: CosineAnealingLR}", ["training.schedule.name", "did you mean 'CosineAnnealingLR'?"]),
        ("{name: LRScheduler}", ["training.schedule.name: 'LRScheduler'"]),
        ("{name: StepLR}", ["training.schedule", "step_size"]),
        ("{name: StepLR, stepsize: 3}", ["training.schedule.stepsize", "did you mean 'step_size'?"]),
        ("{name: StepLR, step_size: 3, optimizer: 1}", ["training.schedule.optimizer"]),
        ("{name: LambdaLR, lr_lambda: 3}", ["training.schedule", "LambdaLR"]),
        ("{name: ReduceLROnPlateau, per: step}", ["training.schedule.per", "epoch's loss"]),
        ("{name: OneCycleLR, max_lr: fast}", ["training.schedule", "OneCycleLR refuses"]),
        # What torch itself only notices when it steps.
        ("{name: StepLR, step_size: 0}", ["training.schedule", "StepLR refuses"]),
        ("{name: CosineAnnealingLR, T_max: 0}", ["training.schedule", "CosineAnnealingLR refuses"]),
        ("{name: LambdaLR, lr_lambda: x}", ["training.schedule", "not callable"]),
        ("{name: OneCycleLR, max_lr: 0.1, total_steps: 2, per: step}", ["training.schedule", "total steps is 2"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_schedule_is_one_line(tiny, net, schedule, words):
    training = tiny(f"training.schedule={schedule}").training
    message = message_of(schedule_of, training, optimizer_of(training, net), 3)
    for word in words:
        assert word in message


def test_weight_decay_leaves_the_scales_alone(tiny, digits):
    settings = tiny("noise.learn=site", "training.optimizer={name: AdamW, lr: 0.1, weight_decay: 0.5}")
    net = network_of(settings, digits, CPU)
    optimizer = optimizer_of(settings.training, net)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    weight, scales = net.model[1].weight.detach().clone(), net.scales()
    optimizer.step()
    assert torch.equal(net.model[1].weight, weight * (1 - 0.1 * 0.5))
    assert all(torch.equal(net.scales()[name], scale) for name, scale in scales.items())
