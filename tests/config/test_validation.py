"""Combinations that would be biased or have no effect are refused, their neighbours are not."""

from __future__ import annotations

import pytest

from glr_dist.config import Config, build
from glr_dist.errors import ConfigError

REFUSED = [
    # estimator, noise, loss, the field at fault, the reason
    ({"copies": 7}, {}, None, "estimator.copies", "odd"),
    ({"copies": {"1": 8, "*": 5}}, {}, None, "estimator.copies", "5 is odd"),
    ({"sampler": "orthogonal"}, {"law": "laplace"}, None, "estimator.sampler", "gaussian"),
    ({"sampler": "orthogonal"}, {"law": "logistic"}, None, "estimator.sampler", "gaussian"),
    ({"sampler": "sobol", "baseline": "leave_one_out"}, {}, None, "estimator.baseline", "biased"),
    (
        {"sampler": "orthogonal", "baseline": "leave_one_out"},
        {"learn": "unit"},
        None,
        "estimator.baseline",
        "biased for unit scales",
    ),
    ({"baseline": "leave_one_out", "copies": 2}, {}, None, "estimator.copies", "at least 4"),
    (
        {"baseline": "leave_one_out", "copies": 1, "antithetic": False, "sampler": "iid"},
        {},
        None,
        "estimator.copies",
        "at least 2",
    ),
    ({"baseline": "leave_one_out", "copies": {"1": 8, "*": 2}}, {}, None, "estimator.copies", "at least 4"),
    ({"name": "joint", "copies": {"*": 8}}, {}, None, "estimator.copies", "all sites at once"),
    ({"name": "joint", "passes": {"*": 1}}, {}, None, "estimator.passes", "all sites at once"),
    ({"name": "joint", "passes": 2}, {}, None, "estimator.passes", "only 1"),
    ({"name": "layerwise", "passes": 2}, {}, None, "estimator.passes", "only 1"),
    ({"name": "layerwise", "passes": {"1": 1, "*": 2}}, {}, None, "estimator.passes", "only 1"),
    ({"head": "derivative"}, {}, "zero_one", "estimator.head", "not have a derivative"),
    ({"name": "joint", "redraw": {"*": "flips"}}, {}, None, "estimator.redraw", "only with 'conditional', not"),
    ({"name": "joint", "redraw": {"*": "column_space"}}, {}, None, "estimator.redraw", "not with 'joint'"),
    ({"redraw": {"0": "column_space", "*": "copies"}}, {"law": "laplace"}, None, "estimator.redraw", "gaussian law"),
    ({"name": "pathwise", "feedback": "biased"}, {}, None, "estimator.feedback", "does not redraw noise"),
    ({"name": "joint", "feedback": "control_variate"}, {}, None, "estimator.feedback", "not with 'joint'"),
    ({"feedback": "control_variate"}, {}, "zero_one", "estimator.feedback", "needs the derivative"),
    (
        {"name": "layerwise", "feedback": "control_variate", "head": "expected"},
        {},
        "zero_one",
        "estimator.feedback",
        "needs the derivative",
    ),
    ({"redraw": "column_space"}, {"learn": "site"}, None, "estimator.redraw", "needs the whole noise"),
    ({"copies": "auto"}, {}, None, "estimator.budget", "is missing"),
    ({"budget": 20}, {}, None, "estimator.budget", "without estimator.copies 'auto'"),
    ({"measure_every": 20}, {}, None, "estimator.measure_every", "without estimator.copies 'auto'"),
    ({"passes": "auto", "budget": 20}, {}, None, "estimator.passes", "needs estimator.copies 'auto'"),
    ({"copies": "auto", "budget": 9, "feedback": "biased"}, {}, None, "estimator.feedback", "'control_variate'"),
    ({"copies": "auto", "budget": 20, "name": "layerwise"}, {}, None, "estimator.copies", "only with 'conditional'"),
    ({"copies": "auto", "budget": 20, "sampler": "sobol"}, {}, None, "estimator.copies", "sobol set"),
    ({"copies": "auto", "budget": 20, "baseline": "leave_one_out"}, {}, None, "estimator.baseline", "use 'shared'"),
    ({"name": "pathwise", "copies": "auto", "budget": 20}, {}, None, "estimator.copies", "does not redraw noise"),
    ({"name": "pathwise", "passes": "auto"}, {}, None, "estimator.passes", "one number"),
    ({}, {"law": "none"}, None, "noise.law", "needs noise"),
    ({"name": "joint"}, {"law": "none"}, None, "noise.law", "needs noise"),
    ({"name": "pathwise", "copies": 8}, {}, None, "estimator.copies", "does not redraw noise"),
    ({"name": "pathwise", "antithetic": False}, {}, None, "estimator.antithetic", "does not redraw noise"),
    ({"name": "pathwise", "baseline": "none"}, {}, None, "estimator.baseline", "does not redraw noise"),
    ({"name": "pathwise", "head": "derivative"}, {}, None, "estimator.head", "does not redraw noise"),
    ({"name": "pathwise", "sampler": "sobol"}, {}, None, "estimator.sampler", "does not redraw noise"),
    ({"name": "pathwise", "passes": {"*": 2}}, {}, None, "estimator.passes", "one number"),
    ({"name": "pathwise", "passes": 2}, {"law": "none"}, None, "noise.law", "estimator.passes=1"),
    ({"name": "pathwise"}, {"law": "none", "learn": "site"}, None, "noise.law", "noise.learn=none"),
    ({"name": "pathwise"}, {}, "zero_one", "training.loss", "not have a derivative"),
]


@pytest.mark.parametrize(("estimator", "noise", "loss", "field", "reason"), REFUSED, ids=str)
def test_a_combination_that_would_be_biased_or_has_no_effect_is_refused(estimator, noise, loss, field, reason):
    values = {"estimator": estimator, "noise": noise, "training": {"loss": loss} if loss else {}}
    with pytest.raises(ConfigError) as caught:
        build(Config, values)
    message = str(caught.value)
    assert message.startswith(f"{field}: ")
    assert reason in message
    assert "\n" not in message


ALLOWED = [
    # the nearest allowed neighbours of what is refused: a check that refuses too much fails here
    ({"copies": 7, "antithetic": False}, {}, None),
    ({"sampler": "iid"}, {"law": "laplace"}, None),
    ({"sampler": "sobol"}, {"law": "logistic"}, None),
    ({"sampler": "orthogonal", "baseline": "leave_one_out"}, {"learn": "site"}, None),
    ({"sampler": "iid", "baseline": "leave_one_out"}, {"learn": "unit"}, None),
    ({"baseline": "leave_one_out", "copies": 4}, {}, None),
    ({"baseline": "leave_one_out", "copies": 2, "antithetic": False}, {}, None),
    ({"name": "layerwise", "copies": {"*": 8}, "passes": {"*": 1}}, {}, None),
    ({"passes": {"*": 8}}, {}, "zero_one"),
    ({"head": "derivative"}, {}, "cross_entropy"),
    ({"redraw": "column_space"}, {}, None),
    ({"feedback": "control_variate", "head": "expected"}, {}, "zero_one"),
    ({"name": "layerwise", "feedback": "control_variate"}, {"law": "laplace", "learn": "unit"}, "cross_entropy"),
    ({"name": "layerwise", "redraw": {"0": "column_space", "*": "auto"}}, {}, None),
    ({"redraw": {"*": "auto"}}, {"law": "laplace", "learn": "unit"}, None),
    ({"copies": "auto", "budget": 20, "measure_every": 20}, {}, None),
    ({"copies": "auto", "passes": {"*": 2}, "redraw": {"*": "auto"}, "budget": 20}, {"law": "laplace"}, None),
    ({"copies": "auto", "passes": "auto", "redraw": "flips", "budget": 0.5}, {}, None),
    ({"name": "pathwise"}, {"law": "none"}, "cross_entropy"),
    ({"name": "pathwise", "passes": 4, "sampler": "iid"}, {"learn": "unit"}, None),
]


@pytest.mark.parametrize(("estimator", "noise", "loss"), ALLOWED, ids=str)
def test_the_neighbours_of_what_is_refused_are_allowed(estimator, noise, loss):
    values = {"estimator": estimator, "noise": noise, "training": {"loss": loss} if loss else {}}
    resolved = build(Config, values)
    for key, value in estimator.items():
        assert getattr(resolved.estimator, key) == value
