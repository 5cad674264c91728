"""The report of an experiment: its statistics against known truths, and who counts in it."""

import json
from contextlib import closing
from dataclasses import asdict, replace
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest
from pydantic_core import to_jsonable_python

from cli.watch import experiment_lines
from core.errors import MonitoringError
from core.spec.training import BetterThanBaseline
from mlflow_server.promotion.ledger import Ledger, LedgerRow
from monitoring.trials.experiment import (
    Experiment,
    compare_groups,
    newest_experiment,
    read_report,
)
from tests.conftest import AS_OF
from tests.support.feature_engine.installation import land_orders
from tests.support.feature_engine.shop import DAY, HOUR, ORDERS, SPEC, order
from tests.support.monitoring.log_lines import FAILURE, answer, feedback, write

START = datetime(2026, 6, 1, tzinfo=UTC)
RULE = "better_than_baseline"


def compared(random, size, share, rates, spec=SPEC):
    """Of calibrated scores, the challenger's sharper."""
    is_challengers = random.random(size) < share
    rate = np.where(is_challengers, rates[1], rates[0])
    label = (random.random(size) < rate).astype(np.int64)
    mean = np.where(is_challengers, 0.5 + (label - 0.5) * 0.3, 0.5)
    score = np.clip(mean + random.normal(0, 0.05, size), 0.01, 0.99)
    entities = pd.DataFrame(
        {
            "role": np.where(is_challengers, "challenger", "production"),
            "label": label,
            "score": score,
            "prediction": (score >= 0.5).astype(float),
        }
    )
    return compare_groups(spec, Experiment("1", "2", 50, START, None), entities, START)


@pytest.mark.journey
@pytest.mark.parametrize(
    ("size", "share", "truth"), [(400, 0.5, -0.1), (1200, 0.1, 0.0)]
)
def test_the_interval_holds_the_truth_in_95_of_100_experiments(size, share, truth):
    random = np.random.default_rng(11)
    reports = [compared(random, size, share, (0.3, 0.3 + truth)) for _ in range(400)]
    effects = [report.effects["rate"] for report in reports]
    below = sum(effect.high < truth for effect in effects)
    above = sum(effect.low > truth for effect in effects)
    assert 8 <= below + above <= 32
    assert max(below, above) <= 19  # 2.5 % and three standard errors


def test_an_experiment_concludes_better_worse_or_not_yet_known():
    random = np.random.default_rng(1)
    better = compared(random, 4000, 0.3, (0.4, 0.3))
    assert (better.conclusion, better.figure) == ("better", "cost")
    beginning = f"{SPEC.name}: better: version 2 against version 1: cost per entity 1."
    assert better.sentence.startswith(beginning)
    worse = compared(random, 4000, 0.3, (0.3, 0.4))
    assert worse.conclusion == "worse"
    assert " higher (95 %: +" in worse.sentence
    undecided = compared(random, 500, 0.5, (0.3, 0.28))
    assert undecided.conclusion == "not yet known"
    few = compared(random, 150, 0.5, (0.9, 0.1))
    assert few.conclusion == "not yet known"
    assert few.sentence.endswith("outcomes; at least 100 of each are needed")
    alone = compared(random, 400, 1.0, (0.3, 0.3))
    assert (alone.conclusion, alone.effects) == ("not yet known", {})
    for metric, figure in (("rmse", "squared_error"), ("mae", "absolute_error")):
        gates = [
            BetterThanBaseline(metric=name, rule=RULE)
            for name in ("r2", metric, "rmse")
        ]
        change = {"task": "regression", "costs": None, "gates": gates}
        spend = SPEC.model_copy(update=change)
        assert compared(random, 400, 0.5, (0.3, 0.3), spend).figure == figure


def row(at, role, old, new, days, percent=100, *, applied=True):
    time = START + days * DAY
    return LedgerRow(SPEC.name, at, role, percent, old, new, "ann", "try", None, time,
                     time if applied else None)  # fmt: skip


ROWS = [
    row(1, "production", None, "1", 0),
    row(2, "shadow", None, "2", 1),
    row(3, "challenger", None, "2", 2, 5),
    row(4, "challenger", "2", "2", 3, 50, applied=False),
    row(5, "challenger", "2", "2", 4, 50),
    row(6, "production", "1", "2", 8),
    row(7, "challenger", "2", None, 8, 0),
    row(8, "challenger", None, "3", 9, 10),
]


def test_an_experiment_lasts_while_challenger_share_and_production_stay():
    at = [START + days * DAY for days in range(10)]
    assert newest_experiment(ROWS[:4]) == Experiment("1", "2", 5, at[2], None)
    assert newest_experiment(ROWS[:7]) == Experiment("1", "2", 50, at[4], at[8])
    assert newest_experiment(ROWS) == Experiment("2", "3", 10, at[9], None)


def test_outcomes_of_raw_data_outrank_feedback_and_each_entity_counts_once(settings):
    """An experiment of four days began 126 days ago."""
    noon = AS_OF - 125 * DAY
    customers = range(600)
    orders = [order(n, n, noon - 9 * DAY) for n in customers]
    # Of who production answered, every second one comes back.
    orders += [order(1000 + n, n, noon + DAY) for n in customers[::4]]
    land_orders(settings, ORDERS, orders, AS_OF - DAY)
    shift = AS_OF - 130 * DAY - START
    with closing(Ledger(settings)) as ledger:
        for line in ROWS[:7]:
            ledger.insert(replace(line, time=line.time + shift))
    versions = {"production": "1", "challenger": "2", "shadow": "2"}

    def line(request, entity, role, received=noon, **change):
        version = {"model": SPEC.name, "role": role, "version": versions[role]}
        return answer(request, received, entity=entity, **version, **change)

    lines = [
        line("other", 0, "challenger", noon + 2 * HOUR),
        line("shadow", 1, "shadow"),
        line("nobody", None, "production"),
        line("outside", 1000, "production", in_population=False),
        line("unknown", 1001, "production"),
        line("earlier", 1002, "challenger", noon - 6 * DAY),
    ]
    outcomes = [feedback("earlier", 1.0, AS_OF - DAY)]
    for customer in customers:
        role = ("production", "challenger")[customer % 2]
        lines.append(line(f"r{customer}", customer, role))
        lines.append(line(f"again{customer}", customer, role, noon + HOUR))
        is_back = customer % 4 == 0
        outcomes.append(feedback(f"r{customer}", float(is_back), AS_OF - DAY))
    lines += [line(f"failed {n}", 0, "challenger", **FAILURE) for n in range(21)]
    write(settings, "predictions-1-1.jsonl", *lines)
    write(settings, "feedback-1-1.jsonl", *outcomes)

    report = read_report(settings, SPEC, AS_OF)
    assert report.outcomes == {"production": 300, "challenger": 300}
    rates = {role: means["rate"] for role, means in report.means.items()}
    assert rates == {"production": 0.5, "challenger": 1.0}
    assert report.conclusion == "worse"
    assert report.harm.startswith("21 of 622 predictions failed")
    text = "\n".join(experiment_lines(report))
    assert text.startswith(report.sentence)
    assert "challenger  version 2, 300 outcomes" in text
    json.dumps(to_jsonable_python(asdict(report)), allow_nan=False)

    # Before any experiment: how to begin one.
    with pytest.raises(MonitoringError, match=r"gyre promote .* --role challenger"):
        read_report(settings, SPEC, AS_OF - 200 * DAY)
