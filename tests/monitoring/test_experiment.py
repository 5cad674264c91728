"""The report of an experiment: its statistics against known truths, and who counts in it."""

import json
from contextlib import closing
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from pydantic_core import to_jsonable_python

from cli.watch import experiment_lines
from core.errors import MonitoringError
from core.spec import load_spec
from feature_repo.features import labels, open_raw
from feature_repo.ingest import raw_table
from feature_repo.source import pull
from mlflow_server.ledger import Ledger, LedgerRow
from monitoring.experiment import (
    Experiment,
    compare,
    newest_experiment,
    read_report,
)
from tests.conftest import AS_OF
from tests.monitoring.log import FAILURE, answer, feedback, write
from tests.training.conftest import ORDERS

SPEC = load_spec("customer_churn_model")
SPEND = SPEC.model_copy(update={"task": "regression", "costs": None, "threshold": None})
DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
START = datetime(2026, 6, 1, tzinfo=UTC)


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
    return compare(spec, Experiment("1", "2", 50, START, None), entities, START)


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
    assert better.effects["log_loss"].high < 0
    assert better.means["challenger"]["rate"] == pytest.approx(0.3, abs=0.04)
    assert better.effects["rate"].low < -0.1 < better.effects["rate"].high
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
    numbers = compared(random, 400, 0.5, (0.3, 0.3), SPEND)
    assert numbers.figure == "squared_error"


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
    row(9, "challenger", "3", "4", 10, 10),
]


def test_an_experiment_lasts_while_challenger_share_and_production_stay():
    at = [START + days * DAY for days in range(11)]
    assert newest_experiment(ROWS[:4]) == Experiment("1", "2", 5, at[2], None)
    assert newest_experiment(ROWS[:5]) == Experiment("1", "2", 50, at[4], None)
    assert newest_experiment(ROWS[:7]) == Experiment("1", "2", 50, at[4], at[8])
    assert newest_experiment(ROWS) == Experiment("2", "4", 10, at[10], None)
    assert newest_experiment(ROWS[:2]) is None
    assert newest_experiment(ROWS[2:3]) is None


@pytest.fixture
def settings(settings):
    """The orders of AS_OF's past, and experiments of a week that began 130 days before."""
    rows = pull(settings, ORDERS, AS_OF).read_all()
    rows = rows.append_column("ingested_at", rows["order_ts"])
    raw_table(settings, ORDERS).merge(rows, ORDERS.key, rows.column_names)
    shift = AS_OF - 130 * DAY - START
    with closing(Ledger(settings)) as ledger:
        for line in ROWS[:7]:
            ledger.insert(replace(line, time=line.time + shift))
    return settings


def actual_labels(settings, day):
    label = ORDERS.labels[SPEC.label]
    raw = open_raw(raw_table(settings, ORDERS), as_of=AS_OF)
    return {
        row["customer_id"]: row["label"]
        for row in labels(raw, label, [day]).to_pyarrow().to_pylist()
    }


def test_outcomes_of_raw_data_outrank_feedback_and_each_entity_counts_once(settings):
    noon = (AS_OF - 125 * DAY).replace(hour=5)
    actual = actual_labels(settings, noon.replace(hour=0))
    customers = sorted(actual)[:600]
    versions = {"production": "1", "challenger": "2", "shadow": "2"}
    late = AS_OF - DAY

    def line(request, entity, role, received=noon, **change):
        version = {"model": SPEC.name, "role": role, "version": versions[role]}
        values = {"entity": entity, "probability": 0.6} | version | change
        return answer(request, received, **values)

    lines = [
        line("other", customers[0], "challenger", noon + 2 * HOUR),
        line("shadow", customers[1], "shadow"),
        line("nobody", None, "production"),
        line("outside", 10**6, "production", in_population=False),
        line("unknown", 10**6 + 1, "production"),
        line("by feedback", 10**6 + 2, "challenger", noon - DAY),
        line("earlier", 10**6 + 3, "challenger", noon - 6 * DAY),
    ]
    outcomes = [feedback("by feedback", 1.0, late)]
    for number, customer in enumerate(customers):
        role = ("production", "challenger")[number % 2]
        lines.append(line(f"r{number}", customer, role))
        lines.append(line(f"again{number}", customer, role, noon + HOUR))
        outcomes.append(feedback(f"r{number}", 1.0 - actual[customer], late))
    lines += [
        line(f"failed {number}", customers[0], "challenger", **FAILURE)
        for number in range(21)
    ]
    write(settings, "predictions-1-1.jsonl", *lines)
    write(settings, "feedback-1-1.jsonl", *outcomes)

    report = read_report(settings, SPEC, AS_OF)
    assert report.outcomes == {"production": 300, "challenger": 300}
    for first, role in enumerate(("production", "challenger")):
        rate = np.mean([actual[customer] for customer in customers[first::2]])
        assert report.means[role]["rate"] == pytest.approx(rate)
    assert report.conclusion == "not yet known"
    assert report.harm.startswith("21 of 622 predictions failed")
    text = "\n".join(experiment_lines(report))
    assert text.startswith(report.sentence)
    assert "challenger  version 2, 300 outcomes" in text
    json.dumps(to_jsonable_python(asdict(report)), allow_nan=False)

    # Before any experiment: how to begin one.
    with pytest.raises(MonitoringError, match=r"gyre promote .* --role challenger"):
        read_report(settings, SPEC, AS_OF - 200 * DAY)
