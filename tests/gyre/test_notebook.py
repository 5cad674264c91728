"""The functions of `import gyre` for notebooks, on an installation with two versions."""

import inspect
import re
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pyarrow.compute as pc
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC

import gyre
from core.errors import (
    DataError,
    NoRequestError,
    RegistryError,
    SettingsError,
    StackError,
    TrainingError,
)
from feature_engine.ingest.source import pull
from mlflow_server.api.tracking import Tracking
from monitoring.log.collect import collect
from monitoring.monitor import monitor
from stack.environment import child_environment
from tests.conftest import feast_apply, mlflow_server, new_settings, unused_port
from tests.support.training.chains import client, store, train
from tests.training.conftest import ORDERS, SHIPPED, SMALL, changed
from training.stages.dataset import load_frame

pytestmark = pytest.mark.journey

MODEL = SHIPPED.name
WIDE_GATES = [
    gate.model_copy(update={"margin_percent": 50})
    if gate.rule == "not_worse_than_champion"
    else gate
    for gate in SHIPPED.gates
]
SPEC = changed(gates=tuple(WIDE_GATES))
"""A thousand customers tell no small difference from chance."""
STUMP = SMALL.model_copy(update={"parameters": {"n_estimators": 1, "max_depth": 1}})
NOW = datetime.now(UTC)
OLD = NOW - timedelta(days=180)
DAY = timedelta(days=1)
NAIVE = datetime(2026, 1, 1)  # noqa: DTZ001  (what is refused)
ASKED = 40
NOBODY = pd.DataFrame({"customer_id": np.array([], "int64")})
CALLS = {
    "frame": gyre.frame,
    "features": lambda model, time: gyre.features(model, NOBODY, time),
    "evaluate": lambda model, time: gyre.evaluate(model, LogisticRegression(), time),
    "evaluation": lambda model, _: gyre.evaluation(model, "1"),
    "predict": lambda model, _: gyre.predict(model, NOBODY),
    "predictions": gyre.predictions,
    "decisions": lambda model, _: gyre.decisions(model),
    "checks": gyre.checks,
    "ledger": lambda model, _: gyre.ledger(model),
}
TIMED = ["frame", "features", "evaluate", "predictions", "checks"]


def use(patch, settings):
    for name, value in child_environment(settings).items():
        if name.startswith("GYRE_"):
            patch.setenv(name, value)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Settings and the run of version 2, on the orders of a thousand customers as of today."""
    settings = new_settings(tmp_path_factory.mktemp("notebook"), demo_start=None)
    feast_apply(settings)
    rows = pull(settings, ORDERS, NOW).read_all()
    store(settings, ORDERS, rows.filter(pc.less(rows["customer_id"], 1000)))
    with pytest.MonkeyPatch.context() as patch, mlflow_server(settings):
        use(patch, settings)
        weak_spec = SPEC.model_copy(update={"estimators": (STUMP,)})
        train(settings, weak_spec, OLD, "first")
        report = train(settings, SPEC, datetime.now(UTC), "second")
        assert report.outcome == "version 2 is in production, in place of 1"
        yield settings, report


@pytest.fixture(scope="module")
def answered(trained):
    """Predictions that serving has answered by the features sent, with outcomes for half of them."""
    settings, _ = trained
    members = gyre.frame(MODEL, NOW).drop_duplicates("customer_id", keep="last")[:ASKED]
    sent = members[[*SPEC.features]]
    asked = members[["customer_id"]].assign(features=sent.to_dict("records"))
    with client(settings, SPEC) as http:
        answers = gyre.predict(MODEL, asked)
        with pytest.raises(
            StackError, match=r"serving at http.* answers 422: .*customer"
        ):
            gyre.predict(MODEL, pd.DataFrame({"shop": [1]}))
        with pytest.raises(StackError, match="422"):
            gyre.predict(MODEL, NOBODY)
        outcomes = answers[["request_id"]].assign(actual=members["label"].tolist())
        feedback = outcomes[::2].to_dict("records")
        http.post("/feedback", json=feedback).raise_for_status()
    return members.reset_index(drop=True), answers


@pytest.fixture(scope="module")
def monitored(trained, answered):
    """A monitoring run of the version that has answered."""
    settings, _ = trained
    return monitor(settings, SPEC, datetime.now(UTC))


def documented(function):
    """Names of columns in the docstring of a function."""
    returns = inspect.getdoc(function).partition("Returns:")[2].partition("Raises:")[0]
    items = re.findall(r"^ +- (`.*?)(?: \(|:)", returns, re.MULTILINE)
    return [name for item in items for name in re.findall(r"`(\w+)`", item)]


@pytest.mark.parametrize("name", CALLS)
def test_an_unknown_model_is_answered_with_the_models_that_exist(name):
    with pytest.raises(SettingsError, match=rf"^no model 'churn': models/ has {MODEL}"):
        CALLS[name]("churn", NOW)


@pytest.mark.parametrize("name", TIMED)
def test_a_time_without_an_offset_is_refused_with_one_that_has_it(name):
    expected = r"(as_of|since): expected a time like 2026-03-01T00:00:00Z, found .* lacks an offset"
    with pytest.raises(SettingsError, match=expected):
        CALLS[name](MODEL, NAIVE)
    with pytest.raises(SettingsError, match="lies in the future"):
        CALLS[name](MODEL, NOW + DAY)


def test_every_function_has_a_test_here():
    assert {*CALLS, "Comparison"} == {*gyre.__all__} - gyre.MODULES.keys()


def test_a_frame_is_that_of_the_training(trained):
    settings, report = trained
    learnt, _ = load_frame(Tracking(settings), report.run_id)
    frame = gyre.frame(MODEL, pd.Timestamp(report.as_of))
    pd.testing.assert_frame_equal(frame, learnt.to_pandas())
    assert {*documented(gyre.frame)} < {*frame}
    with pytest.raises(TrainingError, match="no row was known as of"):
        gyre.frame(MODEL, NOW - 10_000 * DAY)


def test_features_are_those_of_the_frame_at_its_time(trained):
    frame = gyre.frame(MODEL, NOW)
    moment = frame["event_timestamp"].max()
    rows = frame[frame["event_timestamp"] == moment].reset_index(drop=True)
    asked = rows[["customer_id"]].sample(frac=1, random_state=1)
    features = gyre.features(MODEL, asked, moment)
    pd.testing.assert_frame_equal(features, rows.drop(columns="label"))
    earlier = gyre.features(MODEL, rows[["customer_id", "event_timestamp"]], NOW)
    pd.testing.assert_frame_equal(features, earlier)


def test_features_of_an_entity_without_rows_are_null_and_of_no_entity_an_error(trained):
    (unknown,) = gyre.features(
        MODEL, pd.DataFrame({"customer_id": [10**9]}), NOW
    ).to_dict("records")
    assert np.isnan(unknown["lifetime_value"])
    assert unknown["customer_segment"] == "__missing__"
    with pytest.raises(NoRequestError, match="entities: expected rows to score"):
        gyre.features(MODEL, NOBODY, NOW)
    with pytest.raises(DataError, match="customer_id: expected int64, found no such"):
        gyre.features(MODEL, pd.DataFrame({"shop": [1]}), NOW)


def test_the_estimator_of_the_spec_is_measured_as_by_its_training(trained):
    forest = RandomForestClassifier(**SMALL.parameters, n_jobs=-1)
    comparison = gyre.evaluate(MODEL, forest, NOW)
    stored = gyre.evaluation(MODEL, "2")
    assert stored.model is None
    measured = comparison.metrics[["test", "baseline"]]
    pd.testing.assert_frame_equal(measured, stored.metrics[["test", "baseline"]])
    assert not hasattr(forest, "estimators_")
    # It is compared with itself, which is in production by now.
    assert comparison.evaluation.champion_version == "2"
    assert (comparison.metrics["minus_champion"].dropna() == 0).all()
    assert comparison.passed
    rows = gyre.frame(MODEL, NOW)[[*SPEC.features]]
    assert comparison.model.predict_proba(rows).shape == (len(rows), 2)


def test_an_evaluation_has_the_gates_of_its_version(trained):
    first = gyre.evaluation(MODEL, "1")
    second = gyre.evaluation(MODEL, "2")
    assert [*second.gates] == ["rule", "metric", "passed", "text"]
    texts = dict(zip(second.gates["rule"], second.gates["text"], strict=True))
    assert "minus that of version 1" in texts["not_worse_than_champion"]
    assert second.passed
    assert [*first.metrics] == ["test", "baseline", "champion", "minus_champion"]
    assert first.metrics["champion"].isna().all()
    assert first.metrics.dtypes.eq(float).all()
    with pytest.raises(RegistryError):
        gyre.evaluation(MODEL, "9")


def test_a_worse_estimator_is_refused_and_one_that_cannot_be_served_is_an_error(
    trained,
):
    weak = RandomForestClassifier(**STUMP.parameters)
    comparison = gyre.evaluate(MODEL, weak)
    assert not comparison.passed
    failed = comparison.gates[~comparison.gates["passed"]]
    assert "not_worse_than_champion" in failed["rule"].tolist()
    with pytest.raises(TrainingError, match="SVC: expected an object with fit and"):
        gyre.evaluate(MODEL, SVC())


def test_predictions_are_the_answers_with_features_and_outcomes(trained, answered):
    settings, _ = trained
    collect(settings)
    members, answers = answered
    names = [name for name in documented(gyre.predict) if name != "probabilities"]
    assert [*answers] == ["customer_id", *names]
    assert answers["customer_id"].tolist() == members["customer_id"].tolist()
    rows = gyre.predictions(MODEL, NOW - DAY)
    assert rows["request_id"].tolist() == answers["request_id"].tolist()
    assert rows["probability"].tolist() == answers["probability"].tolist()
    for name in SPEC.features:
        assert rows[name].tolist() == members[name].tolist()
    assert rows["outcome"][::2].tolist() == members["label"][::2].tolist()
    assert rows["outcome"][1::2].isna().all()
    fixed = [name for name in rows if name not in SPEC.features]
    assert fixed == documented(gyre.predictions)


def test_no_prediction_has_the_columns_and_types_of_predictions(trained, answered):
    settings, _ = trained
    collect(settings)
    rows = gyre.predictions(MODEL, NOW - DAY)
    nothing = gyre.predictions(MODEL, datetime.now(UTC))
    assert nothing.empty
    assert nothing.dtypes.to_dict() == rows.dtypes.to_dict()


def test_serving_that_does_not_answer_is_named_with_the_remedy(trained, monkeypatch):
    monkeypatch.setenv("GYRE_SERVING_PORT", f"{unused_port()}")
    with pytest.raises(StackError, match=r"serving at http.*no answer.*GYRE_SERVING_U"):
        gyre.predict(MODEL, pd.DataFrame({"customer_id": [1]}))


def test_a_monitoring_run_is_a_decision_with_its_checks(monitored):
    (decision,) = gyre.decisions(MODEL).to_dict("records")
    assert decision["as_of"] == monitored.as_of
    assert (decision["verdict"], decision["version"]) == (monitored.verdict, "2")
    checks = gyre.checks(MODEL, NOW - DAY)
    assert set(checks["as_of"]) == {decision["as_of"]}
    entities = checks.set_index("name").loc["volume/entities"]
    assert entities["value"] == ASKED
    assert gyre.checks(MODEL, monitored.as_of).empty


def test_the_ledger_has_both_promotions(trained):
    ledger = gyre.ledger(MODEL)
    assert ledger["to_version"].tolist() == ["1", "2"]
    assert ledger["from_version"].tolist() == [None, "1"]
    assert (ledger["applied_at"] >= ledger["time"]).all()
    assert [*ledger] == documented(gyre.ledger)


@pytest.mark.parametrize("name", ["decisions", "checks", "ledger"])
def test_an_empty_table_has_the_columns_and_types_of_a_full_one(
    name, monitored, tmp_path, monkeypatch
):
    full = CALLS[name](MODEL, NOW - DAY)
    use(monkeypatch, new_settings(tmp_path))
    empty = CALLS[name](MODEL, NOW - DAY)
    assert len(full) > len(empty) == 0
    assert empty.dtypes.to_dict() == full.dtypes.to_dict()
    assert sorted(empty) == sorted(documented(getattr(gyre, name)))
