"""The report of an experiment: its statistics against known truths, and who counts in it."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from core.errors import MonitoringError
from core.spec import load_spec
from feature_repo.features import labels, open_raw
from feature_repo.ingest import raw_table
from feature_repo.source import pull
from mlflow_server.ledger import Ledger, LedgerRow
from monitoring.experiment import (
    REPORTS,
    Experiment,
    compare,
    effect,
    experiments,
    read_report,
)
from serving.prediction_log import AppendLog
from tests.conftest import AS_OF, new_settings
from tests.training.conftest import ORDERS

SPEC = load_spec("customer_churn_model")
SPEND = SPEC.model_copy(update={"task": "regression", "costs": None, "threshold": None})
DAY = timedelta(days=1)
START = datetime(2026, 6, 1, tzinfo=UTC)
EXPERIMENT = Experiment("1", "2", 50, START, None)


def costs(random, size, share, rates, action=1.0, loss=10.0):
    """Realised costs of the challenger's and of production's entities; `rates` come true as 1."""
    ours = random.random(size) < share
    y = random.random(size) < np.where(ours, rates[1], rates[0])
    said = random.random(size) < 0.4
    values = action * said + loss * y
    return pd.Series(values[ours]), pd.Series(values[~ours])


@pytest.mark.parametrize(
    ("size", "share", "truth"),
    [(400, 0.5, 0.0), (400, 0.5, -0.1), (2500, 0.05, 0.0), (1200, 0.1, 0.05)],
)
def test_the_interval_holds_the_truth_and_better_is_seldom_said_of_equals(
    size, share, truth
):
    random, runs, within, below, above = np.random.default_rng(11), 1000, 0, 0, 0
    for _ in range(runs):
        found = effect(*costs(random, size, share, (0.3, 0.3 + truth)))
        below += found.high < 10 * truth
        above += found.low > 10 * truth
        within += found.low <= 10 * truth <= found.high
    assert 0.93 <= within / runs <= 0.97
    assert below / runs <= 0.04  # 2.5 % and three standard errors
    assert above / runs <= 0.04


def outcomes(random, size, share, rates):
    """Calibrated scores, the challenger's sharper."""
    ours = random.random(size) < share
    y = (random.random(size) < np.where(ours, rates[1], rates[0])).astype(np.int64)
    p = np.clip(
        np.where(ours, 0.5 + (y - 0.5) * 0.3, 0.5) + random.normal(0, 0.05, size),
        0.01,
        0.99,
    )
    return pd.DataFrame(
        {"challenger": ours, "y": y, "p": p, "said": (p >= 0.5).astype(float)}
    )


def test_it_says_better_worse_or_not_yet_known_in_a_sentence():
    random = np.random.default_rng(1)
    better = compare(SPEC, EXPERIMENT, outcomes(random, 4000, 0.3, (0.4, 0.3)))
    assert (better.conclusion, better.figure) == ("better", "cost")
    assert better.sentence.startswith(
        "better: version 2 against version 1: cost per entity 1."
    )
    assert better.effects["log_loss"].high < 0
    assert better.challenger.metrics["rate"] == pytest.approx(0.3, abs=0.04)
    assert better.effects["rate"].low < -0.1 < better.effects["rate"].high
    worse = compare(SPEC, EXPERIMENT, outcomes(random, 4000, 0.3, (0.3, 0.4)))
    assert (worse.conclusion, " higher (95 %: +" in worse.sentence) == ("worse", True)
    undecided = compare(SPEC, EXPERIMENT, outcomes(random, 500, 0.5, (0.3, 0.28)))
    assert undecided.conclusion == "not yet known"
    few = compare(SPEC, EXPERIMENT, outcomes(random, 150, 0.5, (0.9, 0.1)))
    assert few.effects["cost"].high < 0  # sure, were it not for so few
    assert few.conclusion == "not yet known"
    assert few.sentence.endswith("outcomes; 100 of each are the least")
    none = compare(SPEC, EXPERIMENT, outcomes(random, 0, 0.5, (0.3, 0.3)))
    assert none.sentence.endswith("0 and 0 outcomes; 100 of each are the least")
    numbers = outcomes(random, 4000, 0.5, (0.3, 0.3)).assign(y=random.normal(size=4000))
    assert compare(SPEND, EXPERIMENT, numbers).figure == "squared_error"


def test_where_one_version_answered_everybody_nothing_is_concluded():
    everybody = outcomes(np.random.default_rng(2), 400, 1.0, (0.3, 0.3))
    found = compare(SPEC, EXPERIMENT, everybody)
    assert (found.conclusion, found.effects) == ("not yet known", {})
    assert found.sentence.endswith("400 and 0 outcomes; 100 of each are the least")


def row(at, role, old, new, days, percent=100, *, applied=True):
    change, time = (role, percent, old, new, "ann", "try", None), START + days * DAY
    return LedgerRow(SPEC.name, at, *change, time, time if applied else None)


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


def test_an_experiment_lasts_while_one_challenger_answers_one_percent_beside_one_production():
    at = [START + days * DAY for days in range(11)]
    assert experiments(ROWS) == [
        Experiment("1", "2", 5, at[2], at[4]),
        Experiment("1", "2", 50, at[4], at[8]),
        Experiment("2", "3", 10, at[9], at[10]),
        Experiment("2", "4", 10, at[10], None),
    ]
    assert experiments(ROWS[:2]) == experiments(ROWS[2:3]) == []
    whole = row(
        5, "challenger", "2", "2", 4, 100
    )  # the last step of a rollout compares nothing
    assert experiments([*ROWS[:3], whole]) == [Experiment("1", "2", 5, at[2], at[4])]


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """The orders of AS_OF's past, and experiments of a week that began 130 days before."""
    made = new_settings(tmp_path_factory.mktemp("compared"))
    rows, table = pull(made, ORDERS, AS_OF), raw_table(made, ORDERS)
    table.merge(
        rows.append_column("ingested_at", rows["order_ts"]),
        ORDERS.key,
        rows.column_names,
    )
    shift = AS_OF - 130 * DAY - START
    with closing(Ledger(made)) as ledger:
        for each in ROWS[:7]:
            ledger.insert(replace(each, time=each.time + shift))
    return made


def true_on(settings, day):
    label = ORDERS.labels[SPEC.label]
    raw = open_raw(raw_table(settings, ORDERS), as_of=AS_OF)
    return {
        row["customer_id"]: row["label"]
        for row in labels(raw, label, [day]).to_pyarrow().to_pylist()
    }


def test_outcomes_of_raw_data_outrank_feedback_and_each_entity_counts_once(settings):
    day = (AS_OF - 125 * DAY).replace(hour=0)
    at, true = day + timedelta(hours=5), true_on(settings, day)
    customers = sorted(true)[:600]
    folder, lines = settings.home / "serving" / "log", []

    def answers(request, entity, role, version, hours=0, **change):
        moment = (at + timedelta(hours=hours)).isoformat()
        return {
            "request_id": request, "model": SPEC.name, "version": version, "role": role,
            "received": moment, "as_of": moment, "entity": entity, "features": {},
            "features_from": "online", "probability": 0.6, "prediction": 1.0,
            "in_population": True,
        } | change  # fmt: skip

    for n, customer in enumerate(customers):
        role, version = (("production", "1"), ("challenger", "2"))[n % 2]
        lines.append(answers(f"r{n}", customer, role, version))
        lines.append(
            answers(f"again{n}", customer, role, version, hours=1, probability=0.1)
        )
    lines.append(answers("other", customers[0], "challenger", "2", hours=2))
    lines.append(answers("shadow", customers[1], "shadow", "2"))
    lines.append(answers("nobody", None, "production", "1"))
    lines.append(answers("outside", 10**6, "production", "1", in_population=False))
    lines.append(answers("unknown", 10**6 + 1, "production", "1"))
    lines.append(answers("told", 10**6 + 2, "challenger", "2", hours=-24))
    lines.append(answers("earlier", 10**6 + 3, "challenger", "2", hours=-24 * 6))
    log = AppendLog(folder, "predictions")
    log.open()
    assert log.write(lines)
    log.close()
    late = (AS_OF - DAY).isoformat()
    told = [{"request_id": "told", "actual": 1.0, "received": late}]
    told += [
        {"request_id": f"r{n}", "actual": 1.0 - true[customer], "received": late}
        for n, customer in enumerate(customers)
    ]
    (folder / "feedback-1-1.jsonl").write_text("\n".join(map(json.dumps, told)) + "\n")

    found = read_report(settings, SPEC, AS_OF)
    ours, theirs = found.comparison.challenger, found.comparison.production
    assert (theirs.outcomes, ours.outcomes) == (300, 300)
    assert theirs.metrics["rate"] == pytest.approx(
        np.mean([true[c] for c in customers[::2]])
    )
    assert ours.metrics["rate"] == pytest.approx(
        np.mean([true[c] for c in customers[1::2]])
    )
    assert found.left_out == {
        "answers without an entity": 1,
        "answers outside the population": 1,
        "answered by the other version later": 1,
        "whose outcome is not known yet": 1,
    }
    assert found.comparison.conclusion == "not yet known"
    text = "\n".join(found.lines())
    assert text.startswith(
        f"{SPEC.name}: not yet known: version 2 against version 1: cost per"
    )
    for part in (
        "challenger  version 2, 300 outcomes",
        "difference  log_loss",
        "each entity by its",
    ):
        assert part in text
    document = json.loads(
        json.dumps(REPORTS.dump_python(found, mode="json"), allow_nan=False)
    )
    assert (
        document["comparison"]["effects"]["cost"]["low"]
        == found.comparison.effects["cost"].low
    )
    early = read_report(settings, SPEC, AS_OF - 100 * DAY)
    assert "0 and 0 outcomes" in early.sentence
    assert early.left_out["whose outcome is not known yet"] == 601


def test_without_an_experiment_there_is_a_word_on_how_to_begin_one(settings):
    with pytest.raises(MonitoringError, match=r"gyre promote .* --role challenger"):
        read_report(settings, SPEC, AS_OF - 200 * DAY)
