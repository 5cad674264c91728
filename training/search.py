"""A search for parameters: Optuna over the spec's estimators and their spaces, on forward folds.

Each trial is a run below the training run. The first ones are the spec's own parameters, so that a
search finds nothing worse than them. Only who searches imports this.
"""

from __future__ import annotations

import json
import logging
import time
from typing import TYPE_CHECKING, Any

import optuna

from stack.errors import SettingsError
from training.onnx_export import ESTIMATORS

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlflow_server.tracking import Tracking
    from stack.spec import Estimator, ModelSpec, Range, Search

log = logging.getLogger(__name__)


def check_spaces(spec: ModelSpec) -> None:
    """Look whether every parameter to be searched is one of its estimator, and its bounds too.

    Raises:
        SettingsError: one line with file, key and what scikit-learn takes.

    """
    for at, estimator in enumerate(spec.estimators):
        made = ESTIMATORS[spec.task][estimator.type]()
        for key, bounds in estimator.space.items():
            where = f"{spec.name}.toml: estimators.{at}.space.{key}:"
            if key not in (known := made.get_params()):
                raise SettingsError(f"{where} expected one of {', '.join(known)}")
            for value in (bounds.low, bounds.high):
                try:
                    made.set_params(**{key: value})._validate_params()  # noqa: SLF001  (no public way)
                except ValueError as exc:
                    raise SettingsError(f"{where} {exc}") from exc


def search(
    tracking: Tracking,
    spec: ModelSpec,
    budget: Search,
    run_id: str,
    loss_of: Callable[[Estimator], float],
) -> list[tuple[float, Estimator]]:
    """Try estimators until the budget is spent; return each trial's loss and estimator, in order.

    The spec's own parameters are tried whatever the budget.

    A trial's run is found again by its number and parameters, so a repeated search goes on where
    a killed one was: the seed makes both ask for the same.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    named = {estimator.name: estimator for estimator in spec.estimators}
    loss_name = f"fold_{spec.loss}"
    done = {run.key: run for run in tracking.runs(spec.experiment, run_id)}
    trials: list[tuple[float, Estimator]] = []

    def attempt(trial: optuna.Trial) -> float:
        own = named[trial.suggest_categorical("estimator", list(named))]
        tried = {key: _suggest(trial, own.name, key, own.space[key]) for key in own.space}
        estimator = own.model_copy(update={"parameters": own.parameters | tried})
        values = {"estimator": own.name, **estimator.parameters}
        name = f"trial {trial.number + 1} {own.name}"
        key = f"{run_id} {name} {json.dumps(values, sort_keys=True)}"
        if key in done and done[key].status == "FINISHED":
            loss = done[key].metrics[loss_name]
        else:
            nested = tracking.start_or_find_run(spec.experiment, key, name, {}, run_id)
            with tracking.on_record(nested):
                loss = loss_of(estimator)
            tracking.log(nested, metrics={loss_name: loss}, params=values)
            tracking.finish(nested, "FINISHED")
        trials.append((loss, estimator))
        log.info("%s: %.4f  %s", name, loss, tried or "its own parameters")
        return loss

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=spec.seed))
    for each in spec.estimators:
        first = {f"{each.name}.{key}": each.parameters[key] for key in each.space}
        study.enqueue_trial({"estimator": each.name, **first})
    began, own_ones = time.monotonic(), len(spec.estimators)
    study.optimize(attempt, n_trials=own_ones)
    left = budget.minutes * 60 - (time.monotonic() - began)
    if budget.trials > own_ones and left > 0:
        study.optimize(attempt, n_trials=budget.trials - own_ones, timeout=left)
    return trials


def _suggest(trial: optuna.Trial, estimator: str, key: str, bounds: Range) -> Any:
    name = f"{estimator}.{key}"
    if isinstance(bounds.low, int) and isinstance(bounds.high, int):
        return trial.suggest_int(name, bounds.low, bounds.high, log=bounds.log)
    return trial.suggest_float(name, bounds.low, bounds.high, log=bounds.log)
