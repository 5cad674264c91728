"""The monitor on the real history: a version of 180 days ago meets today's customers."""

from __future__ import annotations

import json
from datetime import timedelta

import pyarrow as pa
import pytest

from mlflow_server.ledger import Ledger
from mlflow_server.promotion import promote
from mlflow_server.records import Records
from mlflow_server.registry import Registry
from mlflow_server.tracking import Tracking
from monitoring.decision import Inputs, decide
from monitoring.monitor import INPUTS, monitor
from stack.spec import load_spec
from tests.conftest import AS_OF, mlflow_server
from tests.training.conftest import installation
from training import chain
from training.evaluate import champion_scores
from training.frame import features, with_features

SPEC = load_spec("customer_churn_model")
OLD, HOUR = AS_OF - timedelta(days=180), timedelta(hours=1)
TIME = pa.timestamp("us", tz="UTC")


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    made = installation(tmp_path_factory.mktemp("watched"))
    with mlflow_server(made):
        train(made, OLD, "first")
        yield made


def train(settings, as_of, key):
    report = chain.train(settings, SPEC, as_of, key=key, reason=key, who="test")
    assert report.version is not None, report.outcome
    return report.version


def today(settings):
    """Features of every customer as of AS_OF, as the online store would give them."""
    customers = pa.array(range(1, 23571), pa.int64())
    moments = pa.array([AS_OF] * 23570, TIME)
    labelled = pa.table({"customer_id": customers, "event_timestamp": moments,
                         "label": pa.array([0] * 23570, pa.int64())})  # fmt: skip
    return with_features(settings, SPEC, labelled)


def answer(settings, version, at, name, limit=None, score=None):
    """Write what serving logs when `version` answers for today's customers at `at`."""
    frame = today(settings)
    frame = frame if limit is None else frame.slice(0, limit)
    scores = champion_scores(settings, SPEC, version, frame)
    rows = features(SPEC, frame).to_dict("records")
    lines = [
        json.dumps({
            "request_id": f"{name}-{n}", "model": SPEC.name, "version": version,
            "role": "production", "received": at.isoformat(), "as_of": at.isoformat(),
            "entity": frame["customer_id"][n].as_py(), "features": row, "features_from": "online",
            "probability": round(float(scores[n]), 6) if score is None else score,
            "prediction": 1.0, "in_population": 0 <= row["days_since_last_order"] < 180,
        })
        for n, row in enumerate(rows)
    ]  # fmt: skip
    folder = settings.home / "serving" / "log"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"predictions-1-{name}.jsonl").write_text("\n".join(lines) + "\n")


def alerts(settings):
    path = settings.home / "logs" / "alerts.log"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def ledger_of(settings):
    ledger = Ledger(settings)
    rows = ledger.rows(SPEC.name)
    ledger.close()
    return rows


def test_the_loop_from_drift_to_a_better_version_and_back_from_harm(settings):
    # Nothing was asked yet: no verdict on drift. What matured since is worth a word on its own.
    empty = monitor(settings, SPEC, OLD + HOUR)
    assert (empty.verdict, empty.decision.action) == ("insufficient_data", "nothing")
    answer(settings, "1", AS_OF - 2 * HOUR, "few", limit=150)
    few = monitor(settings, SPEC, OLD + 2 * HOUR)  # those lie ahead of this moment
    assert few.entities == 0

    answer(settings, "1", AS_OF - HOUR, "today")
    first = monitor(settings, SPEC, AS_OF)
    assert first.verdict == "bad"
    assert first.entities > 5000
    assert first.figures["psi_lifetime_orders"] > SPEC.drift.significant
    assert first.left_out["outside the population"] > 10_000
    assert not any("tenure" in finding for finding in first.findings)
    assert (first.decision.action, first.decision.rule) == ("alert", "first_bad_window")
    second = monitor(settings, SPEC, AS_OF + HOUR)
    assert second.decision.action == "retrain"
    assert "lifetime_orders: PSI" in second.decision.reason
    assert second.cause == first.cause
    for hours in range(2, 5):
        again = monitor(settings, SPEC, AS_OF + hours * HOUR)
        assert (again.decision.action, again.decision.rule) == ("nothing", "answered")
    said = alerts(settings)
    assert [line["cause"] for line in said] == [first.cause]  # one alert
    records = Records(settings)
    assert records.alerts(SPEC.name)[0]["count"] == 5
    rows = records.decisions(SPEC.name)
    assert all(decide(replayed(row)).action == row.action for row in rows)

    version = train(settings, AS_OF + 5 * HOUR, "drift")
    after = monitor(settings, SPEC, AS_OF + 6 * HOUR)
    assert (after.version, after.verdict) == (version, "insufficient_data")
    answer(settings, version, AS_OF + 7 * HOUR, "new")
    calm = monitor(settings, SPEC, AS_OF + 8 * HOUR)
    assert (calm.verdict, calm.decision.action) == ("ok", "nothing")
    assert any("customer_tenure_days" in note for note in calm.notes)

    # One constant from here on: harm.
    answer(settings, version, AS_OF + 30 * HOUR, "harm", score=0.7)
    harmful = monitor(settings, SPEC, AS_OF + 31 * HOUR)
    assert harmful.decision.action == "rollback"
    last = ledger_of(settings)[-1]
    assert (last.from_version, last.to_version, last.who) == (version, "1", "monitor")
    assert "every one of" in last.why
    assert Registry(settings).production(SPEC.name) == "1"
    still = monitor(settings, SPEC, AS_OF + 32 * HOUR)
    assert still.decision.action != "rollback"  # no ping-pong
    assert len([line for line in alerts(settings) if "harm" in line["cause"]]) == 1
    records.close()


def replayed(row) -> Inputs:
    return INPUTS.validate_json(row.inputs)


def test_figures_are_metric_series_and_the_report_an_artifact(settings, tmp_path):
    tracking = Tracking(settings)
    runs = tracking.runs(f"{SPEC.experiment}_monitoring")
    first = next(run for run in runs if run.tags["version"] == "1")
    assert first.metrics["psi_lifetime_orders"] > 0
    report = next(tracking.download(first.run_id, "reports", tmp_path).rglob("report.html"))
    assert report.stat().st_size > 100_000


def test_a_version_without_a_reference_is_no_data_and_never_ok(settings):
    client = Registry(settings)._client
    run = client.create_run("0").info
    made = client.create_model_version(SPEC.name, f"{run.artifact_uri}/model", run.run_id).version
    ledger = Ledger(settings)
    promote(Registry(settings), ledger, SPEC.name, str(made), who="test", why="by hand")
    ledger.close()
    found = monitor(settings, SPEC, AS_OF + 40 * HOUR)
    assert (found.verdict, found.decision.action) == ("insufficient_data", "nothing")
    assert any("no reference" in note for note in found.notes)
