"""The result of `glr-dist plan`, as tables and as a picture."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from glr_dist.execution.predict import Hardware, Load, Prediction
from glr_dist.figures import figure_of

METHODS = ("GLR, layers", "backprop, data-parallel", "backprop, pipeline")


@dataclass(frozen=True)
class Kind:
    """The work items of one kind; `site` is None if an item serves all sites.

    Seconds are those of one item; `measured` is None if measuring would take too long.
    """

    site: str | None
    items: int
    directions: int
    examples: int
    predicted: float
    measured: float | None
    bytes_back: int


@dataclass(frozen=True)
class Driver:
    """Measured seconds of the driver's own part of a step."""

    shared_passes: float
    parameter_gradients: float
    optimizer: float

    @property
    def seconds(self) -> float:
        """Sum of the parts."""
        return self.shared_passes + self.parameter_gradients + self.optimizer


@dataclass(frozen=True)
class StepPlan:
    """Cost of one step, measured here and predicted elsewhere; `str` gives the tables.

    Attributes:
        title: the estimator and the batch.
        kinds: the work items.
        driver: the driver's own part.
        load: work and traffic of the step, measured on this machine.
        state_bytes, tape_bytes: bytes sent once per step, and bytes of the tapes of all shared passes.
        inline: measured seconds of a whole step on one thread; None if measuring would take too long.
        hardware, actors: assumptions about the actors, and the predicted step on each number of them.
        gpu, simulation: assumptions about the GPUs, and the simulated step of each method on each number of them.
    """

    title: str
    kinds: tuple[Kind, ...]
    driver: Driver
    load: Load
    state_bytes: int
    tape_bytes: int
    inline: float | None
    hardware: Hardware
    actors: tuple[Prediction, ...]
    gpu: Hardware
    simulation: dict[str, tuple[Prediction, ...]]

    def __str__(self) -> str:
        return "\n".join([*self._items(), "", *self._on_actors(), "", *self._on_gpus()])

    def _items(self) -> Iterator[str]:
        yield self.title
        yield f"{'site':<12}{'items':>6}{'directions':>12}{'examples':>10}" + (
            f"{'predicted ms':>14}{'measured ms':>13}{'back':>12}"
        )
        for kind in self.kinds:
            yield (
                f"{kind.site or 'all':<12}{kind.items:>6}{kind.directions:>12}{kind.examples:>10}"
                f"{1000 * kind.predicted:>14.2f}{_ms(kind.measured):>13}{_bytes(kind.bytes_back):>12}"
            )
        alone, whole = self.driver, self.load.inline()
        yield (
            f"driver {1000 * alone.seconds:.2f} ms: shared passes {1000 * alone.shared_passes:.2f}, parameter "
            f"gradients {1000 * alone.parameter_gradients:.2f}, optimizer {1000 * alone.optimizer:.2f}"
        )
        yield (
            f"inline, one thread: {1000 * whole:.1f} ms, of which the driver {alone.seconds / whole:.1%}; "
            f"a whole step, measured: {_ms(self.inline)} ms"
        )
        yield (
            f"sent in a step: state and batch {_bytes(self.state_bytes)}, tapes {_bytes(self.tape_bytes)}; "
            f"items return {_bytes(self.load.back)}"
        )

    def _on_actors(self) -> Iterator[str]:
        m = self.hardware
        yield "Ray actors, PREDICTED from the items above, each on a core like this one, the driver on another;"
        yield (
            f"assumed: {1000 * m.step:g} ms per step, {1000 * m.call:g} ms per call of at least "
            f"{1000 * m.least_call:g} ms of work, {1000 * m.result:g} ms of the driver per result, "
            f"{m.memory / 1e9:g} GB/s in memory"
        )
        yield f"{'actors':>8}{'with work':>11}{'step ms':>12}{'speed-up':>10}{'waiting':>9}"
        for p in self.actors:
            yield (
                f"{p.gpus:>8}{p.used:>11}{1000 * p.seconds:>12.4g}"
                f"{self.load.inline() / p.seconds:>9.2f}x{p.waiting:>9.0%}"
            )

    def _on_gpus(self) -> Iterator[str]:
        yield "GPUs, SIMULATED by a FLOP model; no figure here is measured;"
        yield _assumed(self.gpu)
        yield (
            "GLR: many more FLOPs per step, without a backward pass or a derivative; the driver runs the shared passes "
            "and collects over one link,\nno two phases overlap, orthogonal frames are made on CPUs"
        )
        yield (
            "backpropagation: 3 forward passes; data-parallel: at least one example per GPU, ring all-reduce during "
            "the backward pass;\npipeline: equal stages, at most one per site, the best number of micro-batches"
        )
        yield "wait: idle share of all GPUs' time; rounds: messages that wait for one another"
        yield " " * 6 + "".join(f"{method:>33}" for method in METHODS)
        yield f"{'GPUs':>6}" + f"{'ms':>10}{'sent':>10}{'wait':>6}{'rounds':>7}" * len(METHODS)
        for row in zip(*(self.simulation[method] for method in METHODS), strict=True):
            yield f"{row[0].gpus:>6}" + "".join(
                f"{1000 * p.seconds:>10.3g}{_bytes(p.sent):>10}{p.waiting:>6.0%}{p.rounds:>7}" for p in row
            )


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.2f}"


def _assumed(gpu: Hardware) -> str:
    return (
        f"assumed: {gpu.rate / 1e12:g} TFLOP/s per GPU (--gpu-tflops), {gpu.bandwidth / 1e9:g} GB/s (--bandwidth) and "
        f"{1e6 * gpu.latency:g} µs (--latency) per link,\n{1000 * gpu.block:g} ms of kernel launches per pass; "
        "Ray as measured on CPUs"
    )


def _bytes(count: float) -> str:
    """Formats a number of bytes in the largest unit in which it is at least 1."""
    power = min(4, int(math.log10(count) // 3)) if count >= 1 else 0
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def plan_figure(plan: StepPlan) -> Any:
    """Returns a figure of step time, waiting and bytes against the number of GPUs, one line per method."""
    figure = figure_of(14, 5)
    times, waits, sent = figure.subplots(1, 3)
    for index, (method, rows) in enumerate(plan.simulation.items()):
        gpus = [row.gpus for row in rows]
        look = {"marker": "o", "markersize": 4, "color": f"C{index}", "label": method}
        times.plot(gpus, [1000 * row.seconds for row in rows], **look)
        waits.plot(gpus, [100 * row.waiting for row in rows], **look)
        sent.plot(gpus, [row.sent / 1e6 if row.sent else math.nan for row in rows], **look)
    times.set(ylabel="step time, ms", yscale="log", title="step time")
    waits.set(ylabel="share of GPU time, %", ylim=(-3, 103), title="GPUs waiting")
    sent.set(ylabel="MB a step, all links", yscale="log", title="bytes sent")
    ticks = [row.gpus for row in plan.actors]
    for axes in (times, waits, sent):
        axes.set(xlabel="GPUs", xscale="log")
        axes.set_xticks(ticks, [str(tick) for tick in ticks], rotation=45)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.legend(*times.get_legend_handles_labels(), loc="outside lower center", ncols=len(plan.simulation))
    figure.suptitle(f"SIMULATED, not measured: one step of {plan.title}\n{_assumed(plan.gpu)}", fontsize=10)
    return figure
