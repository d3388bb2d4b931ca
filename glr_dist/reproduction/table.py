"""The table of a reproduction in Markdown, and the same as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from glr_dist.reproduction.recipe import PAPER, QUICK_IMAGES, Plan
from glr_dist.reproduction.results import CLEAN, ModelResult, SeedResult, references, same_input_noise
from glr_dist.reproduction.sweep import label
from glr_dist.robustness.page import table
from glr_dist.robustness.published import fgsm_eps

REHEARSAL = f"not the reproduction: one seed or few, a tenth of the epochs, {QUICK_IMAGES:,} test images (--quick)"
_NEAR = 2.0  # points from a published figure that count as near it


def conditions_of(models: Sequence[ModelResult]) -> list[str]:
    """Returns the columns of the table in order."""
    return list(dict.fromkeys(name for model in models for seed in model.seeds for name in seed.final))


def lines_of(plan: Plan, models: Sequence[ModelResult], failed: Mapping[str, str], missing: int) -> Iterator[str]:
    """Yields the lines of the table.

    Args:
        plan: the reproduction.
        models: its results.
        failed: reasons by the name of the run.
        missing: number of runs that are not finished.
    """
    yield f"# Reproduction: {plan.data}{'' if plan.models == PAPER else f', {plan.models} models'}"
    yield ""
    if plan.over:
        yield f"Each model with {plan.over.setting} = {', '.join(label(value) for value in plan.over.values)}."
        yield ""
    if plan.quick:
        yield f"**This is {REHEARSAL}.**"
        yield ""
    if missing:
        yield f"**{missing} runs are not finished.**"
        yield ""
    conditions = conditions_of(models)
    eps = fgsm_eps({"data": {"name": plan.data}})
    yield f"Accuracy in % on test images{_over_seeds(models)}. FGSM and PGD: L∞, ε = {eps:g}; a corruption's"
    yield "value is the mean of severities 1 to 5. ✓: at least the published figure; (✓): so too, but with a"
    yield f"clean accuracy more than {_NEAR:g} points below the published one, which makes robustness easier."
    yield ""
    yield from table(["", *conditions], [row for model in models for row in _rows(model, models, conditions)])
    yield ""
    yield from _counts(models, conditions)
    if any(_best(model) for model in models):
        yield "Best of the seeds: the one with the highest accuracy on validation images. The published figures are"
        yield "those of single networks."
        yield ""
    if any(same_input_noise(model, models) for model in models):
        yield "BP with the same input noise: backpropagation of the same seeds with the same `noise.input`, and in"
        yield "brackets what the model gains over it."
        yield ""
    if references(models, ""):
        yield "BP at equal clean accuracy: backpropagation of the same seed, at the point of its training where its"
        yield "clean accuracy passes that of the model, and in brackets what the model gains over it. Both are"
        yield f"measured on the first {plan.curve_suite.examples:,} test images while the runs train; – if it does not."
        yield ""
    if any("adaptive" in condition for condition in conditions):
        yield "A transfer attack does not know the network. Its figures do not show that a network is robust; the"
        yield "adaptive attack knows the network."
        yield ""
    for name, reason in failed.items():
        yield f"{name} failed: {reason}"
        yield ""


def _over_seeds(models: Sequence[ModelResult]) -> str:
    """Returns over how many seeds the means are taken."""
    counts = {model.name: len(model.seeds) for model in models}
    most = max(counts.values(), default=0)
    if most < 2:
        return ""
    if len(set(counts.values())) == 1:
        return f", mean ± standard deviation over {most} seeds"
    return f", mean ± standard deviation over seeds ({', '.join(f'{name}: {n}' for name, n in counts.items())})"


def _rows(model: ModelResult, models: Sequence[ModelResult], conditions: Sequence[str]) -> Iterator[list[str]]:
    yield [f"**{model.name}**", *(_own(model, condition) for condition in conditions)]
    if best := _best(model):
        cells = (f"{100 * best.final[each]:.2f}" if each in best.final else "–" for each in conditions)
        yield [f"… best of {len(model.seeds)} seeds", *cells]
    if model.published:
        published = (model.published.get(condition) for condition in conditions)
        yield [f"… published ({model.title})", *("" if value is None else f"{100 * value:.2f}" for value in published)]
    if other := same_input_noise(model, models):
        yield ["… BP with the same input noise", *(_beside(model.gain(other, each)) for each in conditions)]
    if not model.reference and references(models, model.value):
        yield ["… BP at equal clean accuracy", *(_equal(model, condition) for condition in conditions)]


def _own(model: ModelResult, condition: str) -> str:
    mean, deviation = model.mean(condition), model.deviation(condition)
    if mean is None:
        return "–"
    text = f"{100 * mean:.2f}" + ("" if deviation is None else f" ± {100 * deviation:.2f}")
    if not reaches(model, condition):
        return text
    return f"{text} ✓" if as_accurate(model) else f"{text} (✓)"


def _equal(model: ModelResult, condition: str) -> str:
    if condition not in model.seeds[0].curve[-1]:
        return ""
    found = model.equal(condition)
    if condition == CLEAN and found:
        return f"{100 * found[0]:.2f}"  # equal to the model's own
    return _beside(found)


def _beside(found: tuple[float, float] | None) -> str:
    """Returns the accuracy of another model, and in brackets what a model gains over it."""
    return f"{100 * found[0]:.2f} ({100 * found[1]:+.2f})" if found else "–"


def _best(model: ModelResult) -> SeedResult | None:
    """Returns the best seed of a likelihood ratio model, since the published figures are those of single networks."""
    return model.best if model.published and model.title.startswith("LR") else None


def reaches(model: ModelResult, condition: str) -> bool:
    """Returns whether the mean of a model is at least the published figure, both in % with two digits."""
    mean, published = model.mean(condition), model.published.get(condition)
    return mean is not None and published is not None and round(100 * mean, 2) >= round(100 * published, 2)


def as_accurate(model: ModelResult) -> bool:
    """Returns whether the clean accuracy of a model is near the published one, or above it."""
    mean, published = model.mean(CLEAN), model.published.get(CLEAN)
    return mean is not None and published is not None and round(100 * (published - mean), 2) <= _NEAR


def _counts(models: Sequence[ModelResult], conditions: Sequence[str]) -> Iterator[str]:
    """Yields how many published figures are reached, of likelihood ratio models and of backpropagation."""
    for name, kind in (("likelihood ratio", "LR"), ("backpropagation", "BP")):
        cells = [
            (model, condition)
            for model in models
            for condition in conditions
            if model.title.startswith(kind) and condition in model.published and model.mean(condition) is not None
        ]
        if cells:
            reached = sum(reaches(model, condition) and as_accurate(model) for model, condition in cells)
            near = sum(_near(model.mean(condition), model, condition) for model, condition in cells)
            bests = [(best, model, condition) for model, condition in cells if (best := _best(model))]
            of_best = sum(_near(best.final.get(condition), model, condition) for best, model, condition in bests)
            yield (
                f"{name[0].upper()}{name[1:]}: ✓ in {reached} of {len(cells)} cells; "
                f"within {_NEAR:g} points of the published figure in {near}"
                + (f", with the best seeds in {of_best}." if bests else ".")
            )
            yield ""


def _near(accuracy: float | None, model: ModelResult, condition: str) -> bool:
    return accuracy is not None and round(100 * abs(accuracy - model.published[condition]), 2) <= _NEAR


def json_of(plan: Plan, models: Sequence[ModelResult], failed: Mapping[str, str]) -> dict[str, Any]:
    """Returns all results as JSON values, with accuracies as fractions."""
    conditions = conditions_of(models)
    found = [
        {
            **asdict(model),
            "reference": model.reference,
            "mean": {condition: model.mean(condition) for condition in conditions},
            "deviation": {condition: model.deviation(condition) for condition in conditions},
            "best": best.seed if (best := model.best) else None,
        }
        for model in models
    ]
    return {
        **plan.described(),
        "seeds": plan.seeds,
        "seeds_of": dict(plan.seeds_of),
        "models": found,
        "failed": dict(failed),
    }
