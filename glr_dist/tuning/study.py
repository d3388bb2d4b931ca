"""Points to try, chosen by an Optuna study that is rebuilt from the trials' records. Needs no Ray.

The point of trial k depends on the search's seed, on k, and, with `optuna`, on the results known at that time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from glr_dist.streams import Key, Role
from glr_dist.tuning.objectives import direction
from glr_dist.tuning.points import grid_point, point_of
from glr_dist.tuning.ranges import Range
from glr_dist.tuning.search_config import Tune
from glr_dist.tuning.trial_record import TrialRecord

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

_MAX_STARTUP = 10  # maximum number of random trials before TPE fits a model


class Study:
    """Suggests points and learns from the results of trials.

    Args:
        tune: the section `tune` of the search.
        start: the resolved configuration that the search starts from; it is the first point if it lies in the space.
        records: records of the existing trials.
    """

    def __init__(self, tune: Tune, start: Mapping[str, Any], records: Sequence[TrialRecord] = ()) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.tune = tune
        self.optuna = optuna.create_study(directions=[direction(name) for name in tune.objectives])
        self._distributions = {field: _distribution(allowed) for field, allowed in tune.space.items()}
        self._start = None if tune.algorithm == "grid" else point_of(start, tune.space)
        self._running: dict[int, optuna.Trial] = {}
        for record in records:
            if record.done:
                self._ask(record.number, record.point)
                self.tell(record)

    def suggest(self, number: int) -> dict[str, Any]:
        """Returns the point of a new trial."""
        if self.tune.algorithm == "grid":
            return self._ask(number, grid_point(self.tune.space, number))
        return self._ask(number, self._start if number == 0 else None)

    def resume(self, record: TrialRecord) -> None:
        """Registers an interrupted trial that runs again."""
        self._ask(record.number, record.point)

    def tell(self, record: TrialRecord) -> None:
        """Registers the result of a trial."""
        from optuna.trial import TrialState

        trial, known = self._running.pop(record.number), record.metrics
        if record.status == "finished":
            self.optuna.tell(trial, [known[name] for name in self.tune.objectives])
        elif record.status == "stopped" and len(self.tune.objectives) == 1 and self.tune.watched in known:
            trial.report(known[self.tune.watched], record.epochs)
            self.optuna.tell(trial, state=TrialState.PRUNED)
        else:
            self.optuna.tell(trial, state=TrialState.FAIL)

    def importances(self, objective: int) -> dict[str, float]:
        """Returns each field's share of the variance of an objective; zeros if all trials have the same value.

        Reference: fANOVA, Hutter, Hoos and Leyton-Brown, ICML 2014.
        """
        from optuna.importance import FanovaImportanceEvaluator, get_param_importances

        try:
            return get_param_importances(
                self.optuna,
                evaluator=FanovaImportanceEvaluator(seed=self._seed(0)),
                target=lambda trial: trial.values[objective],
            )
        except RuntimeError:  # the trees found no variance
            return dict.fromkeys(self.tune.space, 0.0)

    def _ask(self, number: int, point: Mapping[str, Any] | None) -> dict[str, Any]:
        self.optuna.sampler = self._sampler(number)
        if point is not None:
            parameters = {field: _parameter(allowed, point[field]) for field, allowed in self.tune.space.items()}
            self.optuna.enqueue_trial(parameters)
        trial = self._running[number] = self.optuna.ask(self._distributions)
        return {field: _value(allowed, trial.params[field]) for field, allowed in self.tune.space.items()}

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        from optuna.samplers import RandomSampler, TPESampler

        if self.tune.algorithm != "optuna":
            return RandomSampler(seed=self._seed(number))
        startup = min(_MAX_STARTUP, max(2, self.tune.number // 4))
        return TPESampler(seed=self._seed(number), n_startup_trials=startup)

    def _seed(self, number: int) -> int:
        return int.from_bytes(Key(self.tune.seed, step=number, role=Role.SEARCH).digest(4), "little")


def _distribution(allowed: Range) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    ends = allowed.ends()
    if allowed.listed is not None:
        return CategoricalDistribution(range(len(ends)))  # Optuna's categories cannot be lists
    if allowed.kind == "randint":
        return IntDistribution(*ends)
    low, high = ends
    return FloatDistribution(low, high, log=allowed.kind == "loguniform")


def _parameter(allowed: Range, value: Any) -> Any:
    """Returns the value of a field as Optuna's parameter."""
    return value if allowed.listed is None else allowed.listed.index(value)


def _value(allowed: Range, parameter: Any) -> Any:
    """Returns the value of a field from Optuna's parameter."""
    return parameter if allowed.listed is None else allowed.listed[parameter]
