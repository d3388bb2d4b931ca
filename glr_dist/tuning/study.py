"""Which points are tried: an Optuna study that is rebuilt from the trials' records. Needs no Ray.

The point of trial k depends on the search's seed, on k, and, with `optuna`, on the outcomes that are known by then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from glr_dist.streams import Key, Role
from glr_dist.tuning.objectives import direction
from glr_dist.tuning.record import Record
from glr_dist.tuning.settings import Tune
from glr_dist.tuning.space import Range, grid_of, present

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

_FIRST = 10  # trials at the most that TPE draws at random before it has a model


class Study:
    """Suggests points and learns what became of them.

    Args:
        tune: the search.
        start: the resolved configuration that it starts from: the first point, where the space has it.
        records: of the trials that there are.
    """

    def __init__(self, tune: Tune, start: Mapping[str, Any], records: Sequence[Record] = ()) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.tune = tune
        self.optuna = optuna.create_study(directions=[direction(name) for name in tune.objectives])
        self._distributions = {field: _distribution(allowed) for field, allowed in tune.space.items()}
        self._start = None if tune.algorithm == "grid" else present(start, tune.space)
        self._open: dict[int, optuna.Trial] = {}
        for record in records:
            if record.done:
                self._ask(record.number, record.point)
                self.tell(record)

    def suggest(self, number: int) -> dict[str, Any]:
        """The point of a new trial."""
        if self.tune.algorithm == "grid":
            return self._ask(number, grid_of(self.tune.space)[number])
        return self._ask(number, self._start if number == 0 else None)

    def again(self, record: Record) -> None:
        """That a trial which was interrupted goes on."""
        self._ask(record.number, record.point)

    def tell(self, record: Record) -> None:
        """What became of a trial."""
        from optuna.trial import TrialState

        trial, known = self._open.pop(record.number), record.metrics
        if record.status == "finished":
            self.optuna.tell(trial, [known[name] for name in self.tune.objectives])
        elif record.status == "stopped" and len(self.tune.objectives) == 1 and self.tune.watched in known:
            trial.report(known[self.tune.watched], record.epochs)
            self.optuna.tell(trial, state=TrialState.PRUNED)
        else:
            self.optuna.tell(trial, state=TrialState.FAIL)

    def importances(self, objective: int) -> dict[str, float]:
        """Each field's share of the variance of an objective (fANOVA: Hutter, Hoos, Leyton-Brown, ICML 2014)."""
        from optuna.importance import FanovaImportanceEvaluator, get_param_importances

        return get_param_importances(
            self.optuna,
            evaluator=FanovaImportanceEvaluator(seed=self._seed(0)),
            target=lambda trial: trial.values[objective],
        )

    def _ask(self, number: int, point: Mapping[str, Any] | None) -> dict[str, Any]:
        self.optuna.sampler = self._sampler(number)
        if point is not None:
            parameters = {field: _index(allowed, point[field]) for field, allowed in self.tune.space.items()}
            self.optuna.enqueue_trial(parameters)
        trial = self._open[number] = self.optuna.ask(self._distributions)
        return {field: _value(allowed, trial.params[field]) for field, allowed in self.tune.space.items()}

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        from optuna.samplers import RandomSampler, TPESampler

        if self.tune.algorithm != "optuna":
            return RandomSampler(seed=self._seed(number))
        first = min(_FIRST, max(2, self.tune.number // 4))
        return TPESampler(seed=self._seed(number), n_startup_trials=first)

    def _seed(self, number: int) -> int:
        return int.from_bytes(Key(self.tune.seed, step=number, role=Role.SEARCH).digest(4), "little")


def _distribution(allowed: Range) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    ends = allowed.ends()
    if allowed.listed is not None:
        return CategoricalDistribution(range(len(ends)))  # Optuna takes no lists as values
    if allowed.kind == "randint":
        return IntDistribution(*ends)
    low, high = ends
    return FloatDistribution(low, high, log=allowed.kind == "loguniform")


def _index(allowed: Range, value: Any) -> Any:
    return value if allowed.listed is None else allowed.listed.index(value)


def _value(allowed: Range, parameter: Any) -> Any:
    return parameter if allowed.listed is None else allowed.listed[parameter]
