"""Measures the parts of a step on this machine, each on one thread."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from glr_dist.build import loss_of, optimizer_of
from glr_dist.config import Config
from glr_dist.estimators import Step, WorkItem
from glr_dist.execution import plan, predict
from glr_dist.execution.inline import Inline
from glr_dist.execution.predict import Hardware
from glr_dist.execution.reproducible import reproducible
from glr_dist.glr import GLR
from glr_dist.losses import Loss
from glr_dist.planning.step_plan import Driver, Kind
from glr_dist.sites import Tape
from glr_dist.trees import leaves

_REPEATS, _ENOUGH = 5, 0.3  # maximum number of runs of a part, and seconds after which no further run begins
_TOO_LONG = 5.0  # an item is measured only if it is predicted to take less, in seconds
_SHOWN = 3.0  # predicted seconds above which a progress bar is shown


class Bench:
    """Measures a step of a network on its first example block, and on its last one if that is shorter.

    Args:
        config: the configuration.
        net: the prepared network.
        x, y: the batch.
    """

    def __init__(self, config: Config, net: GLR, x: Tensor, y: Tensor) -> None:
        self.config, self.net, self.x, self.y = config, net, x, y
        self.loss: Loss = loss_of(config)
        self.step: Step = net.bind(x, y, self.loss)
        self.costs = plan.Costs()
        self._tapes: dict[int, Tape] = {}
        self._share = len(y) / len(y[self.step.examples_of(0)])  # size of the batch in units of the first example block

    @property
    def tape_bytes(self) -> int:
        """Number of bytes of the tape of one shared pass over the whole batch."""
        with self._prepared():
            return round(plan.tape_bytes(self.step, self._tape(0)) * self._share)

    def kinds(self) -> list[Kind]:
        """Measures each kind of item, and records the seconds in `costs`."""
        estimator, step, machine = self.net.estimator, self.step, Hardware()
        kinds: dict[tuple[str | None, int, int], list[WorkItem]] = {}
        for item in predict.all_items(estimator, step):
            kinds.setdefault(plan.kind(step, item), []).append(item)
        seconds = [machine.item_seconds(step, items[0]) for items in kinds.values()]
        long = sum(_REPEATS * each for each in seconds if each < _TOO_LONG) > _SHOWN
        bar = tqdm(total=len(kinds), desc="plan", unit="kind", disable=not long or not sys.stderr.isatty())
        found = []
        with self._prepared(), bar:
            for ((site, directions, examples), items), predicted in zip(kinds.items(), seconds, strict=True):
                measured = None
                if predicted < _TOO_LONG:
                    measured = self._item(items[0]._replace(shared_pass=0))
                    self.costs.observe(step, items[0], measured)
                back = plan.partial_bytes(step, items[0])
                found.append(Kind(site, len(items), directions, examples, predicted, measured, back))
                bar.update()
        return found

    def driver(self) -> Driver:
        """Measures the driver's own part of a step."""
        estimator, step = self.net.estimator, self.step
        formed = 0.0
        with self._prepared():
            shared = self._median(lambda: estimator.tape(step, 0, 0))
            if any(item.site is not None for item in estimator.items(step, 0)):
                for site in step.learned():
                    if site.owned and step.keeps_delta(site):
                        formed += step.passes[site.name] * self._formed(site.name)
            optimizer = optimizer_of(self.config.training, self.net)
            for parameter in (*step.network.parameters.values(), *step.log_scales.values()):
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()  # the first step creates the optimizer's state
            stepped = self._median(lambda: optimizer.step())
        return Driver(estimator.passes(step) * shared * self._share, formed * self._share, stepped)

    def whole(self) -> float:
        """Measures the seconds of a whole estimate, computed inline."""
        self.net.executor = Inline(1)
        with reproducible():
            return self._median(lambda: self.net.estimate(self.x, self.y, self.loss))

    def _item(self, item: WorkItem) -> float:
        """Measures the seconds of an item whose frames have been drawn."""
        tape = self._tape(item.example_block)
        self.net.estimator.partial(self.step, item, tape)
        return self._median(lambda: self.net.estimator.partial(self.step, item, tape))

    def _formed(self, site: str) -> float:
        """Measures the seconds of a site's parameter gradients from the δ of one example block."""
        tape = self._tape(0)
        delta = torch.zeros_like(tape.logits[site])
        return self._median(lambda: self.net.estimator.finish(self.step, 0, 0, site, delta, tape))

    def _tape(self, block: int) -> Tape:
        if block not in self._tapes:
            self._tapes[block] = self.net.estimator.tape(self.step, 0, block)
        return self._tapes[block]

    @contextmanager
    def _prepared(self) -> Iterator[None]:
        with reproducible(), torch.no_grad(), self.net.network.hooked():
            yield

    def _median(self, work: Callable[[], Any]) -> float:
        """Returns the median seconds of several runs of a part."""
        seconds: list[float] = []
        while len(seconds) < _REPEATS and sum(seconds) < _ENOUGH:
            started = time.perf_counter()
            work()
            if (first := leaves(self.x)[0]).is_cuda:
                torch.cuda.synchronize(first.device)
            seconds.append(time.perf_counter() - started)
        return statistics.median(seconds)
