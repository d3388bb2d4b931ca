"""The subject of an evaluation: a run's network, its images, and the other networks that its conditions use."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glr_dist import __version__
from glr_dist.config import Config
from glr_dist.data import Split
from glr_dist.errors import ConfigError, SiteError
from glr_dist.execution.reproducible import reproducible
from glr_dist.glr import GLR
from glr_dist.input_gradient import shifted, spreads
from glr_dist.robustness.conditions import Condition, conditions_of, networks_of
from glr_dist.robustness.suite import Suite, surrogate_config
from glr_dist.robustness.surrogate import trained_surrogate
from glr_dist.runs import CheckpointName, deciding
from glr_dist.training import checkpoint
from glr_dist.training.trained_run import TrainedRun, load_run

_BATCH = 1000  # images of a pass that finds those that the surrogate classifies correctly


@dataclass(frozen=True)
class Subject:
    """A run's network and everything that its measurements use.

    Attributes:
        folder: the run's folder, absolute.
        config: the run's config.
        checkpoint: the checkpoint of the run: "newest" or "best".
        epoch: epoch of the checkpoint.
        net: the network, in evaluation mode.
        images: the images of the suite's split that are evaluated.
        smoothed: the network with its input as a parameter, for each noise scale of the adaptive threat model; empty
            for a network without noise, which autograd serves.
        untestable: why the adaptive threat model cannot estimate a gradient; empty if it can.
        surrogate: source network of transfer attacks.
        baseline: reference network of the corruption errors.
        kept: images of transfer attacks by label and block, kept for the next network; None if there is none.
    """

    folder: Path
    config: Config
    checkpoint: CheckpointName
    epoch: int
    net: GLR
    images: Split
    smoothed: tuple[GLR, ...] = ()
    untestable: str = ""
    surrogate: GLR | None = None
    baseline: GLR | None = None
    kept: dict[tuple[str, int], Any] | None = None

    def conditions(self, suite: Suite) -> list[Condition]:
        """Returns the suite's conditions on this subject's images."""
        return conditions_of(suite, len(self.images))

    def copied(self) -> Subject:
        """Returns a copy with its own networks for another thread, since a module must not run in two at once."""
        net, smoothed, surrogate, baseline = copy.deepcopy((self.net, self.smoothed, self.surrogate, self.baseline))
        return replace(self, net=net, smoothed=smoothed, surrogate=surrogate, baseline=baseline)

    def fingerprint(self, suite: Suite) -> str:
        """Returns a digest of everything that determines the measurements."""
        sha = hashlib.sha256(json.dumps([__version__, deciding(self.config), suite.model_dump(mode="json")]).encode())
        for network in (self.net, self.surrogate, self.baseline):
            sha.update((checkpoint.digest(network.state_dict()) if network else "none").encode())
        for tensor in (self.images.images, self.images.labels):
            sha.update(tensor.cpu().numpy().tobytes())
        return sha.hexdigest()


def load_subject(folder: Path, suite: Suite, device: str | None = None, which: CheckpointName = "newest") -> Subject:
    """Loads a run's network and images, and the other networks that the suite needs; trains a missing surrogate.

    Args:
        folder: the run's folder.
        suite: the suite.
        device: "auto", "cpu" or "cuda[:N]" in place of the run's own device.
        which: the checkpoint of the run, "newest" or "best".

    Raises:
        UserError: the folder is not a run, its checkpoint is damaged, or the suite does not fit the run.
    """
    return subject_of(load_run(folder.absolute(), device, checkpoint=which), suite, which)


def subject_of(
    run: TrainedRun, suite: Suite, which: CheckpointName = "newest", earlier: Subject | None = None
) -> Subject:
    """Returns the subject of a run.

    Args:
        run: the run.
        suite: the suite.
        which: the checkpoint of the run that its network is.
        earlier: an earlier subject of the same run and suite, whose images and other networks are used again.

    Raises:
        UserError: the suite does not fit the run.
    """
    net, folder, where = run.net, run.folder.path, run.device
    check_suite(suite, run.config, of_images=run.data.of_images, where=str(folder))
    if earlier is None:
        surrogate, baseline, split = _others(run, suite)
    else:
        surrogate, baseline, split = earlier.surrogate, earlier.baseline, earlier.images
    conditions = conditions_of(suite, len(split))
    images = split.rows(slice(0, conditions[0].examples)).to(where)
    net.prepare(images.batch(slice(0, 2))[0])  # here, since it must not run in parallel with other threads
    smoothed: tuple[GLR, ...] = ()
    untestable = ""
    if "smoothed" in networks_of(suite, conditions) and net.noise is not None:
        try:
            smoothed = tuple(_smoothed(net, images.batch(slice(0, suite.block))[0], suite))
        except SiteError as error:
            untestable = str(error)
    return Subject(folder, run.config, which, run.epoch, net, images, smoothed, untestable, surrogate, baseline)


def check_suite(suite: Suite, config: Config, *, of_images: bool, where: str) -> None:
    """Checks that a suite can evaluate a run.

    Raises:
        ConfigError: the inputs are not images, or votes need noise that the run does not have; names the run `where`.
    """
    if not of_images:
        raise ConfigError(
            f"{where}: attacks and corruptions need images of one class each, not the inputs of {config.data.name}"
        )
    if suite.inference.votes and config.noise.law == "none":
        raise ConfigError(f"inference.votes: {suite.inference.votes} is not allowed: {where} has no noise; use 0")


def _others(run: TrainedRun, suite: Suite) -> tuple[GLR | None, GLR | None, Split]:
    """Returns the surrogate and the baseline, if the suite needs them, and the images that it may evaluate."""
    where = run.device
    split = run.data.test if suite.split == "test" else run.data.validation
    needs = networks_of(suite, conditions_of(suite, len(split)))
    surrogate = baseline = None
    if "surrogate" in needs:
        surrogate = trained_surrogate(surrogate_config(suite.surrogate, run.config), run.data, str(where)).net
        if suite.surrogate_right:
            split = split.rows(_right(surrogate, split.to(where)))
    if "baseline" in needs:
        named = suite.baseline != "surrogate"
        baseline = _baseline(Path(suite.baseline), run.config, str(where)) if named else surrogate
    return surrogate, baseline, split


def _right(net: GLR, split: Split) -> Tensor:
    """Returns the indices of the images that a network classifies correctly.

    Raises:
        ConfigError: there are none.
    """
    right = []
    with reproducible(), torch.no_grad():
        for start in range(0, len(split), _BATCH):
            x, y = split.batch(slice(start, start + _BATCH))
            right.append((net(x).argmax(1) == y).cpu())
    found = torch.cat(right).nonzero()[:, 0]
    if not len(found):
        raise ConfigError("surrogate_right: the surrogate classifies no image correctly; train it longer")
    return found


def _smoothed(net: GLR, examples: Tensor, suite: Suite) -> Iterator[GLR]:
    """Yields the network with its input as a parameter, for each noise scale of the adaptive threat model."""
    adaptive = suite.adaptive
    own = net.scales() if suite.inference.votes else {}  # noisy predictions contain this noise in any case
    stds = spreads(net, examples)
    for spread in adaptive.spreads:
        scales = {site: (own.get(site, 0) ** 2 + (spread * std) ** 2) ** 0.5 for site, std in stds.items()}
        yield shifted(net, examples, scales, copies=adaptive.copies, passes=adaptive.passes)


def _baseline(folder: Path, config: Config, device: str) -> GLR:
    """Loads the run that corruption errors are relative to.

    Raises:
        UserError: the folder is not a run, or its data differs.
    """
    other = load_run(folder.absolute(), device)
    others = deciding(other.config)
    for key, value in deciding(config).items():
        if key.startswith("data.") and others[key] != value:
            raise ConfigError(f"baseline: {folder} is not allowed: its {key} is {others[key]!r}, not {value!r}")
    return other.net
