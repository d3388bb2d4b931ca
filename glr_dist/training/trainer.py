"""The training loop: keyed shuffling, validation, metrics, checkpoints, and a bit-for-bit continuation."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from glr_dist import data
from glr_dist.build import check_loss, device_of, executor_of, loss_of, network_of, optimizer_of, schedule_of
from glr_dist.claims import claim
from glr_dist.config import Config
from glr_dist.data.augment import augmented, check_images
from glr_dist.errors import ConfigError
from glr_dist.estimators.allotment import Allotment
from glr_dist.execution.memory import keep_freed_memory
from glr_dist.execution.reproducible import reproducible
from glr_dist.figures import draw
from glr_dist.runs import RunFolder
from glr_dist.streams import Key, Role, generator
from glr_dist.training import checkpoint
from glr_dist.training.adversarial import Adversary
from glr_dist.training.average import Average
from glr_dist.training.best import best_record, digest_of, score_of
from glr_dist.training.compile_path import take_path, with_path, with_path_of
from glr_dist.training.curve import curve_figure
from glr_dist.training.evaluator import evaluator_of
from glr_dist.training.input_noise import check_inputs, scale_after, with_input_noise
from glr_dist.training.more_epochs import check_schedule, check_trained
from glr_dist.training.penalty import SpectralPenalty
from glr_dist.training.progress import Progress
from glr_dist.training.robustness_curve import has_robustness, robustness_curve_figure
from glr_dist.training.scores import check_metrics, scores
from glr_dist.training.summary import summary_of
from glr_dist.training.warm_start import adopted, begin_with, pinned, weights_of

_TRIED = 32  # examples on which the loss is tried before training


class Trainer:
    """One run: its network, optimizer and data, and the folder that receives its results.

    Args:
        config: the configuration.
        out: the run's folder; it must be new or empty unless `resume` is set. This process claims it until training
            ends.
        resume: continue from the newest undamaged checkpoint of the folder, if it has one. The number of epochs may be
            another one if the learning-rate schedule does not depend on it.
        device: where to compute; by default as the configuration says.

    Attributes:
        config: the configuration, with the digest of the weights that the run begins with.
        carried: keys of the learned noise scales that came with those weights; None unless they were read now.
        of_images: True if the data are images, each with its class.
        notes: what a user should know about the data, one line each.
        evaluator: evaluates the network after some epochs and at the end, if the configuration asks for it.
        on_epoch: called with the metrics of each epoch once they and the checkpoint are on disk; an exception that it
            raises ends the run.

    Raises:
        ConfigError: the configuration or the folder does not fit.
        ClaimedError: another process is training in the folder.
        CheckpointError: every checkpoint of the folder is damaged or belongs to another network.
    """

    def __init__(self, config: Config, out: Path, *, resume: bool = False, device: torch.device | None = None) -> None:
        keep_freed_memory()
        self.config, self.folder = config, self._folder_of(out)
        self.device = device or device_of(config.execution)
        dataset = data.load(config.data, config.code)
        self.train, self.validation, self.test = (
            split.to(self.device) for split in (dataset.train, dataset.validation, dataset.test)
        )
        check_metrics(config.training, self.train, self.validation, self.test)
        self.of_images = dataset.of_images
        self.evaluator = evaluator_of(config, dataset)
        self.notes = (*dataset.notes, *(() if self.evaluator is None else self.evaluator.notes))
        self.net = network_of(config, dataset, self.device)
        self.loss = loss_of(config)
        self._average = None if config.training.ema is None else Average(self.net, config.training.ema)
        check_loss(self.net, *self.train.batch(slice(0, _TRIED)), self.loss, config)
        self.optimizer = optimizer_of(config.training, self.net)
        self.steps = -(-len(self.train) // config.training.batch_size)  # per epoch
        self.schedule = schedule_of(config.training, self.optimizer, self.steps)
        penalty = config.training.penalty
        if config.data.augment is not None:
            check_images(self.train.batch(slice(0, 1))[0])
        if config.noise.input is not None:
            check_inputs(self.train.batch(slice(0, 1))[0])
        self.penalty = None if penalty is None else SpectralPenalty.of(penalty, self.net.network)
        self._adversary = None
        if (adversarial := config.training.adversarial) is not None:
            if not self.of_images:
                raise ConfigError("training.adversarial: needs images of one class each, in [0, 1]; leave it out")
            examples = self.train.batch(slice(0, config.training.batch_size))[0]
            self._adversary = Adversary(adversarial, self.net, examples, config.seed)
        self.epoch = 0
        self.seconds = 0.0
        self.forward_passes = 0.0
        self.history: list[dict[str, Any]] = []
        self.carried: list[str] | None = None
        self.on_epoch: Callable[[dict[str, Any]], None] = lambda record: None
        if self.evaluator is not None:
            self.evaluator.check(self)
        self._open(resume)

    def run(self) -> dict[str, Any]:
        """Trains to the last epoch, tests the final network once, writes the summary, and evaluates the finished run.

        Returns:
            The summary.

        Raises:
            FloatingPointError: the loss, the gradients or the outputs are not finite.
            ClusterError: the actors or workers are lost.
            OSError: a file cannot be written; finished epochs up to the last checkpoint are safe.
        """
        with claim(self.folder.path):
            self.advance(self.config.training.epochs)
            summary = self._finish()
            if self.evaluator is not None:
                self.evaluator.at_end(self)
            return summary

    def advance(self, epochs: int) -> None:
        """Trains until `epochs` epochs are done, counted from the beginning of the run.

        Raises:
            Exception: the errors of `run`.
        """
        try:
            with claim(self.folder.path):
                if self.epoch < epochs:
                    self._advance(min(epochs, self.config.training.epochs))
        finally:
            self._claim.release()

    def _advance(self, epochs: int) -> None:
        inline = self.net.executor
        try:
            self.net.train()
            step = self.net.bind(*self.train.batch(slice(0, self.config.training.batch_size)), self.loss)
            self._compile()
            with executor_of(self.config.execution, self.net, step) as self.net.executor, self._progress() as progress:
                while self.epoch < epochs and not self.ended:
                    self._run_epoch(progress)
        finally:
            self.net.executor = inline

    def _compile(self) -> None:
        """Compiles the redraws if the run's configuration asks for it, and writes the path that the run takes.

        Raises:
            CompileError: they cannot be compiled, and the run has begun with compiled ones.
        """
        path = take_path(self.config, self.net, self.train, self.loss, may_run_eagerly=self._may_run_eagerly)
        if path != self.config.execution.compile:
            self.config = with_path(self.config, path)
            self.folder.keep_compile(path)

    @property
    def _may_run_eagerly(self) -> bool:
        """True if redraws that cannot be compiled may run eagerly: no step has been made."""
        return self.net.step == 0

    @property
    def ended(self) -> bool:
        """True if the run ends before its last epoch: a limit is reached, or early stopping."""
        training = self.config.training
        if training.max_steps is not None and self.net.step >= training.max_steps:
            return True
        if training.max_seconds is not None and self.seconds >= training.max_seconds:
            return True
        if training.early_stopping is None or not self.history:
            return False
        return self.epoch - int(best_record(self.history)["epoch"]) >= training.early_stopping.patience

    # ------------------------------------------------------------ an epoch

    def _run_epoch(self, progress: Progress) -> None:
        started = time.perf_counter()
        self.net.train()
        if self.config.noise.schedule:
            self.net.set_scale(self.config.noise.scale_after(self.epoch))
        copies, passes = self.net.cost(*self.train.batch(slice(0, 1)), self.loss)  # per example of a step, and per step
        before = self.net.step
        loss, squares = self._run_steps(progress, copies)
        steps = self.net.step - before
        if self.net.allotment is None:
            self.forward_passes += passes * steps  # else counted step by step
        else:
            copies = self.net.cost(*self.train.batch(slice(0, 1)), self.loss)[0]
        trained = time.perf_counter() - started
        found = self._scores(self.validation)
        rate = self.optimizer.param_groups[0]["lr"]
        if self.schedule is not None and not self._stepwise:
            if isinstance(self.schedule, ReduceLROnPlateau):
                self.schedule.step(found["loss"])
            else:
                self.schedule.step()
        self.epoch += 1
        self.seconds += time.perf_counter() - started
        record = {
            "epoch": self.epoch,
            "step": self.net.step,
            "train_loss": loss,
            **{f"validation_{name}": value for name, value in found.items()},
            "learning_rate": rate,
            "copies_per_second": copies * min(len(self.train), steps * self.config.training.batch_size) / trained,
            "forward_passes": self.forward_passes,
            "seconds": self.seconds,
            "time": time.time(),
            **self.net.executor.progress(),
            **{f"gradient_norm/{site}": (total / steps).sqrt().item() for site, total in squares.items()},
        }
        if self.net.noise is not None:
            record |= {f"noise_scale/{site}": scale.mean().item() for site, scale in self.net.scales().items()}
        if self._learns_feedback:
            record |= {
                f"feedback/{site.name}": self.net.feedback.multiple(site.name) for site in self.net.network.sites
            }
        if (allotment := self.net.allotment) is not None:
            record |= {f"copies/{site}": copies for site, copies in allotment.copies.items()}
            record |= {f"passes/{site}": passes for site, passes in allotment.passes.items()}
        if self.config.noise.input is not None:
            record["input_noise"] = scale_after(self.config.noise.input, self.epoch - 1)  # of the epoch that ended
        if self.penalty is not None:
            with reproducible():
                record |= {f"spectral_norm/{layer}": norm for layer, norm in self.penalty.norms().items()}
        if (early := self.config.training.early_stopping) is not None:
            record["score"] = score_of(record, early.metric)
        self.history.append(record)
        if self.evaluator is not None and self.evaluator.due(self):
            record |= self.evaluator.after_epoch(self)
        self._keep(record)
        self._report(progress, record)
        self.on_epoch(record)

    def _run_steps(self, progress: Progress, copies: int) -> tuple[float, dict[str, Tensor]]:
        """Trains one epoch; returns the mean loss and, by site, the sum over steps of |gradient|²."""
        started = time.perf_counter()
        stream = generator(Key(self.config.seed, step=self.epoch, role=Role.SHUFFLE))
        order = torch.randperm(len(self.train), generator=stream).to(self.device)
        losses: list[Tensor] = []
        squares: dict[str, Tensor] = {}
        seen = 0
        training, augment, noise = self.config.training, self.config.data.augment, self.config.noise.input
        left = None if training.max_steps is None else training.max_steps - self.net.step
        for index in torch.split(order, training.batch_size)[:left]:
            x, y = self.train.batch(index)
            if augment is not None:
                x = augmented(x, augment, self.config.seed, self.net.step)
            if self._adversary is not None:
                x = self._adversary.perturbed(x, y, self.net.step)
            if noise is not None:
                x = with_input_noise(x, scale_after(noise, self.epoch), self.config.seed, self.net.step)
            self.optimizer.zero_grad()
            before = self.net.allotment
            loss = self.net.estimate(x, y, self.loss)
            self._count_allotted(before, progress)
            with reproducible():
                self._square_norms(squares)
                if self.penalty is not None:
                    self.penalty.add_gradients()
                if training.clip_norm is not None:
                    nn.utils.clip_grad_norm_(self.net.parameters(), training.clip_norm)
                with self._warmed_up():
                    self.optimizer.step()
                if self._average is not None:
                    self._average.update(self.net.step)
                if self.schedule is not None and self._stepwise:
                    self.schedule.step()
            losses.append(loss * len(index))
            seen += len(index)
            progress.step(self.epoch + 1, loss, copies * seen / (time.perf_counter() - started))
        with reproducible():
            return (torch.stack(losses).double().sum() / seen).item(), squares

    def _count_allotted(self, before: Allotment | None, progress: Progress) -> None:
        """Counts the forward passes of a step that a budget was allotted to, and of a measurement before it."""
        allotment = self.net.allotment
        if allotment is None:
            return
        self.forward_passes += allotment.forward_passes
        if allotment is not before:
            self.forward_passes += allotment.measuring
            if before is None or not allotment.same(before):
                self._report_allotment(progress, allotment)

    def _scores(self, split: data.Split) -> dict[str, float]:
        with nullcontext() if self._average is None else self._average.in_place():
            return scores(self.net, split, self.loss, self.config.training.metrics)

    @contextmanager
    def _warmed_up(self) -> Iterator[None]:
        """Lowers the learning rate of a step among the first `training.warmup`."""
        warmup, groups = self.config.training.warmup, self.optimizer.param_groups
        if self.net.step > warmup or warmup == 0:  # the estimate has counted this step
            yield
            return
        rates = [group["lr"] for group in groups]
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate * self.net.step / warmup
        yield
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate

    @property
    def _stepwise(self) -> bool:
        return self.config.training.schedule is not None and self.config.training.schedule.per == "step"

    def _square_norms(self, squares: dict[str, Tensor]) -> None:
        """Adds |gradient|² of each site's parameters, for the root mean square over the epoch."""
        parameters = self.net.network.parameters
        for site in self.net.network.sites:
            grads = [grad for name in site.owned if (grad := parameters[name].grad) is not None]
            if grads:
                total = torch.stack([(grad * grad).sum() for grad in grads]).sum()
                squares[site.name] = squares[site.name] + total if site.name in squares else total

    # ------------------------------------------------------------ the folder

    def _folder_of(self, out: Path) -> RunFolder:
        return RunFolder(out)

    def _open(self, resume: bool) -> None:
        """Begins the run's folder, or restores the run that it holds."""
        try:
            self._claim = claim(self.folder.path)  # held from here on, so that no other process begins the same run
        except OSError as error:
            raise ConfigError(f"--out: {self.folder.path} cannot be written ({error.strerror})") from None
        try:
            if resume and self.folder.exists:
                configured = self.folder.config()
                self.config = with_path_of(configured, adopted(configured, self.config, self.folder.path))
                self.folder.check_resumable(self.config, other_epochs=True)
                self.folder.check_data(self._data_digests())
                for name in self.folder.changed_code(self.config):
                    print(
                        f"warning: {name} has changed since the run began (copy: {self.folder.code / name}.py); "
                        "resumed with the present code, it is another run",
                        file=sys.stderr,
                    )
                check_schedule(configured, self.config, self.folder.path)
                self._restore()
                check_trained(self.config, self.epoch, self.folder.path)
                if configured.training.epochs != self.config.training.epochs:
                    self.folder.change_epochs(self.config.training.epochs)
                if self.epoch == 0 and not checkpoint.listed(self.folder.checkpoints):
                    self._warm_start()
            else:
                self._warm_start(begin=True)
        except BaseException:
            self._claim.release()
            raise

    def _data_digests(self) -> dict[str, str]:
        return {
            name: split.digest_with_targets()
            for name, split in (("training", self.train), ("validation", self.validation), ("test", self.test))
        }

    def _warm_start(self, *, begin: bool = False) -> None:
        """Loads the weights that the run begins with, if it names any, and keeps them as its first checkpoint.

        Args:
            begin: begin the folder once they are known to fit.
        """
        weights = weights_of(self.config.model, self.device)
        if weights is not None:
            self.carried = begin_with(self.net, weights)
            if self._average is not None:
                self._average.restore(self.net.state_dict())
            self.config = pinned(self.config, weights.digest)
        if begin:
            self.folder.begin(self.config)
            self.folder.keep_code(self.config)
            self.folder.keep_data(self._data_digests())
        if weights is not None:
            self.folder.write_checkpoint(checkpoint.name_of(0), self._save)

    def _restore(self) -> None:
        """Restores the newest undamaged checkpoint; the folder's metrics become those that the checkpoint holds."""
        if checkpoint.listed(self.folder.checkpoints):
            path, state, damaged = checkpoint.newest(self.folder.checkpoints, self.device)
            for line in damaged:
                print(f"warning: {line}; using {path.name}", file=sys.stderr)
            if self._average is not None:
                self._average.restore(state["network"])
                state = {**state, "network": state["last_network"]}
            checkpoint.restore_network(self.net, state, path)
            checkpoint.restore_optimizer(self.optimizer, self.schedule, state, path)
            if self._learns_feedback and "feedback" in state:  # a trial's parent may not have learned one
                self.net.feedback.load(state["feedback"])
            self.net.step, self.epoch = state["step"], state["epoch"]
            allotment = state.get("allotment")  # None before the first step, and without a budget
            self.net.allotment = None if allotment is None else Allotment.from_state(allotment)
            self.seconds, self.forward_passes = state["seconds"], state["forward_passes"]
            self.history = state["history"]
        self.folder.replace_metrics(self.history)

    def _keep(self, record: dict[str, Any]) -> None:
        """Writes the epoch's metrics and then its checkpoint: resuming drops metrics that no checkpoint holds."""
        self.folder.append_metrics(record)
        self.folder.write_checkpoint(checkpoint.name_of(self.epoch), self._save)

    def _save(self, path: Path) -> None:
        state = {
            "network": self.kept(),
            **({} if self._average is None else {"last_network": self.net.state_dict()}),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict() if self.schedule is not None else None,
            **({"feedback": self.net.feedback.state()} if self._learns_feedback else {}),
            "step": self.net.step,
            **({} if self.net.allotment is None else {"allotment": self.net.allotment.state()}),
            "epoch": self.epoch,
            "seconds": self.seconds,
            "forward_passes": self.forward_passes,
            "history": self.history,
        }
        checkpoint.save(path, state)
        best = best_record(self.history)["epoch"] if self.history else None
        checkpoint.prune(path.parent, self.config.training.keep_checkpoints, self.epoch, best)

    @property
    def _learns_feedback(self) -> bool:
        return self.config.estimator.feedback != "none"

    def kept(self) -> dict[str, Tensor]:
        """Returns the state of the network that the run keeps: with averaged weights, if it averages them."""
        return self.net.state_dict() if self._average is None else self._average.state_dict()

    def _finish(self) -> dict[str, Any]:
        """Tests the network and writes the summary; a picture that cannot be drawn only causes a warning."""
        found = self._scores(self.test)
        summary = summary_of(
            self.config,
            self.net.step,
            checkpoint.digest(self.kept()),
            self.history,
            test=found,
            best_digest=digest_of(self.folder.checkpoints, best_record(self.history)["epoch"]),
        )
        self.folder.write_summary(summary)
        draw(self.folder.curve_file, lambda: curve_figure(self.history))
        if has_robustness(self.history):
            draw(self.folder.robustness_curve_file, lambda: robustness_curve_figure(self.history))
        return summary

    # ------------------------------------------------------------ progress

    def _progress(self) -> Progress:
        return Progress(self.config.training.epochs, self.steps, self.epoch)

    def _report(self, progress: Progress, record: dict[str, Any]) -> None:
        progress.epoch(record)

    def _report_allotment(self, progress: Progress, allotment: Allotment) -> None:
        progress.note(f"step {self.net.step}: {allotment}")
