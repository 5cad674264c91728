"""The monitor on the real history: a version of 180 days ago meets today's customers."""

import json
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from shutil import rmtree

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from core.errors import DataError
from core.settings import PROJECT
from core.spec.training import Estimator
from feature_engine.ingest.source import pull
from mlflow_server.alerts import Alerts
from mlflow_server.api.registry import Registry
from mlflow_server.api.tracking import Tracking
from mlflow_server.model.pyfunc import ModelFile
from mlflow_server.model.registration import register
from mlflow_server.promotion.ledger import Ledger
from monitoring.decisions.decision import INPUTS
from monitoring.decisions.store import newest_decisions, stored_checks
from monitoring.monitor import monitor
from tests.conftest import AS_OF, BIN, mlflow_server, new_settings
from tests.mlflow_server.conftest import Roles, client
from tests.monitoring.conftest import alerts, tear
from tests.serving.conftest import tiny_onnx
from tests.support.monitoring import log_lines
from tests.support.monitoring.year import fill_dataset
from tests.support.tools.clone import finished, stack_environment
from tests.training.conftest import ORDERS, SHIPPED, installation
from training import chain
from training.artifacts import CANDIDATE
from training.data.frame import TIME_TYPE, feature_columns, with_features
from training.model.scoring import version_scores

FOREST = Estimator(
    name="forest",
    type="random_forest",
    parameters={"n_estimators": 20, "max_depth": 5, "min_samples_leaf": 20},
)
LIMITS = SHIPPED.monitoring.model_copy(update={"cooldown_hours": 3})
SPEC = SHIPPED.model_copy(update={"estimators": (FOREST,), "monitoring": LIMITS})
CUSTOMERS = pa.array(range(8, 23571, 8), pa.int64())
"""Every eighth."""
OLD = AS_OF - timedelta(days=180)
HOUR = timedelta(hours=1)
MONITOR = """
import sys
from datetime import datetime
from pydantic_core import to_json
from core.settings import load_settings
from core.spec import load_spec
from monitoring.monitor import monitor

name, as_of = sys.argv[1:]
report = monitor(load_settings(), load_spec(name), datetime.fromisoformat(as_of))
print(to_json(report).decode())
"""
"""For a process of its own; `gyre monitor` takes no moment that lies ahead."""


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    home = tmp_path_factory.mktemp("watched")
    rows = pull(new_settings(home), ORDERS, AS_OF).read_all()
    settings = installation(home, rows.filter(pc.is_in(rows["customer_id"], CUSTOMERS)))
    fill_dataset(settings, "orders", AS_OF, late=12)
    with mlflow_server(settings):
        train(settings, OLD, "first")
        yield settings


def train(settings, as_of, key):
    report = chain.train(settings, SPEC, as_of, key=key, reason=key, who="test")
    assert report.version is not None, report.outcome
    return report.version


def today(settings):
    """Features of every customer as of AS_OF, as the online store would give them."""
    count = len(CUSTOMERS)
    labelled = pa.table(
        {
            "customer_id": CUSTOMERS,
            "event_timestamp": pa.array([AS_OF] * count, TIME_TYPE),
            "label": pa.array([0] * count),
        }
    )
    return with_features(settings, SPEC, labelled)


def log_answers(settings, frame, version, at, name, score=None):
    """Write what serving logs when `version` answers for the customers of `frame` at `at`."""
    scores = version_scores(settings, SPEC, version, frame).scores
    created = Registry(settings).assignment(SPEC.name).created
    lines = [
        log_lines.answer(
            f"{name}-{number}",
            at,
            model=SPEC.name,
            version=version,
            created=created,
            entity=frame["customer_id"][number].as_py(),
            features=row,
            probability=round(float(scores[number]), 6) if score is None else score,
            in_population=0 <= row["days_since_last_order"] < 180,
        )
        for number, row in enumerate(feature_columns(SPEC, frame).to_dict("records"))
    ]
    log_lines.write(settings, f"predictions-1-{name}.jsonl", *lines)
    return lines


def log_outcomes(settings, name, outcomes, at):
    """Write what came true of requests, by their numbers in the log file `name`."""
    lines = [
        log_lines.feedback(f"{name}-{number}", float(actual), at)
        for number, actual in outcomes.items()
    ]
    log_lines.write(settings, f"feedback-1-{name}.jsonl", *lines)


@pytest.fixture(scope="module")
def roles(settings):
    with closing(Ledger(settings)) as ledger:
        yield Roles(settings, Registry(settings), ledger, SPEC.name)


def test_a_version_is_monitored_from_drift_to_harm_and_to_late_outcomes(
    settings, roles, tmp_path
):
    frame = today(settings)
    drifted = two_drifted_windows_start_one_retraining(settings, frame, tmp_path)
    version = a_version_of_today_is_ok(settings, frame)
    roles.promote("1")
    a_run_for_a_moment_before_the_newest_promotion_changes_nothing(roles, drifted)
    figures_are_metric_series_and_the_report_an_artifact(settings, tmp_path)
    a_version_without_a_reference_is_never_ok(roles)
    a_version_with_a_worse_f1_is_rolled_back_to_a_better_one(roles, frame, tmp_path)
    roles.promote(version)
    a_harmful_version_is_rolled_back_without_a_stored_decision(roles, frame, version)


def two_drifted_windows_start_one_retraining(settings, frame, tmp_path):
    lines = log_answers(settings, frame, "1", AS_OF - HOUR, "today")
    usable = [number for number, row in enumerate(lines) if row["in_population"]][:300]
    is_likely = {
        number: lines[number]["probability"] >= SPEC.threshold for number in usable
    }
    log_outcomes(settings, "today", is_likely, AS_OF - HOUR / 2)
    other_version = lines[usable[0]] | {"version": "99", "request_id": "odd"}
    log_lines.write(settings, "predictions-2-odd.jsonl", other_version, "{")

    first = monitor(settings, SPEC, AS_OF)
    assert first.verdict == "bad"
    assert first.left_out["of another version"] >= 1
    assert first.left_out["outside the population"] > 1_000
    assert first.malformed == 1
    assert first.figures["online/accuracy"] == 1.0
    assert "tenure" not in first.words
    assert first.decision.rule == "first_bad_window"
    assert alerts(settings, SPEC.name, "drift of") == []
    results_are_stored(settings, first)
    without_evidently_a_drifted_window_is_unknown(settings, tmp_path / "modules")
    second = one_of_two_runs_at_once_retrains(settings)
    assert "lifetime_orders: PSI" in second.decision.reason
    the_alert_names_the_worst_finding(settings, second)
    return second


def without_evidently_a_drifted_window_is_unknown(settings, modules):
    """Python finds a package of this name first that cannot be imported."""
    package = modules / "evidently"
    package.mkdir(parents=True)
    problem = "libgomp.so.1: cannot open shared object file"
    (package / "__init__.py").write_text(f"raise ImportError({problem!r})")
    as_of = (AS_OF + HOUR / 2).isoformat()
    command = f'{BIN}/python -c "$MONITOR" {SPEC.name} {as_of}'
    environment = stack_environment(settings)
    environment |= {"PYTHONPATH": str(modules), "MONITOR": MONITOR}
    report = json.loads(finished(command, PROJECT, environment).stdout)
    assert report["verdict"] == "unknown"
    decision = report["decision"]
    assert (decision["action"], decision["rule"]) == ("nothing", "unknown")
    assert f"report was not measured: {problem}" in report["words"]
    (alert,) = alerts(settings, SPEC.name, "report of version 1: unknown")
    assert problem in alert["message"]
    assert newest_decisions(settings, SPEC.name, action="retrain") == []


def one_of_two_runs_at_once_retrains(settings):
    """Row 18 of the faults, with two processes."""
    moments = [AS_OF + HOUR - timedelta(minutes=1), AS_OF + HOUR]
    context = get_context("forkserver")
    context.set_forkserver_preload(["monitoring.checks.report"])
    with ProcessPoolExecutor(2, context) as processes:
        runs = [processes.submit(monitor, settings, SPEC, at) for at in moments]
        reports = [run.result() for run in runs]
    by_rule = {report.decision.rule: report for report in reports}
    assert by_rule.keys() == {"drift", "cooldown"}
    rows = newest_decisions(settings, SPEC.name, action="retrain")
    assert [row.as_of for row in rows] == [by_rule["drift"].as_of]
    return by_rule["drift"]


def results_are_stored(settings, report):
    stored = stored_checks(settings, SPEC.name, [report.as_of])
    assert stored == {report.as_of: [*report.results]}
    status = {result.name: result.status for result in report.results}
    assert status["psi/lifetime_orders"] == "bad"
    assert status["online/auc"] == "ok"
    assert "backfilled/auc" in status


def the_alert_names_the_worst_finding(settings, report):
    (alert,) = alerts(settings, SPEC.name, "drift of version 1")
    assert alert["message"] == f"bad: {report.decision.reason}; retrain"
    distances = [
        result.value
        for result in report.results
        if result.name.startswith("psi/") and result.acts
    ]
    assert alert["psi_score"] == max(distances)
    assert alert["severity"] == "significant"
    with closing(Alerts(settings)) as stored:
        counts = {row["cause"]: row["count"] for row in stored.rows(SPEC.name)}
    assert counts[alert["cause"]] == 2


def a_version_of_today_is_ok(settings, frame):
    version = train(settings, AS_OF + 5 * HOUR, "drift")
    log_answers(settings, frame, version, AS_OF + 7 * HOUR, "new")
    calm = a_deleted_experiment_ends_nothing(settings, AS_OF + 8 * HOUR)
    assert (calm.version, calm.verdict) == (version, "ok")
    row = newest_decisions(settings, SPEC.name)[-1]
    inputs = INPUTS.validate_json(row.inputs)
    assert inputs.verdicts == ("ok",), "windows before it do not count"
    (tenure,) = (r for r in calm.results if r.name == "psi/customer_tenure_days")
    assert (tenure.status, tenure.acts) == ("bad", False)
    assert "monitor-only findings: " in calm.words
    return version


def a_deleted_experiment_ends_nothing(settings, as_of):
    """The decision stands; that its figures are not in MLflow is told."""
    api = client(settings)
    experiment = api.get_experiment_by_name(f"{SPEC.experiment}_monitoring")
    api.delete_experiment(experiment.experiment_id)
    report = monitor(settings, SPEC, as_of)
    (told,) = alerts(settings, SPEC.name, "the results of the checks are not in MLflow")
    restore = f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
    assert restore in told["message"]
    api.restore_experiment(experiment.experiment_id)
    return report


def a_run_for_a_moment_before_the_newest_promotion_changes_nothing(roles, drifted):
    settings = roles.settings
    newest = roles.rows[-1]
    later = AS_OF + 31 * HOUR
    row = replace(newest, sequence=newest.sequence + 1, time=later, applied_at=later)
    roles.ledger.insert(row)

    def state():
        runs = Tracking(settings).runs(f"{SPEC.experiment}_monitoring")
        decisions = newest_decisions(settings, SPEC.name)
        went_out = alerts(settings, SPEC.name)
        return decisions, went_out, roles.rows, [vars(run) for run in runs]

    before = state()
    # Whatever the spec says by now, the version is watched as it was trained.
    fewer = dict(SPEC.features)
    del fewer["lifetime_orders"]
    changes = {
        "features": fewer, "entity_key": {"shop_id": "string"}, "costs": None,
        "threshold": None, "task": "multiclass", "classes": ("a", "b", "c"),
        "feature_service": "another", "label": "another", "population": None,
    }  # fmt: skip
    changed_spec = SPEC.model_copy(update=changes)
    stale = monitor(settings, changed_spec, drifted.as_of)
    assert (stale.version, stale.verdict) == ("1", "bad")
    assert (stale.decision.action, stale.decision.rule) == ("nothing", "stale")
    assert stale.figures == drifted.figures
    assert state() == before


def figures_are_metric_series_and_the_report_an_artifact(settings, tmp_path):
    tracking = Tracking(settings)
    runs = tracking.runs(f"{SPEC.experiment}_monitoring")
    first = next(run for run in runs if run.tags["version"] == "1")
    assert first.status == "FINISHED"
    points = client(settings).get_metric_history(first.run_id, "psi/lifetime_orders")
    assert len({point.step for point in points}) > 1, "MLflow draws no line of a point"
    reports = Path(tracking.download_artifacts(first.run_id, "reports", str(tmp_path)))
    assert next(reports.rglob("report.html")).stat().st_size > 100_000


def a_version_without_a_reference_is_never_ok(roles):
    settings = roles.settings
    api = client(settings)
    run = api.create_run("0").info
    source = f"{run.artifact_uri}/model"
    version = api.create_model_version(SPEC.name, source, run.run_id)
    roles.promote(str(version.version))
    report = monitor(settings, SPEC, AS_OF + 40 * HOUR)
    assert (report.verdict, report.decision.action) == ("insufficient_data", "nothing")
    assert "there is no reference" in report.words
    # The newest order is of AS_OF's midnight, 52 hours ago.
    assert len(alerts(settings, SPEC.name, "source is silent")) == 1


def reversed_version(settings, frame, folder):
    """Register a model of version 1's evaluation that thinks the less of who stays away longer."""
    tracking = Tracking(settings)
    first = Registry(settings).version(SPEC.name, "1")
    run_id = tracking.start_or_find_run("by hand", "reversed", "reversed", {})
    folder.mkdir()
    tracking.download_artifacts(first.run_id, "", str(folder))
    tracking.log_artifacts(run_id, str(folder))
    model = tiny_onnx(1.2, "Reciprocal")
    return register(
        settings, model=SPEC.name, run_id=run_id, files=folder / CANDIDATE,
        exported=ModelFile(model.SerializeToString()),
        input_example=feature_columns(SPEC, frame).head(), tags={}, description="reversed",
        requirements=["onnxruntime"],
    ).version  # fmt: skip


def a_version_with_a_worse_f1_is_rolled_back_to_a_better_one(roles, frame, tmp_path):
    """Row 19 of the faults: outcomes come late."""
    settings = roles.settings
    at = OLD + 50 * HOUR
    version = reversed_version(settings, frame, tmp_path / "run")
    roles.promote("1")
    roles.promote(version)
    log_answers(settings, frame, version, at, "late")
    before = version_scores(settings, SPEC, "1", frame)
    inside = np.flatnonzero(frame["days_since_last_order"].to_numpy() < 180)
    likely = {
        number: before.scores[number] >= before.threshold for number in inside[:600]
    }
    log_outcomes(settings, "late", likely, at + 2 * HOUR)
    worse = monitor(settings, SPEC, at + 3 * HOUR)
    assert worse.figures["online/f1"] < 0.7
    assert worse.decision.action != "rollback", "labels have not matured"

    limits = SPEC.monitoring.model_copy(update={"bias": {"largest_gap": 0.001}})
    biased = SPEC.model_copy(update={"monitoring": limits})
    matured = monitor(settings, biased, AS_OF + 50 * HOUR)
    gaps = [result for result in matured.results if result.kind == "bias"]
    assert "alert" in {result.status for result in gaps}, gaps
    assert (matured.version, matured.decision.action) == (version, "rollback")
    assert matured.decision.reason.startswith("version 1 is better on 2099-0")
    last = roles.rows[-1]
    assert (last.from_version, last.to_version, last.who) == (version, "1", "monitor")
    assert last.why == matured.decision.reason
    (alert,) = alerts(settings, SPEC.name, f"harm of version {version} ")
    assert alert["drift_type"] == "harm"


def a_harmful_version_is_rolled_back_without_a_stored_decision(roles, frame, version):
    """Decisions and results of checks can neither be read nor written."""
    settings = roles.settings
    log_answers(settings, frame, version, AS_OF + 60 * HOUR, "harm", score=0.7)
    for name in ("decisions", "checks"):
        folder = settings.home / "data" / name
        rmtree(folder)
        tear(folder)
    with pytest.raises(DataError, match="table decisions: "):
        monitor(settings, SPEC, AS_OF + 61 * HOUR)
    last = roles.rows[-1]
    assert (last.from_version, last.to_version, last.who) == (version, "1", "monitor")
    assert "every one of" in last.why
    assert roles.aliases["production"] == "1"
    assert len(alerts(settings, SPEC.name, f"harm of version {version} ")) == 1
    assert alerts(settings, SPEC.name, "decisions cannot be stored")
