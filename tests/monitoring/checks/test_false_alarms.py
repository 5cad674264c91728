"""Windows of the reference itself are no alarm, and windows that were changed are one.

The reference is that of the churn model on the shipped orders: the newest matured snapshot, scored
by the first estimator of the spec. Windows are drawn from it with replacement, as the entities of
another day of the same population. Each is held against the tests of the report's lines, with their
limits; figures are computed here, as a report takes seconds to draw: one test holds them equal to the
report's. `python -m pytest -s -m nightly tests/monitoring/checks/test_false_alarms.py` prints the
shares.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from core.spec import load_spec
from feature_engine.offline.labels import dataset_labels
from monitoring.log.outcomes import Outcomes
from monitoring.measurements.performance import measure
from tests.conftest import AS_OF
from tests.training.conftest import ORDERS, history  # noqa: F401  (a fixture)
from training.data.frame import build_frame, feature_columns, snapshot_rows
from training.data.snapshots import plan_snapshots
from training.evaluation.metrics import Scored, all_metrics
from training.evaluation.psi import NEWEST_SNAPSHOTS, SCORE, UsualSpread, psi
from training.evaluation.reference import Reference, measure_spread, with_scores
from training.model.onnx_export import exported
from training.model.scoring import score
from training.planning import first_known_event
from training.stages.train import fit_pipeline

SPEC = load_spec("customer_churn_model")
SIZES = (200, 300, 500, 1_000, 5_000)
LIMIT = 0.01
"""Share of windows without a change that may be significant."""


@pytest.fixture(scope="module")
def reference(history):
    """The newest snapshot that matured by AS_OF, as training stores it."""
    source = dataset_labels(history, ORDERS, SPEC.label)
    first_event = first_known_event(source, AS_OF, 0)
    label = ORDERS.labels[SPEC.label]
    plan = plan_snapshots(first_event, AS_OF, label, SPEC.snapshots)
    frame = build_frame(history, SPEC, source, plan.snapshots, AS_OF, 0)
    pipeline = fit_pipeline(SPEC, SPEC.estimators[0], snapshot_rows(frame, plan.train))
    tested = snapshot_rows(frame, plan.test)
    rows = feature_columns(SPEC, tested)
    scores = score(exported(pipeline, SPEC), SPEC.features, rows)
    scored = with_scores(SPEC, tested, Scored(scores, SPEC.threshold))
    newest = snapshot_rows(frame, plan.snapshots[-NEWEST_SNAPSHOTS:])
    return Reference(
        rows=rows.assign(**{SCORE: scored[SCORE].to_numpy()}),
        features=SPEC.features,
        snapshot=plan.test[-1].start,
        threshold=SPEC.threshold,
        evaluated={},
        spread=measure_spread(SPEC, scored, newest),
    )


def moved(rows, column, share):
    """What moves `column` of a window by `share` of its standard deviation in `rows`."""

    def change(window, _chance):
        values = window[column] + share * rows[column].std()
        if pd.api.types.is_integer_dtype(rows[column]):
            values = values.round()
        if column == SCORE:
            values = values.clip(0, 1)
        return window.assign(**{column: values})

    return change


def doubled(column, category):
    """What draws a window's rows again, those of `category` twice as often."""

    def change(window, chance):
        inside = (window[column] == category).to_numpy()
        share = min(2 * inside.mean(), 1.0)
        odds = np.where(inside, share / inside.sum(), (1 - share) / (~inside).sum())
        return window.iloc[chance.choice(len(window), len(window), p=odds / odds.sum())]

    return change


def figure(line, reference, window):
    """What the report says of a line."""
    group, column = line.name.split("/")
    values = window[column]
    usual_values = reference[column]
    if group == "psi":
        return psi(usual_values, values)
    if group == "missing":
        return values.isna().mean()
    if group == "mean":
        return values.mean()
    if usual_values.dtype == object:
        return (~values.isin(usual_values.unique())).mean()
    return 1 - values.between(usual_values.min(), usual_values.max()).mean()


def failed(reference, window, limits):
    """Names of the critical tests that a window fails, and of those that only warn."""
    from monitoring.checks.report_metrics import report_lines  # noqa: PLC0415  (Evidently)

    names = {True: set(), False: set()}
    for line in report_lines(limits, reference, window, []):
        if not line.tests or line.feature in limits.monitor_only:
            continue
        metric = line.metric
        value = figure(line, reference.rows, window)
        for test in metric.tests or metric.share_tests:
            if not test.check(value, test.threshold):
                names[test.is_critical].add(line.name)
    return names[True], names[False]


def shares(
    reference,
    size,
    windows=100,
    limits=SPEC.monitoring,
    change=lambda window, _chance: window,
):
    """Shares of windows of `size` that are bad, and at least worth a note; the same each time."""
    counts = np.zeros(2)
    for seed in range(windows):
        chance = np.random.default_rng([size, seed])
        positions = chance.integers(len(reference.rows), size=size)
        window = change(reference.rows.iloc[positions], chance)
        bad_names, noted_names = failed(reference, window, limits)
        counts += [bool(bad_names), bool(bad_names | noted_names)]
    return counts / windows


def outcomes(scores, size, chance, scrambled):
    """What comes true of `size` entities, as `scores` say; `scrambled` of them got another's."""
    true = chance.choice(scores, size)
    is_scrambled = chance.random(size) < scrambled
    values = np.where(is_scrambled, chance.permutation(true), true)
    y = (chance.random(size) < true).astype(np.int64)
    scored = Scored(values, float(scores.mean()))
    return Outcomes("online", f"{size} outcomes", pa.table({"label": y}), scored)


def share_of_worse(scores, size, draws, scrambled=0.0):
    whole = outcomes(scores, len(scores), np.random.default_rng(0), 0.0)
    evaluated = all_metrics(whole.labels, whole.scored, SPEC.costs)
    count = 0
    for seed in range(draws):
        chance = np.random.default_rng([size, seed])
        sample = outcomes(scores, size, chance, scrambled)
        count += any(item.is_bad for item in measure(SPEC, sample, evaluated))
    return count / draws


def test_the_figures_of_this_file_equal_those_of_the_report(reference, tmp_path):
    from monitoring.checks.report import report_results  # noqa: PLC0415  (Evidently)

    change = moved(reference.rows, "avg_order_value", 0.5)
    window = change(reference.rows.sample(1_000, random_state=1), None)
    labelled = replace(reference, rows=reference.rows.assign(label=1.0))
    names = {"bad": set(), "note": set(), "ok": set()}
    for item in report_results(SPEC.monitoring, labelled, window, [], tmp_path):
        if item.feature not in SPEC.monitoring.monitor_only:
            names[item.status].add(item.name)
    bad_names, noted_names = failed(reference, window, SPEC.monitoring)
    assert names["bad"] == bad_names
    assert names["note"] == noted_names - bad_names
    assert "psi/avg_order_value" in bad_names


@pytest.mark.journey
def test_chance_alone_is_significant_in_at_most_one_window_of_a_hundred(reference):
    assert shares(reference, 200)[0] <= LIMIT
    # A limit that chance reaches would be seen here.
    reached = SPEC.monitoring.model_copy(update={"psi_significant": 0.08})
    without_spread = replace(reference, spread=UsualSpread())
    assert shares(without_spread, 200, 20, limits=reached)[0] > LIMIT


@pytest.mark.nightly
@pytest.mark.parametrize("size", SIZES)
def test_chance_alone_is_significant_in_at_most_one_window_of_a_thousand(
    reference, size
):
    share, noted = shares(reference, size, windows=1_000)
    print(f"{size} entities: {share:.1%} bad, {noted:.1%} at least noted")  # noqa: T201
    assert share <= LIMIT / 10


def test_large_changes_are_found(reference):
    for size, column, share in ((200, SCORE, 1.0), (500, "avg_order_value", 0.5)):
        change = moved(reference.rows, column, share)
        assert shares(reference, size, 20, change=change)[0] > 0.95


@pytest.mark.nightly
@pytest.mark.parametrize("size", SIZES)
def test_planted_changes_are_found_as_the_docs_say(reference, size):
    changes = {
        f"{column} + {share} sd": moved(reference.rows, column, share)
        for column in ("days_since_last_order", "avg_order_value", SCORE)
        for share in (0.1, 0.25, 0.5)
    }
    changes["loyal twice as often"] = doubled("customer_segment", "loyal")
    for name, change in changes.items():
        share, noted = shares(reference, size, change=change)
        print(f"{size} entities, {name}: {share:.0%} bad, {noted:.0%} at least noted")  # noqa: T201
        if "0.5 sd" in name:
            assert share == 1.0


@pytest.mark.nightly
@pytest.mark.parametrize("rarer", [1, 5])
@pytest.mark.parametrize("size", [200, 1_000])
def test_outcomes_that_agree_with_scores_are_worse_in_at_most_one_draw_of_a_hundred(
    reference, size, rarer
):
    # Of 100 draws, two that are worse would be no more than chance.
    share = share_of_worse(reference.rows[SCORE].to_numpy() / rarer, size, 500)
    print(f"{size} outcomes, a {rarer}th of the ones: {share:.1%} worse")  # noqa: T201
    assert share <= LIMIT


@pytest.mark.journey
def test_scores_of_other_entities_are_worse(reference):
    scores = reference.rows[SCORE].to_numpy()
    assert share_of_worse(scores, 200, 20) == 0.0
    assert share_of_worse(scores, 200, 10, scrambled=1.0) > 0.9


@pytest.mark.nightly
def test_scores_of_which_a_third_is_of_other_entities_are_worse(reference):
    scores = reference.rows[SCORE].to_numpy()
    assert share_of_worse(scores, 1_000, 100, scrambled=0.3) > 0.8
