"""Summary of a network: its sites, what a redraw of each costs, and how each parameter gets its gradient."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from glr_dist.estimators import Step
from glr_dist.nn.noisy_weights import Weights
from glr_dist.sites import Site

_SHOWN = 60  # characters of a list of parameters


@dataclass(frozen=True)
class SiteRow:
    """The sites that the calls of one module are.

    Attributes:
        name: name of the module.
        kind: its type.
        calls: number of its calls in a pass, each a site.
        units: D, logits per example of one call.
        suffix: mean share of the network's FLOPs that a redraw of one call runs again.
        copies, passes: K and M.
        redraw: how its noise is redrawn, with the number of dimensions of a column space.
        scale: least and greatest σ; None without noise.
        by_rule: parameters whose gradient is the layer's own rule, a product with its input.
        by_autograd: parameters whose gradient is a vector-Jacobian product inside the segment that ends here.
    """

    name: str
    kind: str
    calls: int
    units: int
    suffix: float
    copies: int
    passes: int
    redraw: str
    scale: tuple[float, float] | None
    by_rule: tuple[str, ...]
    by_autograd: tuple[str, ...]


@dataclass(frozen=True)
class Summary:
    """A network as an estimator sees it, site by site; `str` gives the table.

    Attributes:
        estimator: its name.
        rows: the sites, by module.
        trained, frozen: number of values of the trainable and of the other parameters.
        by_autograd: number of values of those whose gradient is autograd's inside one segment.
        flops: FLOPs of one example's forward pass.
        copies: noisy copies that a step evaluates, per example.
        forward_passes: cost of a step in forward passes of the batch.
    """

    estimator: str
    rows: tuple[SiteRow, ...]
    trained: int
    frozen: int
    by_autograd: int
    flops: float
    copies: int
    forward_passes: float

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        width = max([len("site"), *(len(row.name) for row in self.rows)])
        kind = max([len("type"), *(len(row.kind) for row in self.rows)])
        redraw = max([len("redraw"), *(len(row.redraw) for row in self.rows)])
        yield (
            f"{'site':<{width}}  {'type':<{kind}}  {'calls':>5}  {'D':>7}  {'suffix':>6}  {'K':>5}  {'M':>3}  "
            f"{'redraw':<{redraw}}  {'sigma':>11}  gradient of"
        )
        for row in self.rows:
            yield (
                f"{row.name:<{width}}  {row.kind:<{kind}}  {row.calls:>5}  {row.units:>7}  {row.suffix:>6.0%}  "
                f"{row.copies:>5}  {row.passes:>3}  {row.redraw:<{redraw}}  {_scale(row.scale):>11}  {_parameters(row)}"
            )
        if names := [row.name for row in self.rows if row.kind == Weights.__name__]:
            yield f"noise on the weights at {', '.join(names)}: J is the expected loss under perturbed weights there"
        yield (
            f"parameters: {self.trained:,} trained, of which {self.by_autograd:,} by autograd inside one segment; "
            f"{self.frozen:,} frozen"
        )
        yield (
            f"a step of {self.estimator}: {self.copies:,} noisy copies per example, {self.forward_passes:,.1f} "
            f"forward passes; one pass {self.flops:,.0f} FLOPs per example"
        )


def summary_of(step: Step, copies: int, forward_passes: float) -> Summary:
    """Returns the summary of a step's network.

    Args:
        step: the step, its network prepared.
        copies, forward_passes: the step's cost, as the estimator states it.
    """
    network = step.network
    modules = {module: name for name, module in network.candidates.items()}
    calls: dict[str, list[Site]] = {}
    for site in network.sites:
        calls.setdefault(modules[site.module], []).append(site)
    rows = tuple(_row(step, name, sites) for name, sites in calls.items())
    autograd = {name for row in rows for name in row.by_autograd}
    if step.options.name == "pathwise":
        autograd = set(network.parameters)
    return Summary(
        estimator=step.options.name,
        rows=rows,
        trained=sum(parameter.numel() for parameter in network.parameters.values()),
        frozen=sum(parameter.numel() for parameter in network.model.parameters() if not parameter.requires_grad),
        by_autograd=sum(network.parameters[name].numel() for name in autograd),
        flops=network.flops,
        copies=copies,
        forward_passes=forward_passes,
    )


def _row(step: Step, name: str, sites: list[Site]) -> SiteRow:
    first = sites[0]
    sigmas = [float(end) for site in sites if step.scales for end in step.scales[site.name].aminmax()]
    owned = dict.fromkeys(parameter for site in sites for parameter in site.owned)
    own = {parameter for site in sites if site.name in step.rules for parameter in site.owned}
    return SiteRow(
        name=name,
        kind=type(first.module).__name__,
        calls=len(sites),
        units=first.units,
        suffix=sum(site.suffix for site in sites) / len(sites),
        copies=step.copies[first.name],
        passes=step.passes[first.name],
        redraw=_redraw(step, first),
        scale=(min(sigmas), max(sigmas)) if sigmas else None,
        by_rule=tuple(parameter for parameter in owned if parameter in own),
        by_autograd=tuple(parameter for parameter in owned if parameter not in own),
    )


def _redraw(step: Step, site: Site) -> str:
    """Returns how the noise of a site is redrawn, "-" if it is not."""
    if step.options.name == "pathwise" or not step.copies[site.name]:
        return "-"
    if site.name in step.spaces:
        return f"column_space ({step.redrawn(site)})"
    if site.name in step.unit_wise:
        return step.unit_wise[site.name].name
    return "levels" if site.name in step.levels else "copies"


def _scale(scale: tuple[float, float] | None) -> str:
    if scale is None:
        return "-"
    least, greatest = (f"{end:.3g}" for end in scale)
    return least if least == greatest else f"{least}-{greatest}"


def _parameters(row: SiteRow) -> str:
    parts = [(row.by_rule, "by rule"), (row.by_autograd, "by autograd")]
    return "; ".join(f"{_listed(names)} {how}" for names, how in parts if names) or "no trained parameter"


def _listed(names: tuple[str, ...]) -> str:
    text = ", ".join(names)
    if len(text) <= _SHOWN:
        return text
    return f"{names[0]} … {names[-1]} ({len(names)})"
