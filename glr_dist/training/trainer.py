"""The training loop: keyed shuffling, validation, metrics, checkpoints, and a bit-for-bit continuation."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau
from tqdm import tqdm

from glr_dist import config, data
from glr_dist.build import device_of, executor_of, network_of, optimizer_of, schedule_of
from glr_dist.checks import all_finite
from glr_dist.config import Config
from glr_dist.data import Split
from glr_dist.errors import ConfigError
from glr_dist.execution.inline import one_thread
from glr_dist.execution.memory import keep_freed_memory
from glr_dist.files import write_atomically
from glr_dist.losses import LOSSES
from glr_dist.streams import Key, Role, generator
from glr_dist.training import checkpoint
from glr_dist.training.curve import draw_learning_curve

_EVALUATION_BATCH = 1000  # examples of one piece of work
_MAY_DIFFER = ("execution", "tracking", "diagnose", "data.root", "data.download", "training.keep_checkpoints")


class Trainer:
    """One run: everything that changes while it trains, and the folder that receives it.

    Args:
        settings: the configuration.
        out: the run's folder; it must be new or empty, unless `resume`.
        resume: continue from the newest whole checkpoint of the folder, if there is one.
        device: where to compute, where it is not for the configuration to say.

    Attributes:
        on_epoch: called with the record of each epoch once the epoch is kept; what it raises ends the run.

    Raises:
        ConfigError: a user's mistake in the configuration or the folder.
        CheckpointError: every checkpoint of the folder is damaged.
    """

    def __init__(
        self, settings: Config, out: Path, *, resume: bool = False, device: torch.device | None = None
    ) -> None:
        keep_freed_memory()
        self.settings, self.out = settings, out
        self.device = device or device_of(settings.execution)
        dataset = data.load(settings.data)
        self.train, self.validation, self.test = (
            split.to(self.device) for split in (dataset.train, dataset.validation, dataset.test)
        )
        self.net = network_of(settings, dataset, self.device)
        self.loss = LOSSES[settings.training.loss]
        self.optimizer = optimizer_of(settings.training, self.net)
        self.steps = -(-len(self.train) // settings.training.batch_size)  # of an epoch
        self.schedule = schedule_of(settings.training, self.optimizer, self.steps)
        self.epoch = 0
        self.seconds = 0.0
        self.forward_passes = 0.0
        self.history: list[dict[str, Any]] = []
        self.on_epoch: Callable[[dict[str, Any]], None] = lambda record: None
        self._open(resume)

    def run(self) -> dict[str, Any]:
        """Trains to the last epoch, tests the final parameters once, and writes `summary.json`.

        Returns:
            The summary.

        Raises:
            FloatingPointError: the loss, the gradients or the outputs are not finite.
            OSError: a file cannot be written; finished epochs up to the last checkpoint are safe.
        """
        self.advance(self.settings.training.epochs)
        return self._finish()

    def advance(self, epochs: int) -> None:
        """Trains until so many epochs are done; errors as of `run`, which ends it."""
        if self.epoch >= epochs:
            return
        inline = self.net.executor
        try:
            self.net.train()
            step = self.net.bind(*self.train.batch(slice(0, self.settings.training.batch_size)), self.loss)
            with executor_of(self.settings.execution, self.net, step) as self.net.executor, self._progress() as bar:
                while self.epoch < epochs:
                    self._run_epoch(bar)
        finally:
            self.net.executor = inline

    # ------------------------------------------------------------ an epoch

    def _run_epoch(self, bar: tqdm[Any]) -> None:
        started = time.perf_counter()
        self.net.train()
        if self.settings.noise.schedule:
            self.net.set_scale(self.settings.noise.scale_after(self.epoch))
        stream = generator(Key(self.settings.seed, step=self.epoch, role=Role.SHUFFLE))
        order = torch.randperm(len(self.train), generator=stream).to(self.device)
        losses: list[Tensor] = []
        squares: dict[str, Tensor] = {}
        copies, passes = self.net.cost(*self.train.batch(order[:1]))  # per example of a step, and per step
        evaluations = 0
        for index in torch.split(order, self.settings.training.batch_size):
            x, y = self.train.batch(index)
            self.optimizer.zero_grad()
            loss = self.net.estimate(x, y, self.loss)
            with one_thread():
                self._square_norms(squares)
                self.optimizer.step()
                if self.schedule is not None and self._stepwise:
                    self.schedule.step()
            losses.append(loss * len(y))
            evaluations += copies * len(y)
            if not bar.disable:
                bar.set_postfix_str(self._state(loss, evaluations / (time.perf_counter() - started)), refresh=False)
                bar.update()
        self.forward_passes += passes * self.steps
        trained = time.perf_counter() - started
        with one_thread():
            train_loss = (torch.stack(losses).double().sum() / len(self.train)).item()
        correct, validation_loss = self.evaluate(self.validation)
        rate = self.optimizer.param_groups[0]["lr"]
        if self.schedule is not None and not self._stepwise:
            if isinstance(self.schedule, ReduceLROnPlateau):
                self.schedule.step(validation_loss)
            else:
                self.schedule.step()
        self.epoch += 1
        self.seconds += time.perf_counter() - started
        record = {
            "epoch": self.epoch,
            "step": self.net.step,
            "train_loss": train_loss,
            "validation_accuracy": correct,
            "validation_loss": validation_loss,
            "learning_rate": rate,
            "copies_per_second": evaluations / trained,
            "forward_passes": self.forward_passes,
            "seconds": self.seconds,
            "time": time.time(),
            **self.net.executor.progress(),
            **{f"gradient_norm/{site}": (total / self.steps).sqrt().item() for site, total in squares.items()},
        }
        if self.net.noise is not None:
            for site, scale in self.net.scales().items():
                record[f"noise_scale/{site}"] = scale.mean().item()
        self._keep(record)
        self._tell(bar, record)
        self.on_epoch(record)

    @property
    def _stepwise(self) -> bool:
        assert self.settings.training.schedule is not None
        return self.settings.training.schedule.per == "step"

    def _square_norms(self, squares: dict[str, Tensor]) -> None:
        """Adds |gradient|² of each site's parameters, for the root mean square over the epoch."""
        parameters = self.net.network.parameters
        for site in self.net.network.sites:
            own = [grad for name in site.owned if (grad := parameters[name].grad) is not None]
            if own:
                total = torch.stack([(grad * grad).sum() for grad in own]).sum()
                squares[site.name] = squares[site.name] + total if site.name in squares else total

    def evaluate(self, split: Split) -> tuple[float, float]:
        """Accuracy and mean loss of the noise-free network on a split.

        Raises:
            FloatingPointError: its outputs are not finite.
        """
        self.net.eval()

        def of(start: int) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                x, y = split.batch(slice(start, start + _EVALUATION_BATCH))
                outputs = self.net(x)
                if not all_finite(outputs):
                    raise FloatingPointError(f"the network's outputs are not finite after step {self.net.step}")
                return (outputs.argmax(-1) == y).sum(), self.loss(outputs, y).double().sum()

        with one_thread():
            parts = list(self.net.executor.map(of, range(0, len(split), _EVALUATION_BATCH)))
        correct, loss = (torch.stack(part).sum().item() for part in zip(*parts, strict=True))
        return correct / len(split), loss / len(split)

    # ------------------------------------------------------------ the folder

    def _open(self, resume: bool) -> None:
        """Makes the run's folder, or takes up what it holds."""
        kept = self.out / "config.yaml"
        try:
            if resume and kept.exists():
                self._check_same(kept)
                self._restore()
                return
            if self.out.exists() and any(not path.name.startswith(".") for path in self.out.iterdir()):
                advice = "it is no run to resume" if resume else "continue it with --resume, or choose another --out"
                raise ConfigError(f"--out: {self.out} is not empty; {advice}")
            write_atomically(kept, config.dump_config(self.settings).encode())
        except OSError as error:
            raise ConfigError(f"--out: {self.out} cannot be written ({error.strerror})") from None

    def _check_same(self, kept: Path) -> None:
        """A run is continued with the settings that it began with, or it would not be the same run."""
        before, now = _by_name(config.load_config(kept)), _by_name(self.settings)
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key) and not key.startswith(_MAY_DIFFER):
                raise ConfigError(
                    f"{key}: the run in {self.out} has {before.get(key)!r}, not {now.get(key)!r}; "
                    "leave out --resume to begin another run"
                )

    def _restore(self) -> None:
        if checkpoint.listed(self.out / "checkpoints"):
            path, state, damaged = checkpoint.newest(self.out / "checkpoints", self.device)
            for line in damaged:
                print(f"warning: {line}; using {path.name}", file=sys.stderr)
            self.net.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.schedule is not None:
                self.schedule.load_state_dict(state["schedule"])
            self.net.step, self.epoch = state["step"], state["epoch"]
            self.seconds, self.forward_passes = state["seconds"], state["forward_passes"]
            self.history = state["history"]
        self._keep_metrics()

    def _keep_metrics(self) -> None:
        lines = "".join(json.dumps(record) + "\n" for record in self.history)
        write_atomically(self.out / "metrics.jsonl", lines.encode())

    def _keep(self, record: dict[str, Any]) -> None:
        """The epoch's metrics first, then its checkpoint: a resumed run drops metrics that no checkpoint knows."""
        self.history.append(record)
        with (self.out / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
        folder = self.out / "checkpoints"
        state = {
            "network": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict() if self.schedule is not None else None,
            "step": self.net.step,
            "epoch": self.epoch,
            "seconds": self.seconds,
            "forward_passes": self.forward_passes,
            "history": self.history,
        }
        checkpoint.save(folder / checkpoint.name_of(self.epoch), state)
        checkpoint.prune(folder, self.settings.training.keep_checkpoints)

    def _finish(self) -> dict[str, Any]:
        summary = self._summary()
        write_atomically(self.out / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())
        return summary

    def _summary(self) -> dict[str, Any]:
        draw_learning_curve(self.history, self.out / "learning_curve.png")
        accuracy, loss = self.evaluate(self.test)
        last = self.history[-1]
        return {
            "test_accuracy": accuracy,
            "test_loss": loss,
            "validation_accuracy": last["validation_accuracy"],
            "train_loss": last["train_loss"],
            "epochs": self.epoch,
            "steps": self.net.step,
            "seconds": round(self.seconds, 3),
            "forward_passes": self.forward_passes,
            **self._executor_summary(),
            "estimator": self.settings.estimator.name,
            "data": self.settings.data.name,
            "seed": self.settings.seed,
            "params_sha256": checkpoint.digest(self.net.state_dict()),
        }

    def _executor_summary(self) -> dict[str, Any]:
        """The whole run's share of time in which the actors were busy, items per second, and restarts."""
        told = [record for record in self.history if "actor_busy_share" in record]
        if not told:
            return {}
        return {
            "items_per_second": round(statistics.fmean(record["items_per_second"] for record in told), 1),
            "actor_busy_share": [
                round(statistics.fmean(shares), 4)
                for shares in zip(*(record["actor_busy_share"] for record in told), strict=False)
            ],
            "actor_restarts": sum(record["actor_restarts"] for record in told),
        }

    # ------------------------------------------------------------ what a person sees

    def _progress(self) -> tqdm[Any]:
        return tqdm(
            total=self.settings.training.epochs * self.steps,
            initial=self.epoch * self.steps,
            unit="step",
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
            bar_format="{percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}",  # within 80 columns
        )

    def _state(self, loss: Tensor, rate: float) -> str:
        accuracy = f", accuracy {self.history[-1]['validation_accuracy']:.4f}" if self.history else ""
        epoch = f"epoch {self.epoch + 1}/{self.settings.training.epochs}"
        return f"{epoch}, loss {loss.item():.4f}{accuracy}, {tqdm.format_sizeof(rate)} copies/s"

    def _tell(self, bar: tqdm[Any], record: dict[str, Any]) -> None:
        """One plain line per epoch where there is no terminal to draw a bar on."""
        if bar.disable:
            left = self.seconds / self.epoch * (self.settings.training.epochs - self.epoch)
            print(
                f"epoch {record['epoch']}/{self.settings.training.epochs}  train loss {record['train_loss']:.4f}  "
                f"validation accuracy {record['validation_accuracy']:.4f}  "
                f"{record['copies_per_second']:,.0f} copies/s  {left:.0f} s left",
                flush=True,
            )


def _by_name(settings: Config) -> dict[str, Any]:
    """The values by dotted name; what is given by site or by epoch is one value."""
    values = settings.model_dump(mode="json")
    named = config.flat({"training": values.pop("training"), "seed": values.pop("seed")})
    return named | {f"{section}.{key}": value for section in values for key, value in values[section].items()}
