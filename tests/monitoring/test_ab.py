"""The read-out of a trial: its statistics against known truths, and who counts in it."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from feature_repo.features import labels, open_raw
from feature_repo.ingest import raw_table
from feature_repo.source import pull
from mlflow_server.ledger import Ledger, LedgerRow
from monitoring.ab import Lift, Outcomes, Trial, comparable, compare, lift, trials
from monitoring.collect import collect
from monitoring.readout import READ_OUTS, note_of_trial, read_out
from serving.prediction_log import AppendLog
from stack.errors import MonitoringError
from stack.spec import load_spec
from tests.conftest import AS_OF, new_settings
from tests.training.conftest import ORDERS

SPEC = load_spec("customer_churn_model")
SPEND = SPEC.model_copy(update={"task": "regression", "costs": None})
DAY = timedelta(days=1)
START = datetime(2026, 6, 1, tzinfo=UTC)
TRIAL = Trial("1", "2", START, None, (START,))
STEPS = (0.05, 0.25, 0.5, 0.75)


def arms(random, size, share, rates, costs=(1.0, 10.0)):
    """Realised costs per entity: `rates` of production and challenger come true as 1."""
    ours = random.random(size) < share
    y = random.random(size) < np.where(ours, rates[1], rates[0])
    said = random.random(size) < 0.4
    return costs[0] * said + costs[1] * y, ours


@pytest.mark.parametrize(
    ("size", "share", "effect"),
    [(400, 0.5, 0.0), (400, 0.5, -0.1), (2500, 0.05, 0.0), (1200, 0.1, 0.05)],
)
def test_the_interval_holds_the_truth_and_better_is_seldom_said_of_equals(size, share, effect):
    random, runs, within, below, above = np.random.default_rng(11), 2000, 0, 0, 0
    everybody = np.zeros(size, np.int64)
    for _ in range(runs):
        values, ours = arms(random, size, share, (0.3, 0.3 + effect))
        found = lift(values, ours, everybody)
        below += found.high < 10 * effect
        above += found.low > 10 * effect
        within += found.low <= 10 * effect <= found.high
    assert 0.935 <= within / runs <= 0.965
    assert below / runs <= 0.035  # 2.5 % and three standard errors
    assert above / runs <= 0.035


def test_who_comes_first_at_which_percent_does_not_pass_for_a_difference():
    """Later entities cost more, and are answered by the challenger more often."""
    random, runs, wrong, naive = np.random.default_rng(5), 500, 0, 0
    step = np.repeat(np.arange(4), 400)
    for _ in range(runs):
        parts = [arms(random, 400, share, (rate, rate))
                 for share, rate in zip(STEPS, (0.2, 0.3, 0.4, 0.5), strict=True)]  # fmt: skip
        values, ours = (np.concatenate(each) for each in zip(*parts, strict=True))
        found, flat = lift(values, ours, step), lift(values, ours, np.zeros_like(step))
        wrong += not found.low <= 0 <= found.high
        naive += not flat.low <= 0 <= flat.high
    assert wrong / runs <= 0.08
    assert naive / runs > 0.5


def test_a_difference_of_that_size_is_found_with_so_many_more_outcomes():
    random, truth = np.random.default_rng(3), -1.0
    first = compare(SPEC, TRIAL, outcomes(random, 300, 0.5, (0.3, 0.2)))
    exact = replace(first.lifts["cost"], difference=truth)
    needed = 300 + _more_of(exact, 300)
    found = [
        lift(*arms(random, needed, 0.5, (0.3, 0.2)), np.zeros(needed, np.int64)).high < 0
        for _ in range(500)
    ]
    assert 0.72 <= np.mean(found) <= 0.88  # planned: 0.8


def _more_of(found: Lift, size: int) -> int:
    from monitoring.ab import _more  # noqa: PLC0415

    return _more(found, size)


def outcomes(random, size, share, rates):
    """Calibrated scores, the challenger's sharper."""
    ours = random.random(size) < share
    y = (random.random(size) < np.where(ours, rates[1], rates[0])).astype(np.int64)
    p = np.clip(
        np.where(ours, 0.5 + (y - 0.5) * 0.3, 0.5) + random.normal(0, 0.05, size), 0.01, 0.99
    )
    return Outcomes(ours, np.ones(size, np.int64), y, p, (p >= 0.5).astype(float))


def test_it_says_better_worse_or_not_yet_known_in_a_sentence_with_what_is_lacking():
    random = np.random.default_rng(1)
    better = compare(SPEC, TRIAL, outcomes(random, 4000, 0.3, (0.4, 0.3)))
    assert (better.word, better.figure, better.more) == ("better", "cost", 0)
    assert better.sentence.startswith("better: version 2 against version 1: cost per entity 1.")
    assert better.lifts["log_loss"].high < 0
    assert better.challenger.metrics["auc"] > 0.95
    assert better.production.metrics["auc"] < 0.55
    assert better.challenger.rate == pytest.approx(0.3, abs=0.04)
    assert better.lifts["rate"].low < -0.1 < better.lifts["rate"].high
    worse = compare(SPEC, TRIAL, outcomes(random, 4000, 0.3, (0.3, 0.4)))
    assert (worse.word, " higher (95 %: +" in worse.sentence) == ("worse", True)
    open_still = compare(SPEC, TRIAL, outcomes(random, 500, 0.5, (0.3, 0.28)))
    assert open_still.word == "not yet known"
    assert open_still.more is None or f"{open_still.more:,} more would tell" in open_still.sentence
    few = compare(SPEC, TRIAL, outcomes(random, 150, 0.5, (0.9, 0.1)))
    assert few.lifts["cost"].high < 0  # sure, were it not for so few
    lacking = 150 * (100 / min(few.challenger.outcomes, few.production.outcomes) - 1)
    assert (few.word, few.more) == ("not yet known", np.ceil(lacking))
    none = compare(SPEC, TRIAL, outcomes(random, 0, 0.5, (0.3, 0.3)))
    assert none.sentence.endswith("0 and 0 outcomes; 100 of each are the least")
    numbers = replace(outcomes(random, 4000, 0.5, (0.3, 0.3)), y=random.normal(size=4000))
    assert compare(SPEND, TRIAL, numbers).figure == "squared_error"


def test_a_percent_at_which_one_version_answered_everybody_compares_nothing():
    random = np.random.default_rng(2)
    parts = [outcomes(random, 200, share, (0.3, 0.3)) for share in (0.5, 1.0, 0.0)]
    both = Outcomes(*(
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("challenger", "step", "y", "p", "said")
    ))  # fmt: skip
    seen = comparable(replace(both, step=np.repeat(np.arange(3), 200)))
    assert len(seen.y) == 200
    assert len(comparable(replace(both, step=np.zeros(600, np.int64))).y) == 600


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


def test_a_trial_lasts_while_one_challenger_stands_beside_one_production():
    at = [START + days * DAY for days in range(11)]
    assert trials(ROWS) == [
        Trial("1", "2", at[2], at[8], (at[2], at[4])),
        Trial("2", "3", at[9], at[10], (at[9],)),
        Trial("2", "4", at[10], None, (at[10],)),
    ]
    assert trials(ROWS[:2]) == trials(ROWS[2:3]) == []


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """The orders of AS_OF's past, and a trial of a week that began 130 days before."""
    made = new_settings(tmp_path_factory.mktemp("compared"))
    rows, table = pull(made, ORDERS, AS_OF), raw_table(made, ORDERS)
    table.merge(rows.append_column("ingested_at", rows["order_ts"]), ORDERS.key, rows.column_names)
    shift = AS_OF - 130 * DAY - START
    with closing(Ledger(made)) as ledger:
        for each in ROWS[:7]:
            ledger.insert(replace(each, time=each.time + shift))
    return made


def true_on(settings, day):
    label = ORDERS.labels[SPEC.label]
    raw = open_raw(raw_table(settings, ORDERS), as_of=AS_OF)
    return {row["customer_id"]: row["label"] for row in labels(raw, label, [day]).to_pylist()}


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
        lines.append(answers(f"again{n}", customer, role, version, hours=1, probability=0.1))
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

    found = read_out(settings, SPEC, AS_OF)
    ours, theirs = found.comparison.challenger, found.comparison.production
    assert (theirs.outcomes, ours.outcomes) == (300, 300)
    assert theirs.rate == pytest.approx(np.mean([true[c] for c in customers[::2]]))
    assert ours.rate == pytest.approx(np.mean([true[c] for c in customers[1::2]]))
    assert found.left_out == {
        "answers without an entity": 1,
        "answers outside the population": 1,
        "answered by the other version later": 1,
        "answered first at a percent at which only one version has outcomes": 1,
        "whose outcome is not known yet": 1,
    }
    assert found.comparison.word == "not yet known"
    text = "\n".join(found.lines())
    assert text.startswith(f"{SPEC.name}: not yet known: version 2 against version 1: cost per")
    for part in (
        "challenger  version 2, 300 outcomes",
        "difference  log_loss",
        "each entity by its",
    ):
        assert part in text
    taken = collect(settings).told
    known = dict(zip(taken["request_id"].to_pylist(), taken["actual"].to_pylist(), strict=True))
    notes = note_of_trial(settings, SPEC, "2", known, AS_OF)
    assert notes == [f"A/B: {found.comparison.sentence}"]
    assert note_of_trial(settings, SPEC, "1", known, AS_OF) == []
    assert note_of_trial(settings, SPEC, "2", {}, AS_OF - 100 * DAY) == []
    document = json.loads(json.dumps(READ_OUTS.dump_python(found, mode="json"), allow_nan=False))
    assert document["comparison"]["lifts"]["cost"]["low"] == found.comparison.lifts["cost"].low
    early = read_out(settings, SPEC, AS_OF - 100 * DAY)
    assert "0 and 0 outcomes" in early.sentence
    assert early.left_out["whose outcome is not known yet"] == 602


def test_without_a_trial_there_is_a_word_on_how_to_begin_one(settings):
    with pytest.raises(MonitoringError, match="version 9 was never a challenger"):
        read_out(settings, SPEC, AS_OF, "9")
    with pytest.raises(MonitoringError, match=r"gyre promote .* --role challenger"):
        read_out(settings, SPEC, AS_OF - 200 * DAY)
