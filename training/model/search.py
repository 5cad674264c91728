"""A search for parameters: Optuna over the spec's estimators and their spaces, on forward folds.

Each trial is a run below the training run. The first ones are the spec's own parameters, so that a
search finds nothing worse than them. Only a spec with [search] imports this module.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable
from typing import Any

import optuna

from core.spec import ModelSpec
from core.spec.training import Estimator, Search
from mlflow_server.api.tracking import Tracking

log = logging.getLogger(__name__)


def search(
    tracking: Tracking,
    spec: ModelSpec,
    budget: Search,
    run_id: str,
    metrics_of: Callable[[Estimator], dict[str, float]],
) -> list[tuple[dict[str, float], Estimator]]:
    """Try estimators until the budget is spent; return each trial's metrics and estimator, in order.

    The spec's own parameters are tried with any budget. The seed makes a repeated search ask for
    the same trials, whose runs it finds.
    """
    trials = []

    def objective(trial: optuna.Trial) -> float:
        """Return the loss of a trial's estimator, written to a run of its own."""
        estimator = _suggested(trial, spec)
        name = f"trial {trial.number + 1} {estimator.name}"
        params = {"estimator": estimator.name, **estimator.parameters}
        # Hashed: a filter of MLflow takes no text with both kinds of quotes.
        content = json.dumps(params, sort_keys=True).encode()
        key = f"{run_id} {name} {hashlib.sha256(content).hexdigest()}"
        trial_run = tracking.start_or_find_run(spec.experiment, key, name, {}, run_id)
        with tracking.on_record(trial_run):
            metrics = metrics_of(estimator)
        figures = {f"fold/{name}": value for name, value in metrics.items()}
        tracking.log(trial_run, metrics=figures, params=params)
        tracking.end(trial_run)
        loss = metrics[spec.loss]
        log.info("%s: %.4f  %s", name, loss, estimator.parameters)
        trials.append((metrics, estimator))
        return loss

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=spec.seed))
    for estimator in spec.estimators:
        first_trial: dict[str, Any] = {"estimator": estimator.name}
        for key in estimator.space:
            first_trial[f"{estimator.name}.{key}"] = estimator.parameters[key]
        study.enqueue_trial(first_trial)
    end = time.monotonic() + budget.minutes * 60
    study.optimize(objective, n_trials=len(spec.estimators))
    remaining_trials = budget.trials - len(trials)
    remaining_seconds = end - time.monotonic()
    if remaining_trials > 0 and remaining_seconds > 0:
        study.optimize(objective, n_trials=remaining_trials, timeout=remaining_seconds)
    return trials


def _suggested(trial: optuna.Trial, spec: ModelSpec) -> Estimator:
    estimators = {estimator.name: estimator for estimator in spec.estimators}
    estimator = estimators[trial.suggest_categorical("estimator", list(estimators))]
    parameters = dict(estimator.parameters)
    for key, bounds in estimator.space.items():
        suggest = trial.suggest_float
        if isinstance(bounds.low, int) and isinstance(bounds.high, int):
            suggest = trial.suggest_int
        name = f"{estimator.name}.{key}"
        parameters[key] = suggest(name, bounds.low, bounds.high, log=bounds.log)
    return estimator.model_copy(update={"parameters": parameters})
