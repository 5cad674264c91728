"""A search for parameters: Optuna over the spec's estimators and their spaces, on forward folds.

Each trial is a run below the training run. The first ones are the spec's own parameters, so that a
search finds nothing worse than them. Only who searches imports this.
"""

import json
import logging
import time
from collections.abc import Callable
from typing import Any

import optuna

from core.spec import ModelSpec
from core.training_spec import Estimator, Range, Search
from mlflow_server.tracking import Tracking

log = logging.getLogger(__name__)


def search(
    tracking: Tracking,
    spec: ModelSpec,
    budget: Search,
    run_id: str,
    loss_of: Callable[[Estimator], float],
) -> list[tuple[float, Estimator]]:
    """Try estimators until the budget is spent; return each trial's loss and estimator, in order.

    The spec's own parameters are tried whatever the budget. A repeated search goes on where a
    killed one was: the seed makes both ask for the same trials, whose runs have finished.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=spec.seed))
    for estimator in spec.estimators:
        own = {
            f"{estimator.name}.{key}": estimator.parameters[key]
            for key in estimator.space
        }
        study.enqueue_trial({"estimator": estimator.name, **own})
    losses = {
        run.key: run.metrics[f"fold_{spec.loss}"]
        for run in tracking.runs(spec.experiment, run_id)
        if run.status == "FINISHED"
    }
    trials: list[tuple[float, Estimator]] = []
    enqueued, end = len(spec.estimators), time.monotonic() + budget.minutes * 60
    while len(trials) < enqueued or (
        len(trials) < budget.trials and time.monotonic() < end
    ):
        trial = study.ask()
        estimator = _suggested(trial, spec)
        params = {"estimator": estimator.name, **estimator.parameters}
        name = f"trial {trial.number + 1} {estimator.name}"
        key = f"{run_id} {name} {json.dumps(params, sort_keys=True)}"
        if key not in losses:
            nested = tracking.start_or_find_run(spec.experiment, key, name, {}, run_id)
            with tracking.on_record(nested):
                losses[key] = loss_of(estimator)
            tracking.log(
                nested, metrics={f"fold_{spec.loss}": losses[key]}, params=params
            )
            tracking.finish(nested, "FINISHED")
        study.tell(trial, losses[key])
        trials.append((losses[key], estimator))
        log.info("%s: %.4f  %s", name, losses[key], trial.params)
    return trials


def _suggested(trial: optuna.Trial, spec: ModelSpec) -> Estimator:
    estimators = {estimator.name: estimator for estimator in spec.estimators}
    own = estimators[trial.suggest_categorical("estimator", list(estimators))]
    tried = {
        key: _value(trial, f"{own.name}.{key}", each) for key, each in own.space.items()
    }
    return own.model_copy(update={"parameters": own.parameters | tried})


def _value(trial: optuna.Trial, name: str, bounds: Range) -> Any:
    if isinstance(bounds.low, int) and isinstance(bounds.high, int):
        return trial.suggest_int(name, bounds.low, bounds.high, log=bounds.log)
    return trial.suggest_float(name, bounds.low, bounds.high, log=bounds.log)
