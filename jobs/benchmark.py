"""Benchmarks: all candidates alternate on one machine in one run, and the figures are medians of ratios.

    python jobs/benchmark.py step [CONFIG.yaml] [key=value ...] [--actors 1 2] [--compile] [--out DIR]
    python jobs/benchmark.py variance CONFIG.yaml [key=value ...] [--passes 10 20 50] [--out DIR]
    python jobs/benchmark.py time_to_accuracy CONFIG.yaml [key=value ...] [--accuracy 0.9] [--out DIR]

`step` (also `scaling`) compares training steps in one process on one thread with a step of plain backpropagation of the
same network, then steps on Ray actors with those, and with the best that the cores can do: independent processes that
run the same work items without sending or waiting. `--actors 0` leaves out Ray. `--compile` adds a compiled
step.

`variance` measures the cosine of each site's estimates against the forward passes of a step: copies, the best head,
one unit at a time, and a budget that is allotted to the sites.

`time_to_accuracy` trains one network as configured, with the best head, with an allotted budget of the same forward
passes, and by backpropagation, and reports seconds and passes to an accuracy on the validation examples.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import glr_dist
from glr_dist import data
from glr_dist.build import device_of, loss_of, network_of, optimizer_of
from glr_dist.config import Config, load_config
from glr_dist.diagnostics.estimates import without_nan
from glr_dist.errors import ConfigError, UserError
from glr_dist.execution.executor import Executor
from glr_dist.execution.inline import Inline
from glr_dist.execution.memory import keep_freed_memory
from glr_dist.execution.reproducible import reproducible
from glr_dist.figures import draw
from glr_dist.files import write_atomically
from glr_dist.glr import GLR

Commands = Any  # what `add_subparsers` returns
COMPILED = "compiled step"
AS_CONFIGURED, HEAD_AUTO, COPIES_AUTO = RACED = ("as configured", "head auto", "copies auto")
SCALING = Path(__file__).resolve().parents[1] / "configs" / "benchmark" / "scaling.yaml"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a benchmark; returns the exit code, 2 for a user's error."""
    parser = argparse.ArgumentParser(description="Benchmarks of glr_dist.")
    commands = parser.add_subparsers(required=True, metavar="BENCHMARK")
    _add_step(commands)
    _add_variance(commands)
    _add_time_to_accuracy(commands)
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except UserError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 2
    return 0


def _add_step(commands: Commands) -> None:
    command = commands.add_parser(
        "step",
        aliases=["scaling"],
        help="training steps, beside backpropagation and on Ray actors",
        description=scaling.__doc__,
    )
    command.add_argument("config", nargs="*", metavar="CONFIG.yaml key=value", help=f"default: {SCALING.name}")
    command.add_argument("--actors", type=int, nargs="+", default=[1, 2], metavar="N", help="0: without Ray (1 2)")
    command.add_argument("--compile", action="store_true", help="also a compiled step, on one thread")
    command.add_argument("--rounds", type=_count, default=9, metavar="N", help="turns of each candidate")
    command.add_argument("--steps", type=_count, default=2, metavar="N", help="steps in a turn")
    command.add_argument("--out", type=Path, metavar="DIR", help="folder for scaling.json")

    def run(options: argparse.Namespace) -> None:
        if min(options.actors) < 0 or (0 in options.actors and len(options.actors) > 1):
            raise ConfigError("--actors: numbers of actors from 1 on are allowed, or 0 alone")
        actors = [number for number in options.actors if number]
        report = scaling(_config(options, SCALING), actors, options.rounds, options.steps, compiled=options.compile)
        _write(options, "scaling", report)

    command.set_defaults(run=run)


def _add_variance(commands: Commands) -> None:
    command = commands.add_parser("variance", help="cosine of the estimates against forward passes")
    command.add_argument("config", nargs="+", metavar="CONFIG.yaml key=value")
    command.add_argument("--passes", type=float, nargs="+", default=[10.0, 20.0, 50.0], metavar="N", help="budgets")
    command.add_argument("--out", type=Path, metavar="DIR", help="folder for variance.json, .png and .pdf")

    def run(options: argparse.Namespace) -> None:
        from glr_dist.diagnostics.against_passes import against_passes, passes_figure

        config = _config(options)
        found = against_passes(config, sorted(set(options.passes)))
        print(found)
        _write(options, "variance", {"config": config.model_dump(mode="json"), **asdict(found)})
        if options.out is not None:
            draw(options.out.absolute() / "variance.png", lambda: passes_figure(found))

    command.set_defaults(run=run)


def _add_time_to_accuracy(commands: Commands) -> None:
    command = commands.add_parser("time_to_accuracy", help="seconds and passes to an accuracy, beside backpropagation")
    command.add_argument("config", nargs="+", metavar="CONFIG.yaml key=value")
    command.add_argument("--accuracy", type=float, default=0.9, metavar="A", help="on the validation examples")
    command.add_argument("--rounds", type=_count, default=3, metavar="N", help="repetitions, each with its own seed")
    command.add_argument("--steps", type=_count, default=2000, metavar="N", help="steps after which a candidate stops")
    command.add_argument("--turn", type=_count, default=20, metavar="N", help="steps between two evaluations")
    command.add_argument("--only", choices=RACED, nargs="+", default=RACED, help="estimators beside backpropagation")
    command.add_argument("--out", type=Path, metavar="DIR", help="folder for time_to_accuracy.json")

    def run(options: argparse.Namespace) -> None:
        from glr_dist.diagnostics.race import race, race_table

        config = _config(options)
        found = race(_candidates(config, options.only), options.accuracy, options.rounds, options.steps, options.turn)
        print(race_table(found))
        times = {name: [asdict(each) for each in times] for name, times in found.items()}
        report = {"config": config.model_dump(mode="json"), "accuracy": options.accuracy, "times": times}
        _write(options, "time_to_accuracy", report)

    command.set_defaults(run=run)


def _candidates(config: Config, names: Sequence[str]) -> dict[str, Config]:
    """The configurations that `time_to_accuracy` compares, those of `RACED` with a name among `names`."""
    from glr_dist.diagnostics.estimates import rebuilt
    from glr_dist.diagnostics.race import BACKPROP, by_backprop

    estimators = {AS_CONFIGURED: config.estimator}
    if config.estimator.name == "conditional":
        estimators[HEAD_AUTO] = config.estimator.model_copy(update={"head": "auto"})
        if COPIES_AUTO in names:
            net, x, y = _batch(config)
            budget = net.cost(x, y, loss_of(config))[1]
            estimators[COPIES_AUTO] = rebuilt(
                config.estimator, copies="auto", passes="auto", redraw="auto", head="auto", budget=budget
            )
    chosen = {name: each for name, each in estimators.items() if name in names}
    if not chosen:
        raise ConfigError(f"--only: {', '.join(names)}: only with 'conditional', not with {config.estimator.name!r}")
    configs = {name: config.model_copy(update={"estimator": each}) for name, each in chosen.items()}
    return {**configs, BACKPROP: by_backprop(config)}


def _count(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return value


def _config(options: argparse.Namespace, default: Path | None = None) -> Config:
    paths = [given for given in options.config if "=" not in given] or ([] if default is None else [default])
    if len(paths) != 1:
        raise ConfigError(f"CONFIG.yaml: one file is needed, {len(paths)} were given")
    return load_config(paths[0], [given for given in options.config if "=" in given])


def _write(options: argparse.Namespace, name: str, report: dict[str, Any]) -> None:
    """Prints the machine, and writes a report with it and with the versions of the software."""
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    versions = {"Python": platform.python_version(), "torch": torch.__version__, "glr_dist": glr_dist.__version__}
    print(", ".join(f"{key} {value}" for key, value in {**machine, **versions}.items()))
    if options.out is not None:
        content = json.dumps(without_nan({**report, **machine, "versions": versions}), indent=2) + "\n"
        write_atomically(options.out.absolute() / f"{name}.json", content.encode())


def scaling(
    config: Config, actors: Sequence[int], rounds: int, steps: int, *, compiled: bool = False
) -> dict[str, Any]:
    """Compares steps of one process on one thread with backpropagation, with Ray actors, and with processes."""
    from glr_dist.diagnostics.race import BACKPROP
    from glr_dist.execution.cluster import connected
    from glr_dist.execution.layers import Layers

    with ExitStack() as opened:
        net, step = _trained(config)
        executors: dict[str, Executor] = {"inline": Inline(1)}
        if actors:
            opened.enter_context(connected(sum(actors)))
        for number in actors:
            executors[f"layers {number}"] = opened.enter_context(Layers(number, threads=1))
        processes = opened.enter_context(Independent(config, max(actors, default=0)))
        backward = _backpropagation(config)
        fast = _trained(config, compile=True) if compiled else None

        def steps_on(executor: Executor) -> None:
            net.executor = executor
            for _ in range(steps):
                step()

        candidates: dict[str, Callable[[], object]] = {
            BACKPROP: lambda: [backward() for _ in range(steps)],
            **({} if fast is None else {COMPILED: lambda: [fast[1]() for _ in range(steps)]}),
            **{name: lambda executor=executor: steps_on(executor) for name, executor in executors.items()},  # type: ignore[misc]
            **{f"processes {n}": lambda n=n: processes.run(n, steps) for n in sorted({1, *actors} if actors else ())},  # type: ignore[misc]
        }
        for run in candidates.values():
            run()
        # Steps in this process and thread alone are measured in processor time, which other processes hardly disturb.
        clock = time.perf_counter if actors else time.process_time
        seconds: dict[str, list[float]] = {name: [] for name in candidates}
        for _ in tqdm(range(rounds), unit="round", disable=not sys.stderr.isatty()):
            for name, run in candidates.items():
                started = clock()
                run()
                seconds[name].append((clock() - started) / steps)

    def ratio(above: str, below: str) -> list[float]:
        return [a / b for a, b in zip(seconds[above], seconds[below], strict=True)]

    ratios = {name: statistics.median(ratio(name, BACKPROP)) for name in ("inline", COMPILED) if name in seconds}
    for name in ratios:
        times = sorted(ratio(name, BACKPROP))
        print(
            f"{'one process' if name == 'inline' else name}, one thread: "
            f"{statistics.median(seconds[name]) * 1000:.1f} ms a step, {rounds} rounds; "
            f"{ratios[name]:.2f} times a step of backpropagation ({times[0]:.2f} to {times[-1]:.2f})"
        )
    if actors:
        print(f"{'actors':>6}{'ms a step':>11}{'speed-up':>10}{'of processes':>14}{'share of it':>13}")
    rows = []
    for number in actors:
        layers, processes_ = f"layers {number}", f"processes {number}"
        speedups, best = ratio("inline", layers), ratio("processes 1", processes_)
        shares = [a / b for a, b in zip(speedups, best, strict=True)]
        row = {
            "actors": number,
            "seconds": statistics.median(seconds[layers]),
            "speedup": statistics.median(speedups),
            "speedup_of_processes": statistics.median(best),
            "share": statistics.median(shares),
        }
        rows.append(row)
        print(
            f"{number:>6}{row['seconds'] * 1000:>11.0f}{row['speedup']:>10.3f}"
            f"{row['speedup_of_processes']:>14.3f}{row['share']:>13.3f}"
        )
    return {
        "config": config.model_dump(mode="json"),
        "rounds": rounds,
        "steps": steps,
        "seconds": seconds,
        "ratio_to_backpropagation": ratios["inline"],
        **({"ratio_of_compiled": ratios[COMPILED]} if compiled else {}),
        "rows": rows,
    }


def _batch(config: Config) -> tuple[GLR, torch.Tensor, torch.Tensor]:
    """The network of a configuration, and the first batch of its training set."""
    keep_freed_memory()
    device = device_of(config.execution)
    dataset = data.load(config.data, config.code)
    net = network_of(config, dataset, device)
    net.train()
    return net, *dataset.train.to(device).batch(slice(0, config.training.batch_size))


def _trained(config: Config, *, compile: bool = False) -> tuple[GLR, Callable[[], None]]:
    """The network, and a function that makes one training step."""
    net, x, y = _batch(config)
    net.executor, net.compiles = Inline(1), compile
    optimizer, loss = optimizer_of(config.training, net), loss_of(config)
    net.compile_step(x, y, loss)

    def step() -> None:
        optimizer.zero_grad()
        net.estimate(x, y, loss)
        with reproducible():
            optimizer.step()

    return net, step


def _backpropagation(config: Config) -> Callable[[], None]:
    """A function that makes one step of plain backpropagation on the network without noise, on one thread."""
    from glr_dist.diagnostics.race import by_backprop

    config = by_backprop(config)
    net, x, y = _batch(config)
    model, optimizer, loss = net.model, optimizer_of(config.training, net), loss_of(config)

    def step() -> None:
        with reproducible():
            optimizer.zero_grad()
            torch.autograd.backward(loss(model(x), y).mean())
            optimizer.step()

    return step


class Independent:
    """Processes that each hold the step's shared passes and run some of its work items, one thread each."""

    def __init__(self, config: Config, number: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.pipes: list[Connection] = []
        self.processes = []
        for _ in range(number):
            here, there = spawn.Pipe()
            process = spawn.Process(target=_serve, args=(config, there), daemon=True)
            process.start()
            self.pipes.append(here)
            self.processes.append(process)

    def run(self, number: int, steps: int) -> None:
        """All items of `steps` steps by `number` of the processes."""
        for rank, pipe in enumerate(self.pipes[:number]):
            pipe.send((rank, number, steps))
        for pipe in self.pipes[:number]:
            pipe.recv()

    def __enter__(self) -> Independent:
        return self

    def __exit__(self, *_: object) -> None:
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            pipe.send(None)
            process.join()


def _serve(config: Config, pipe: Connection) -> None:
    """One of the processes: answers (rank, number, steps) when its share of the items is done."""
    net, x, y = _batch(config)
    estimator, step = net.estimator, net.bind(x, y, loss_of(config))
    with reproducible(), torch.no_grad(), net.network.hooked():
        work = []
        for shared_pass in range(estimator.passes(step)):
            tapes = {examples: estimator.tape(step, shared_pass, examples) for examples in step.example_blocks}
            work += [(item, tapes[item.example_block]) for item in estimator.items(step, shared_pass)]
        while (order := pipe.recv()) is not None:
            rank, number, steps = order
            for _ in range(steps):
                for item, tape in work[rank::number]:
                    estimator.partial(step, item, tape)
            pipe.send(None)


if __name__ == "__main__":
    sys.exit(main())
