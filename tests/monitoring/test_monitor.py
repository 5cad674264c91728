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
from core.project import PROJECT
from core.spec.training import Estimator
from feature_engine.ingest.source import pull
from mlflow_server.alerts import Alerts
from mlflow_server.api.pages import DISTRIBUTIONS
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
from core.spec import ModelSpec
from monitoring.monitor import monitor

spec, as_of = sys.argv[1:]
spec = ModelSpec.model_validate_json(spec)
report = monitor(load_settings(), spec, datetime.fromisoformat(as_of))
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
        yield settings


@pytest.fixture(scope="module")
def frame(settings):
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


class Watched:
    """A model of a test's own: its versions, log, decisions and alerts are of no other test."""

    def __init__(self, settings, frame, name):
        self.settings = settings
        self.frame = frame
        names = {"name": name, "experiment": f"{name}_training"}
        self.spec = SPEC.model_copy(update=names)
        self.ledger = Ledger(settings)
        self.roles = Roles(settings, Registry(settings), self.ledger, name)

    def train(self, as_of):
        key = f"{self.spec.name} {as_of}"
        report = chain.train(
            self.settings, self.spec, as_of, key=key, reason=key, who="test"
        )
        assert report.version is not None, report.outcome
        return report.version

    def log_answers(self, version, at, name, score=None):
        """Write what serving logs when `version` answers for the customers of the frame."""
        scores = version_scores(self.settings, self.spec, version, self.frame).scores
        created = self.roles.registry.assignment(self.spec.name).created
        rows = feature_columns(self.spec, self.frame).to_dict("records")
        lines = [
            log_lines.answer(
                f"{self.spec.name}-{name}-{number}",
                at,
                model=self.spec.name,
                version=version,
                created=created,
                entity=self.frame["customer_id"][number].as_py(),
                features=row,
                probability=round(float(scores[number]), 6) if score is None else score,
                in_population=0 <= row["days_since_last_order"] < 180,
            )
            for number, row in enumerate(rows)
        ]
        file = f"predictions-1-{self.spec.name}-{name}.jsonl"
        log_lines.write(self.settings, file, *lines)
        return lines

    def log_outcomes(self, name, outcomes, at):
        """Write what came true of requests, by their numbers in the log file `name`."""
        lines = [
            log_lines.feedback(f"{self.spec.name}-{name}-{number}", float(actual), at)
            for number, actual in outcomes.items()
        ]
        file = f"feedback-1-{self.spec.name}-{name}.jsonl"
        log_lines.write(self.settings, file, *lines)

    def monitor(self, as_of):
        return monitor(self.settings, self.spec, as_of)

    def decisions(self, **which):
        return newest_decisions(self.settings, self.spec.name, **which)

    def alerts(self, cause=""):
        return alerts(self.settings, self.spec.name, cause)

    def runs(self):
        return Tracking(self.settings).runs(f"{self.spec.experiment}_monitoring")

    def drift(self):
        """Train on the history of 180 days ago, and answer today's customers twice."""
        self.train(OLD)
        return self.log_answers("1", AS_OF - HOUR, "today")


@pytest.fixture
def watched(settings, frame, request):
    name = request.node.name.removeprefix("test_")[:40]
    model = Watched(settings, frame, name)
    with closing(model.ledger):
        yield model


def test_of_two_drifted_windows_the_second_starts_one_retraining(watched):
    lines = watched.drift()
    usable = [number for number, row in enumerate(lines) if row["in_population"]][:300]
    is_likely = {
        number: lines[number]["probability"] >= SPEC.threshold for number in usable
    }
    watched.log_outcomes("today", is_likely, AS_OF - HOUR / 2)
    other_version = lines[usable[0]] | {"version": "99", "request_id": "odd"}
    log_lines.write(watched.settings, "predictions-2-odd.jsonl", other_version, "{")

    first = watched.monitor(AS_OF)
    assert first.verdict == "bad"
    assert first.left_out["of another version"] >= 1
    assert first.left_out["outside the population"] > 1_000
    assert first.malformed == 1
    assert first.figures["online/accuracy"] == 1.0
    assert "tenure" not in first.words
    assert first.decision.rule == "first_bad_window"
    assert watched.alerts("drift of") == []
    stored = stored_checks(watched.settings, watched.spec.name, [AS_OF])
    assert stored == {AS_OF: [*first.results]}
    status = {result.name: result.status for result in first.results}
    assert status["psi/lifetime_orders"] == "bad"
    assert status["online/auc"] == "ok"
    assert "backfilled/auc" in status

    second = one_of_two_runs_at_once_retrains(watched)
    assert "lifetime_orders: PSI" in second.decision.reason
    (alert,) = watched.alerts("drift of version 1")
    assert alert["message"] == f"bad: {second.decision.reason}; retrain"
    distances = [
        result.value
        for result in second.results
        if result.name.startswith("psi/") and result.acts
    ]
    assert alert["psi_score"] == max(distances)
    assert alert["severity"] == "significant"
    with closing(Alerts(watched.settings)) as stored_alerts:
        rows = stored_alerts.rows(watched.spec.name)
    counts = {row["cause"]: row["count"] for row in rows}
    assert counts[alert["cause"]] == 2


def one_of_two_runs_at_once_retrains(watched):
    """Row 18 of the faults, with two processes."""
    moments = [AS_OF + HOUR - timedelta(minutes=1), AS_OF + HOUR]
    context = get_context("forkserver")
    context.set_forkserver_preload(["monitoring.checks.report"])
    with ProcessPoolExecutor(2, context) as processes:
        runs = [
            processes.submit(monitor, watched.settings, watched.spec, moment)
            for moment in moments
        ]
        reports = [run.result() for run in runs]
    by_rule = {report.decision.rule: report for report in reports}
    assert by_rule.keys() == {"drift", "cooldown"}
    rows = watched.decisions(action="retrain")
    assert [row.as_of for row in rows] == [by_rule["drift"].as_of]
    return by_rule["drift"]


def test_a_drifted_window_is_unknown_where_evidently_cannot_be_imported(
    watched, tmp_path
):
    """Python finds a package of this name first that cannot be imported."""
    watched.drift()
    package = tmp_path / "evidently"
    package.mkdir(parents=True)
    problem = "libgomp.so.1: cannot open shared object file"
    (package / "__init__.py").write_text(f"raise ImportError({problem!r})")
    command = f'{BIN}/python -c "$MONITOR" "$SPEC" {AS_OF.isoformat()}'
    environment = stack_environment(watched.settings)
    environment |= {
        "PYTHONPATH": str(tmp_path),
        "MONITOR": MONITOR,
        "SPEC": watched.spec.model_dump_json(),
    }
    report = json.loads(finished(command, PROJECT, environment).stdout)
    assert report["verdict"] == "unknown"
    decision = report["decision"]
    assert (decision["action"], decision["rule"]) == ("nothing", "unknown")
    assert f"report was not measured: {problem}" in report["words"]
    (alert,) = watched.alerts("report of version 1: unknown")
    assert problem in alert["message"]
    assert watched.decisions(action="retrain") == []


def test_windows_before_a_version_do_not_count_against_it(watched):
    watched.drift()
    assert watched.monitor(AS_OF).verdict == "bad"
    version = watched.train(AS_OF + 5 * HOUR)
    watched.log_answers(version, AS_OF + 7 * HOUR, "new")
    calm = watched.monitor(AS_OF + 8 * HOUR)
    assert (calm.version, calm.verdict) == (version, "ok")
    row = watched.decisions()[-1]
    inputs = INPUTS.validate_json(row.inputs)
    assert inputs.verdicts == ("ok",)
    (tenure,) = (r for r in calm.results if r.name == "psi/customer_tenure_days")
    assert (tenure.status, tenure.acts) == ("bad", False)
    assert "monitor-only findings: " in calm.words


def test_figures_are_metric_series_and_a_deleted_experiment_ends_nothing(
    watched, tmp_path
):
    watched.drift()
    watched.monitor(AS_OF)
    watched.monitor(AS_OF + HOUR)
    (run,) = watched.runs()
    assert (run.tags["version"], run.status) == ("1", "FINISHED")
    api = client(watched.settings)
    points = api.get_metric_history(run.run_id, "psi/lifetime_orders")
    assert len({point.step for point in points}) > 1, "MLflow draws no line of a point"
    tracking = Tracking(watched.settings)
    reports = Path(tracking.download_artifacts(run.run_id, "reports", str(tmp_path)))
    report = next(reports.rglob("report.html"))
    assert report.stat().st_size > 100_000
    columns = json.loads(report.with_name(DISTRIBUTIONS).read_text())
    newest = min(points, key=lambda point: point.step).value
    assert sum(columns["lifetime_orders"]["parts"]) == pytest.approx(newest, abs=1e-9)

    experiment = api.get_experiment_by_name(f"{watched.spec.experiment}_monitoring")
    api.delete_experiment(experiment.experiment_id)
    report = watched.monitor(AS_OF + 2 * HOUR)
    assert report.decision.rule == watched.decisions()[-1].rule
    (told,) = watched.alerts("the results of the checks are not in MLflow")
    restore = f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
    assert restore in told["message"]


def test_a_run_for_a_moment_before_the_newest_promotion_changes_nothing(watched):
    watched.drift()
    drifted = watched.monitor(AS_OF)
    roles = watched.roles
    newest = roles.rows[-1]
    later = AS_OF + 31 * HOUR
    row = replace(newest, sequence=newest.sequence + 1, time=later, applied_at=later)
    roles.ledger.insert(row)

    def state():
        runs = [vars(run) for run in watched.runs()]
        return watched.decisions(), watched.alerts(), roles.rows, runs

    before = state()
    # Whatever the spec says by now, the version is watched as it was trained.
    fewer = dict(SPEC.features)
    del fewer["lifetime_orders"]
    changes = {
        "features": fewer, "entity_key": {"shop_id": "string"}, "costs": None,
        "threshold": None, "task": "multiclass", "classes": ("a", "b", "c"),
        "feature_service": "another", "label": "another", "population": None,
    }  # fmt: skip
    changed_spec = watched.spec.model_copy(update=changes)
    stale = monitor(watched.settings, changed_spec, drifted.as_of)
    assert (stale.version, stale.verdict) == ("1", "bad")
    assert (stale.decision.action, stale.decision.rule) == ("nothing", "stale")
    assert stale.figures == drifted.figures
    assert state() == before


def test_a_version_without_a_reference_is_never_ok(watched):
    api = client(watched.settings)
    experiment = api.create_experiment(watched.spec.experiment)
    run = api.create_run(experiment).info
    api.create_registered_model(watched.spec.name)
    source = f"{run.artifact_uri}/model"
    version = api.create_model_version(watched.spec.name, source, run.run_id)
    watched.roles.promote(str(version.version))
    report = watched.monitor(AS_OF + 40 * HOUR)
    assert (report.verdict, report.decision.action) == ("insufficient_data", "nothing")
    assert "there is no reference" in report.words
    # The newest order is of AS_OF's midnight, 52 hours ago.
    assert len(watched.alerts("source is silent")) == 1


def reversed_version(watched, folder):
    """Register a model of version 1's evaluation that thinks the less of who stays away longer."""
    tracking = Tracking(watched.settings)
    first = watched.roles.registry.version(watched.spec.name, "1")
    experiment = watched.spec.experiment
    run_id = tracking.start_or_find_run(experiment, "reversed", "reversed", {})
    folder.mkdir()
    tracking.download_artifacts(first.run_id, "", str(folder))
    tracking.log_artifacts(run_id, str(folder))
    model = tiny_onnx(1.2, "Reciprocal")
    return register(
        watched.settings, model=watched.spec.name, run_id=run_id, files=folder / CANDIDATE,
        exported=ModelFile(model.SerializeToString()),
        input_example=feature_columns(SPEC, watched.frame).head(), tags={},
        description="reversed", requirements=["onnxruntime"],
    ).version  # fmt: skip


def test_a_version_with_a_worse_f1_is_rolled_back_to_a_better_one(watched, tmp_path):
    """Row 19 of the faults: outcomes come late."""
    watched.train(OLD)
    roles = watched.roles
    at = OLD + 50 * HOUR
    version = reversed_version(watched, tmp_path / "run")
    roles.promote(version)
    watched.log_answers(version, at, "late")
    before = version_scores(watched.settings, watched.spec, "1", watched.frame)
    days = watched.frame["days_since_last_order"].to_numpy()
    inside = np.flatnonzero(days < 180)
    likely = {
        number: before.scores[number] >= before.threshold for number in inside[:600]
    }
    watched.log_outcomes("late", likely, at + 2 * HOUR)
    worse = watched.monitor(at + 3 * HOUR)
    assert worse.figures["online/f1"] < 0.7
    assert worse.decision.action != "rollback", "labels have not matured"

    limits = SPEC.monitoring.model_copy(update={"bias": {"largest_gap": 0.001}})
    biased = watched.spec.model_copy(update={"monitoring": limits})
    matured = monitor(watched.settings, biased, AS_OF + 50 * HOUR)
    gaps = [result for result in matured.results if result.kind == "bias"]
    assert "alert" in {result.status for result in gaps}, gaps
    assert (matured.version, matured.decision.action) == (version, "rollback")
    assert matured.decision.reason.startswith("version 1 is better on 2099-0")
    last = roles.rows[-1]
    assert (last.from_version, last.to_version, last.who) == (version, "1", "monitor")
    assert last.why == matured.decision.reason
    (alert,) = watched.alerts(f"harm of version {version} ")
    assert alert["drift_type"] == "harm"


@pytest.fixture
def torn_tables(settings):
    """Tables of decisions and of checks that can neither be read nor written."""
    data = settings.home / "data"
    for name in ("decisions", "checks"):
        if (data / name).exists():
            (data / name).rename(data / f"{name}.before")
        tear(data / name)
    yield
    for name in ("decisions", "checks"):
        rmtree(data / name)
        if (data / f"{name}.before").exists():
            (data / f"{name}.before").rename(data / name)


def test_a_harmful_version_is_rolled_back_without_a_stored_decision(
    watched, torn_tables
):
    watched.train(OLD)
    version = watched.train(AS_OF + 5 * HOUR)
    watched.log_answers(version, AS_OF + 60 * HOUR, "harm", score=0.7)
    with pytest.raises(DataError, match="table decisions: "):
        watched.monitor(AS_OF + 61 * HOUR)
    roles = watched.roles
    last = roles.rows[-1]
    assert (last.from_version, last.to_version, last.who) == (version, "1", "monitor")
    assert "every one of" in last.why
    assert roles.aliases["production"] == "1"
    assert len(watched.alerts(f"harm of version {version} ")) == 1
    assert watched.alerts("decisions cannot be stored")
