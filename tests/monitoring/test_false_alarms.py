"""Windows of the reference itself are no alarm, and windows that were changed are one.

The reference is that of the churn model on the shipped orders: the newest matured snapshot, scored
by the first estimator of the spec. Windows are drawn from it with replacement, as the entities of
another day of the same population; every window is measured and judged by the monitor's functions.
`python -m pytest -s -m nightly tests/monitoring/test_false_alarms.py` prints the shares.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from core.spec import load_spec
from mlflow_server.served_model import rounded
from monitoring.checks.drift import compared
from monitoring.checks.performance import judge_performance, measured
from monitoring.checks.result import SCORE
from monitoring.decision import judge
from tests.conftest import AS_OF
from tests.training.conftest import ORDERS, history  # noqa: F401  (a fixture)
from training.frame import at, build_frame, features
from training.metrics import Scored
from training.onnx_export import exported, score
from training.train import fit_pipeline
from training.validate import plan_run

SPEC = load_spec("customer_churn_model")
SIZES, RARER = (200, 300, 500, 1_000, 5_000), 5
LIMIT = 0.01
"""Share of windows without a change that may be told as significant."""


@pytest.fixture(scope="module")
def rows(history):
    """Features and `score` of the newest snapshot that matured by AS_OF."""
    plan = plan_run(history, SPEC, ORDERS, AS_OF, 0)
    frame = build_frame(history, SPEC, ORDERS, [*plan.train, *plan.test], AS_OF, 0)
    pipeline = fit_pipeline(SPEC, SPEC.estimators[0], at(frame, plan.train))
    tested = features(SPEC, at(frame, plan.test))
    scores = score(exported(pipeline, SPEC), SPEC.features, tested)
    return tested.assign(**{SCORE: rounded(scores, SPEC.threshold)})


def moved(rows, column, share):
    """What moves `column` of a window by `share` of its standard deviation in `rows`."""

    def change(window, _chance):
        values = window[column] + share * rows[column].std()
        if pd.api.types.is_integer_dtype(rows[column]):
            values = values.round()
        return window.assign(
            **{column: values.clip(0, 1) if column == SCORE else values}
        )

    return change


def doubled(column, category):
    """What draws a window's rows again, those of `category` twice as often."""

    def change(window, chance):
        inside = (window[column] == category).to_numpy()
        share = min(2 * inside.mean(), 1.0)
        odds = np.where(inside, share / inside.sum(), (1 - share) / (~inside).sum())
        return window.iloc[chance.choice(len(window), len(window), p=odds / odds.sum())]

    return change


def bad(
    rows,
    size,
    windows=100,
    limits=SPEC.monitoring,
    change=lambda window, _chance: window,
):
    """Share of windows of `size` that are told as significant; the same windows each time."""
    verdicts = []
    for seed in range(windows):
        chance = np.random.default_rng([size, seed])
        window = change(rows.iloc[chance.integers(len(rows), size=size)], chance)
        verdicts.append(judge(compared(limits, rows, window)))
    return verdicts.count("bad") / windows


def outcomes(scores, size, chance, scrambled=0.0):
    """What comes true of `size` entities, as `scores` say; `scrambled` of them got another's."""
    true = chance.choice(scores, size)
    said = np.where(chance.random(size) < scrambled, chance.permutation(true), true)
    y = (chance.random(size) < true).astype(np.int64)
    return measured(
        "online", f"{size} outcomes", y, Scored(said, float(scores.mean())), SPEC
    )


def told_as_worse(scores, size, draws, scrambled=0.0):
    evaluated = outcomes(scores, len(scores), np.random.default_rng(0)).metrics
    chances = (np.random.default_rng([size, seed]) for seed in range(draws))
    seen = (outcomes(scores, size, chance, scrambled) for chance in chances)
    judged = ([*judge_performance(SPEC.monitoring, each, evaluated)] for each in seen)
    return (
        sum(any(each.status == "bad" for each in results) for results in judged) / draws
    )


@pytest.mark.parametrize("size", [200, 500])
def test_chance_alone_is_significant_in_at_most_one_window_of_a_hundred(rows, size):
    assert bad(rows, size) <= LIMIT


@pytest.mark.nightly
@pytest.mark.parametrize("size", SIZES)
def test_chance_alone_is_significant_in_at_most_ten_windows_of_a_thousand(rows, size):
    share = bad(rows, size, windows=1_000)
    print(f"{size} entities: {share:.1%} significant")  # noqa: T201
    assert share <= LIMIT


def test_a_limit_that_chance_reaches_would_be_seen_here(rows):
    reached = SPEC.monitoring.model_copy(update={"psi_significant": 0.08})
    assert bad(rows, 200, limits=reached) > LIMIT


def test_what_changed_much_is_found(rows):
    assert bad(rows, 200, 40, change=moved(rows, "score", 1.0)) > 0.95
    assert bad(rows, 1_000, 40, change=moved(rows, "avg_order_value", 0.5)) > 0.95
    assert bad(rows, 1_000, 40, change=doubled("customer_segment", "loyal")) > 0.5


@pytest.mark.nightly
@pytest.mark.parametrize("rarer", [1, RARER])
@pytest.mark.parametrize("size", SIZES)
def test_outcomes_that_come_as_scored_are_worse_in_at_most_one_draw_of_a_hundred(
    rows, size, rarer
):
    share = told_as_worse(rows[SCORE].to_numpy() / rarer, size, 1_000)
    print(f"{size} outcomes, a {rarer}th of the ones: {share:.1%} worse")  # noqa: T201
    assert share <= LIMIT


@pytest.mark.nightly
def test_scores_of_other_entities_are_told_as_worse(rows):
    scores = rows[SCORE].to_numpy()
    assert told_as_worse(scores, 200, 100, scrambled=1.0) > 0.9
    assert told_as_worse(scores, 1_000, 100, scrambled=0.3) > 0.8
