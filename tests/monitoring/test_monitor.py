"""The monitor on the real history: a version of 180 days ago meets today's customers."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from multiprocessing import get_context
from pathlib import Path
from shutil import rmtree

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from onnx import TensorProto, helper

from core.errors import DataError
from core.files import replace_file
from core.spec import load_spec
from core.training_spec import Estimator
from feature_repo.dataset_record import RECORD, DatasetRecord, record_file
from feature_repo.features import raw_table
from feature_repo.source import pull
from mlflow_server.alerts import Alerts
from mlflow_server.ledger import Ledger, LedgerRow
from mlflow_server.promotion import promote
from mlflow_server.pyfunc import ModelFile
from mlflow_server.registration import register
from mlflow_server.registry import Registry
from mlflow_server.served_model import CONTRACT_FILE
from mlflow_server.tracking import Tracking
from monitoring.decision import INPUTS, Inputs, decide
from monitoring.decision_log import newest_decisions, stored_checks
from monitoring.monitor import monitor
from tests.conftest import AS_OF, mlflow_server, new_settings
from tests.mlflow_server.conftest import client
from tests.serving.conftest import tiny_onnx
from tests.training.conftest import ORDERS, installation
from training import chain
from training.artifacts import (
    EVALUATION,
    FRAME,
    PLAN,
    REFERENCE,
    UNLABELLED,
    fetched,
    read,
)
from training.artifacts import SPEC as SPEC_FILE
from training.frame import features, with_features
from training.reference import load_reference
from training.scoring import version_scores

FOREST = Estimator(
    name="forest", type="random_forest", parameters={"n_estimators": 10, "max_depth": 6}
)
CHURN = load_spec("customer_churn_model")
LIMITS = CHURN.monitoring.model_copy(update={"cooldown_hours": 3})
SPEC = CHURN.model_copy(update={"estimators": (FOREST,), "monitoring": LIMITS})
CUSTOMERS = pa.array(range(4, 23571, 4), pa.int64())
"""Every fourth."""
OLD, HOUR = AS_OF - timedelta(days=180), timedelta(hours=1)
TIME = pa.timestamp("us", tz="UTC")


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    home = tmp_path_factory.mktemp("watched")
    rows = pull(new_settings(home), ORDERS, AS_OF).read_all()
    made = installation(home, rows.filter(pc.is_in(rows["customer_id"], CUSTOMERS)))
    record = DatasetRecord(
        dataset="orders",
        as_of=AS_OF,
        newest=raw_table(made, ORDERS).newest(ORDERS.event_time),
        silence=ORDERS.silence,
        services=[SPEC.feature_service],
    )
    replace_file(record_file(made, "orders"), RECORD.dump_json(record))
    with mlflow_server(made):
        train(made, OLD, "first")
        yield made


def train(settings, as_of, key):
    report = chain.train(settings, SPEC, as_of, key=key, reason=key, who="test")
    assert report.version is not None, report.outcome
    return report.version


def today(settings):
    """Features of every customer as of AS_OF, as the online store would give them."""
    moments = pa.array([AS_OF] * len(CUSTOMERS), TIME)
    labelled = pa.table({"customer_id": CUSTOMERS, "event_timestamp": moments,
                         "label": pa.array([0] * len(CUSTOMERS), pa.int64())})  # fmt: skip
    return with_features(settings, SPEC, labelled)


def answer(settings, version, at, name, limit=None, score=None):
    """Write what serving logs when `version` answers for today's customers at `at`."""
    frame = today(settings)
    frame = frame if limit is None else frame.slice(0, limit)
    scores = version_scores(settings, SPEC, version, frame).scores
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


def registered(settings):
    """Register a version that no training made; return its number."""
    api = client(settings)
    run = api.create_run("0").info
    made = api.create_model_version(SPEC.name, f"{run.artifact_uri}/model", run.run_id)
    return str(made.version)


BAD_INPUT = {"of an unknown version": 60, "with other features": 20}
BAD_OUTCOMES = {
    "of an unknown request": 3, "dated before the prediction": 10,
    "told again": 20, "contradicting the first": 30,
}  # fmt: skip


def add_bad_input(settings, name, at):
    """To what was answered at `at`: rows and lines that cannot be right, outcomes good and bad."""
    folder = settings.home / "serving" / "log"
    lines = (folder / f"predictions-1-{name}.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines if '"in_population": true' in line]
    deleted = registered(settings)
    client(settings).delete_model_version(SPEC.name, deleted)
    later = (at + timedelta(seconds=1)).isoformat()
    odd = [
        *(rows[n] | {"version": deleted if n % 2 else "99"} for n in range(60)),
        *(
            # The last of its entity.
            rows[n]
            | {
                "features": dict(list(rows[n]["features"].items())[1:]),
                "received": later,
            }
            for n in range(20)
        ),
    ]
    failure = {"probability": None, "prediction": None, "error": "ValueError: no tree"}
    odd += [row | failure for row in rows[:40]]
    odd = [json.dumps(row | {"request_id": f"odd-{n}"}) for n, row in enumerate(odd)]
    (folder / "predictions-2-odd.jsonl").write_text(
        "\n".join([*odd, "{", "[]", odd[0][:40]])
    )

    def told(row, minutes, *, truly=True):
        actual = float((row["probability"] >= SPEC.threshold) == truly)
        received = (at + timedelta(minutes=minutes)).isoformat()
        return {"request_id": row["request_id"], "actual": actual, "received": received}

    nobody = rows[0] | {"request_id": "nobody"}
    failed = rows[0] | {"request_id": f"odd-{len(odd) - 1}"}
    outcomes = [
        *(told(row, 1) for row in rows[:300]),
        *(told(row, 2) for row in rows[:20]),
        *(told(row, 3, truly=False) for row in rows[:30]),
        *(told(row, -1, truly=False) for row in rows[300:310]),
        told(nobody, 1), told(nobody, 2), told(failed, 1),
    ]  # fmt: skip
    text = "\n".join([*map(json.dumps, outcomes), "torn", json.dumps(outcomes[0])[:20]])
    (folder / "feedback-1-1.jsonl").write_text(text)


def alerts(settings):
    path = settings.home / "logs" / "alerts.log"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def drift_alerts(settings):
    return [line for line in alerts(settings) if line["cause"].startswith("drift of")]


def ledger_of(settings):
    ledger = Ledger(settings)
    rows = ledger.rows(SPEC.name)
    ledger.close()
    return rows


def test_a_version_is_watched_from_drift_to_harm_and_to_late_outcomes(
    settings, tmp_path
):
    drifted = the_loop_from_drift_to_a_better_version_and_back_from_harm(settings)
    a_look_at_a_moment_before_the_newest_promotion_is_told_and_changes_nothing(
        settings, drifted
    )
    figures_are_metric_series_and_the_report_an_artifact(settings, tmp_path)
    a_version_without_a_reference_is_no_data_and_never_ok(settings)
    a_worse_f1_goes_back_only_to_a_version_that_is_better_on_the_same_rows(
        settings, tmp_path
    )


def the_loop_from_drift_to_a_better_version_and_back_from_harm(settings):
    # Nothing was asked yet: no verdict on drift.
    answer(settings, "1", AS_OF - 2 * HOUR, "few", limit=150)  # that lies ahead
    empty = monitor(settings, SPEC, OLD + HOUR)
    assert (empty.verdict, empty.decision.action) == ("insufficient_data", "nothing")
    assert empty.entities == 0

    answer(settings, "1", AS_OF - HOUR, "today")
    add_bad_input(settings, "today", AS_OF - HOUR)
    first = monitor(settings, SPEC, AS_OF)
    assert first.verdict == "bad"
    bad_input_is_counted_and_not_used(first, malformed=3 + 2)
    assert first.entities > 1000
    assert first.figures["psi/lifetime_orders"] > SPEC.monitoring.psi_significant
    what_the_checks_found_is_kept(settings, first)
    assert first.left_out["outside the population"] > 2_500
    assert "tenure" not in first.words
    assert (first.decision.action, first.decision.rule) == (
        "nothing",
        "first_bad_window",
    )
    assert drift_alerts(settings) == []
    second = of_two_that_look_at_once_one_retrains(settings)
    bad_input_is_counted_and_not_used(
        second, malformed=0
    )  # counted once, then set aside
    assert "lifetime_orders: PSI" in second.decision.reason
    assert rule(settings, AS_OF + 2 * HOUR) == "cooldown"
    assert monitor(settings, SPEC, AS_OF + 4 * HOUR).decision.action == "retrain"
    (alert,) = drift_alerts(
        settings
    )  # one of this cause; it names what is done, and why
    its_worst_finding_is_named(alert, second)
    with closing(Alerts(settings)) as stored:
        counts = {row["cause"]: row["count"] for row in stored.rows(SPEC.name)}
    assert counts["drift of version 1"] == 4
    rows = newest_decisions(settings, SPEC.name)
    assert all(decide(replayed(row)).action == row.action for row in rows)

    version = train(settings, AS_OF + 5 * HOUR, "drift")
    after = monitor(settings, SPEC, AS_OF + 6 * HOUR)
    assert (after.version, after.verdict) == (version, "insufficient_data")
    answer(settings, version, AS_OF + 7 * HOUR, "new")
    calm = monitor(settings, SPEC, AS_OF + 8 * HOUR)
    assert (calm.verdict, calm.decision.action) == ("ok", "nothing")
    tenure = next(
        each for each in calm.results if each.name == "psi/customer_tenure_days"
    )
    assert (tenure.status, tenure.acts) == ("bad", False)
    assert "monitor-only findings: " in calm.words

    # One constant from here on: harm.
    answer(settings, version, AS_OF + 30 * HOUR, "harm", score=0.7)
    with (
        tables_refused(settings),
        pytest.raises(DataError, match="table decisions: "),
    ):
        monitor(settings, SPEC, AS_OF + 31 * HOUR)
    last = ledger_of(settings)[-1]
    assert (last.from_version, last.to_version, last.who) == (version, "1", "monitor")
    assert "every one of" in last.why
    assert Registry(settings).production(SPEC.name) == "1"
    still = monitor(settings, SPEC, AS_OF + 32 * HOUR)
    assert still.decision.action != "rollback"  # no ping-pong
    causes = [line["cause"] for line in alerts(settings)]
    assert len([cause for cause in causes if "harm" in cause]) == 1
    assert {
        "decisions cannot be stored",
        "what the checks found cannot be stored",
    } <= {*causes}
    return second


def of_two_that_look_at_once_one_retrains(settings):
    """Row 18 of the faults, with two processes."""
    moments = [AS_OF + HOUR - timedelta(minutes=1), AS_OF + HOUR]
    with ProcessPoolExecutor(2, get_context("spawn")) as processes:
        looks = [processes.submit(monitor, settings, SPEC, at) for at in moments]
        reports = [look.result() for look in looks]
    rules = {report.decision.rule: report for report in reports}
    assert rules.keys() == {"drift", "cooldown"}
    rows = newest_decisions(settings, SPEC.name, action="retrain")
    assert [row.as_of for row in rows] == [rules["drift"].as_of]
    return rules["drift"]


def bad_input_is_counted_and_not_used(report, malformed):
    assert report.left_out.items() >= BAD_INPUT.items()
    assert (report.outcomes_left_out, report.malformed) == (BAD_OUTCOMES, malformed)
    assert (
        report.figures["online/accuracy"] == 1.0
    )  # by the 300 that count, which are all true


def what_the_checks_found_is_kept(settings, report):
    moments = [row.as_of for row in newest_decisions(settings, SPEC.name)]
    kept = stored_checks(settings, SPEC.name, moments)
    assert {*kept} == {OLD + HOUR, AS_OF} == {*moments}
    assert kept[AS_OF] == [*report.results]
    by_name = {result.name: result for result in report.results}
    assert by_name["psi/lifetime_orders"].status == "bad"
    assert by_name["online/auc"].status == "ok"
    assert by_name["backfilled/auc"].status == "bad"
    assert {result.link[:8] for result in report.results} <= {"/status/", "/data/or"}


@contextmanager
def tables_refused(settings):
    """Decisions and results of checks can neither be read nor written."""
    folders = [settings.home / "data" / name for name in ("decisions", "checks")]
    for folder in folders:
        folder.rename(folder.with_suffix(".gone"))
        (folder / "_delta_log").mkdir(parents=True)
        (folder / "_delta_log" / f"{0:020}.json").write_text("{")
    yield
    for folder in folders:
        rmtree(folder)
        folder.with_suffix(".gone").rename(folder)


def its_worst_finding_is_named(alert, report):
    assert alert["cause"] == "drift of version 1"
    assert alert["message"] == f"bad: {report.decision.reason}; retrain"
    psi = {
        result.feature: result.value
        for result in report.results
        if result.name.startswith("psi/") and result.acts
    }
    assert alert["psi_score"] in (None, psi[alert["feature"]])
    assert alert["severity"] == "significant"
    assert datetime.fromisoformat(alert["detected_at"]) == report.as_of


def rule(settings, as_of):
    decision = monitor(settings, SPEC, as_of).decision
    assert decision.action == "nothing"
    return decision.rule


def replayed(row) -> Inputs:
    return INPUTS.validate_json(row.inputs)


def a_look_at_a_moment_before_the_newest_promotion_is_told_and_changes_nothing(
    settings, drifted
):
    ledger, stored, moment = Ledger(settings), Alerts(settings), drifted.as_of
    change = ("production", 100, None, "1", "test", "harm", None)
    at = AS_OF + 31 * HOUR  # as if the last way back had been at this moment
    ledger.insert(
        LedgerRow(SPEC.name, len(ledger.rows(SPEC.name)) + 1, *change, at, at)
    )

    def seen():
        tracking = Tracking(settings)
        runs = [vars(run) for run in tracking.runs(f"{SPEC.experiment}_monitoring")]
        return (
            newest_decisions(settings, SPEC.name),
            stored.rows(SPEC.name),
            alerts(settings),
            ledger.rows(SPEC.name),
            runs,
        )

    before = seen()
    assert [row.action for row in before[0] if row.as_of == moment] == ["retrain"]
    # Whatever the spec reads by now, the version is watched by its own features.
    fewer = {
        name: kind for name, kind in SPEC.features.items() if name != "lifetime_orders"
    }
    back = monitor(settings, SPEC.model_copy(update={"features": fewer}), moment)
    assert (back.version, back.verdict) == ("1", "bad")
    assert (back.decision.action, back.decision.rule) == ("nothing", "stale")
    assert (back.figures, back.left_out) == (drifted.figures, drifted.left_out)
    assert seen() == before
    # Nor do windows of before the promotion count, of which many were bad.
    after = AS_OF + 31.5 * HOUR
    answer(settings, "1", AS_OF + 31.2 * HOUR, "since")
    assert rule(settings, after) == "first_bad_window"
    rows = newest_decisions(settings, SPEC.name)
    (row,) = (row for row in rows if row.as_of == after)
    assert replayed(row).verdicts == ("bad",)
    ledger.close()
    stored.close()


def test_the_reference_has_scores_as_the_log_has_them(settings):
    version = Registry(settings).version(SPEC.name, "1")
    found = load_reference(settings, version).rows["score"]
    assert found.nunique() > 100
    assert (found == found.round(6)).all(), (
        "deciles would lie between a window's scores"
    )


def figures_are_metric_series_and_the_report_an_artifact(settings, tmp_path):
    tracking = Tracking(settings)
    runs = tracking.runs(f"{SPEC.experiment}_monitoring")
    first = next(run for run in runs if run.tags["version"] == "1")
    assert first.metrics["psi/lifetime_orders"] > 0
    points = tracking.get_metric_history(first.run_id, "psi/lifetime_orders")
    assert len({point.step for point in points}) > 1  # else MLflow draws one value
    assert first.status == "FINISHED"
    reports = Path(tracking.download_artifacts(first.run_id, "reports", str(tmp_path)))
    report = next(reports.rglob("report.html"))
    assert report.stat().st_size > 100_000
    latest = json.loads(read(tracking, first.run_id, "latest.json"))
    assert latest["outcomes_left_out"] == BAD_OUTCOMES
    assert latest["malformed"] == 0


def a_version_without_a_reference_is_no_data_and_never_ok(settings):
    made = registered(settings)
    ledger = Ledger(settings)
    promote(Registry(settings), ledger, SPEC.name, made, who="test", why="by hand")
    ledger.close()
    found = monitor(settings, SPEC, AS_OF + 40 * HOUR)
    assert (found.verdict, found.decision.action) == ("insufficient_data", "nothing")
    assert "there is no reference" in found.words
    silent = [each for each in alerts(settings) if "source is silent" in each["cause"]]
    assert (
        len(silent) == 1
    )  # the demo's newest order is of AS_OF's midnight, 52 hours ago
    words = [result.words for result in found.results]
    assert any(silent[0]["message"].startswith(text) for text in words if text)


def reversed_version(settings, folder):
    """Register a model of version 1's evaluation that thinks the less of who stays away longer."""
    registry, tracking = Registry(settings), Tracking(settings)
    first = registry.version(SPEC.name, "1")
    run_id = tracking.start_or_find_run("by hand", "reversed", "reversed", {})
    data = [(f"data/{name}", "data") for name in (FRAME, UNLABELLED, REFERENCE)]
    for path, place in (*data, (PLAN, None), (EVALUATION, None), (SPEC_FILE, None)):
        with fetched(tracking, first.run_id, path) as file:
            tracking.log_artifact(run_id, file, place)
    registry.download(first, folder / "first")
    (folder / "extra").mkdir()
    (folder / "first" / CONTRACT_FILE).rename(folder / "extra" / CONTRACT_FILE)
    model = tiny_onnx(0.8)
    weight = next(each for each in model.graph.initializer if each.name == "weight")
    weight.CopyFrom(helper.make_tensor("weight", TensorProto.FLOAT, [1], [-0.01]))
    return register(
        settings, model=SPEC.name, run_id=run_id, files=folder / "extra",
        exported=ModelFile(model.SerializeToString()),
        input_example=features(SPEC, today(settings)).head(), tags={}, description="reversed",
        requirements=["onnxruntime"],
    ).version  # fmt: skip


def tell(settings, name, requests, actual, at):
    folder = settings.home / "serving" / "log"
    lines = [
        json.dumps({"request_id": f"{name}-{n}", "actual": float(actual[n]),
                    "received": at.isoformat()})
        for n in requests
    ]  # fmt: skip
    (folder / f"feedback-{name}-{requests[0]}.jsonl").write_text(
        "\n".join(lines) + "\n"
    )


def a_worse_f1_goes_back_only_to_a_version_that_is_better_on_the_same_rows(
    settings, tmp_path
):
    """Row 19 of the faults: outcomes come late, and what came before may be no better."""
    version, ledger, at = (
        reversed_version(settings, tmp_path),
        Ledger(settings),
        OLD + 50 * HOUR,
    )
    registry = Registry(settings)

    def promoted(each):
        promote(registry, ledger, SPEC.name, each, who="test", why="by hand")

    if registry.production(SPEC.name) != "1":
        promoted("1")
    promoted(version)
    answer(settings, version, at, "late")
    frame = today(settings)
    before = version_scores(settings, SPEC, "1", frame)
    likely = before.scores >= before.threshold

    inside = np.flatnonzero(frame["days_since_last_order"].to_numpy() < 180)
    coin = np.random.default_rng(3).integers(0, 2, len(likely))
    tell(settings, "late", inside[:200], coin, at + HOUR)
    nobody = monitor(settings, SPEC, at + 2 * HOUR)
    assert nobody.figures["online/f1"] < 0.7
    assert nobody.decision.action == "nothing", (
        "the version before is no better at a coin"
    )

    tell(settings, "late", inside[200:1200], likely, at + 2 * HOUR)
    worse = monitor(settings, SPEC, at + 3 * HOUR)
    assert worse.figures["online/f1"] < 0.7
    assert worse.decision.action != "rollback", "labels have not matured"

    matured = monitor(settings, SPEC, AS_OF + 50 * HOUR)
    assert (matured.version, matured.decision.action) == (version, "rollback")
    assert matured.decision.reason.startswith("version 1 is better on 2099-0")
    last = ledger_of(settings)[-1]
    assert (last.from_version, last.to_version, last.who) == (version, "1", "monitor")
    assert last.why == matured.decision.reason
    (alert,) = (
        each
        for each in alerts(settings)
        if each["cause"].startswith(f"harm of version {version} ")
    )
    assert alert["drift_type"] == "harm"
    again = monitor(settings, SPEC, AS_OF + 51 * HOUR)
    assert again.decision.action != "rollback", "no ping-pong"
    ledger.close()
