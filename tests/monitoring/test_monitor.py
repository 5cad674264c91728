"""The monitor on the real history: a version of 180 days ago meets today's customers."""

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from shutil import copytree, rmtree

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
from tests.conftest import AS_OF, mlflow_server, new_settings
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

pytestmark = pytest.mark.journey

FOREST = Estimator(
    name="forest",
    type="random_forest",
    parameters={"n_estimators": 20, "max_depth": 5, "min_samples_leaf": 20},
)
LIMITS = SHIPPED.monitoring.model_copy(update={"cooldown_hours": 3})
LEFT_OUT = {"total_orders_30d", "total_spend_30d", "lifetime_value"}
"""Features: each takes a part of every report."""
FEATURES = {
    name: kind for name, kind in SHIPPED.features.items() if name not in LEFT_OUT
}
SPEC = SHIPPED.model_copy(
    update={"features": FEATURES, "estimators": (FOREST,), "monitoring": LIMITS}
)
CUSTOMERS = pa.array(range(8, 23571, 8), pa.int64())
"""Every eighth."""
OLD = AS_OF - timedelta(days=180)
HOUR = timedelta(hours=1)
TRAINED = {"1": OLD, "2": AS_OF + 5 * HOUR}
"""Each version by its moment: both are trained once for all tests."""
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
WITHOUT_EVIDENTLY = """
import sys
for name in [*sys.modules]:
    if name.partition(".")[0] == "evidently":
        del sys.modules[name]
"""
"""The preloaded process has imported it."""


class Home:
    """An installation that was kept when version 1, and when version 2 had been promoted.

    Attributes:
        settings: Its settings.
        frame: Features of every customer as of AS_OF, as the online store would give them.

    """

    def __init__(self, folder):
        self.folder = folder
        home = folder / "home"
        rows = pull(new_settings(folder / "source"), ORDERS, AS_OF).read_all()
        is_chosen = pc.is_in(rows["customer_id"], CUSTOMERS)
        self.settings = installation(home, rows.filter(is_chosen))
        fill_dataset(self.settings, "orders", AS_OF, late=12)
        count = len(CUSTOMERS)
        labelled = pa.table(
            {
                "customer_id": CUSTOMERS,
                "event_timestamp": pa.array([AS_OF] * count, TIME_TYPE),
                "label": pa.array([0] * count),
            }
        )
        self.frame = with_features(self.settings, SPEC, labelled)
        with mlflow_server(self.settings):
            for version, as_of in TRAINED.items():
                report = chain.train(
                    self.settings, SPEC, as_of, key=version, reason="test", who="test"
                )
                assert report.version == version, report.outcome
                assert f"version {version} is in production" in report.outcome
                copytree(home, folder / version)

    @contextmanager
    def restored(self, version):
        """As it was when `version` had just been promoted."""
        rmtree(self.settings.home)
        copytree(self.folder / version, self.settings.home)
        with mlflow_server(self.settings), closing(Ledger(self.settings)) as ledger:
            yield Watched(self.settings, self.frame, ledger, SPEC)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return Home(tmp_path_factory.mktemp("watched"))


class Watched:
    """A model of which nothing was answered or decided yet."""

    def __init__(self, settings, frame, ledger, spec):
        self.settings = settings
        self.frame = frame
        self.ledger = ledger
        self.spec = spec
        self.roles = Roles(settings, Registry(settings), ledger, spec.name)

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

    def monitor_by_process(self, as_of, code=MONITOR, **variables):
        """Return the report of a process of its own."""
        command = f'python -c "$CODE" "$SPEC" {as_of.isoformat()}'
        environment = stack_environment(self.settings) | {
            "CODE": code,
            "SPEC": self.spec.model_dump_json(),
        }
        done = finished(command, PROJECT, environment | variables)
        return json.loads(done.stdout)

    def decisions(self, **which):
        return newest_decisions(self.settings, self.spec.name, **which)

    def alerts(self, cause=""):
        return alerts(self.settings, self.spec.name, cause)

    def runs(self):
        return Tracking(self.settings).runs(f"{self.spec.experiment}_monitoring")

    def drift(self):
        """Let version 1, of 180 days ago, answer today's customers."""
        return self.log_answers("1", AS_OF - HOUR, "today")


@pytest.fixture
def watched(home):
    """Version 1 is in production, the only one."""
    with home.restored("1") as model:
        yield model


@pytest.fixture
def twice_trained(home):
    """Version 2 is in production, in place of version 1."""
    with home.restored("2") as model:
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
    reason = second["decision"]["reason"]
    assert "lifetime_orders: PSI" in reason
    (alert,) = watched.alerts("drift of version 1")
    assert alert["message"] == f"bad: {reason}; retrain"
    distances = [
        result["value"]
        for result in second["results"]
        if result["name"].startswith("psi/") and result["acts"]
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
    with ThreadPoolExecutor(2) as threads:
        reports = [*threads.map(watched.monitor_by_process, moments)]
    by_rule = {report["decision"]["rule"]: report for report in reports}
    assert by_rule.keys() == {"drift", "cooldown"}
    (row,) = watched.decisions(action="retrain")
    assert row.as_of == datetime.fromisoformat(by_rule["drift"]["as_of"])
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
    report = watched.monitor_by_process(
        AS_OF, WITHOUT_EVIDENTLY + MONITOR, PYTHONPATH=str(tmp_path)
    )
    assert report["verdict"] == "unknown"
    decision = report["decision"]
    assert (decision["action"], decision["rule"]) == ("nothing", "unknown")
    assert f"report was not measured: {problem}" in report["words"]
    (alert,) = watched.alerts("report of version 1: unknown")
    assert problem in alert["message"]
    assert watched.decisions(action="retrain") == []


def test_windows_before_a_version_do_not_count_against_it(twice_trained):
    watched = twice_trained
    watched.roles.promote("1")
    watched.drift()
    bad = watched.monitor(AS_OF)
    assert (bad.version, bad.verdict) == ("1", "bad")
    watched.roles.promote("2")
    watched.log_answers("2", AS_OF + 7 * HOUR, "new")
    calm = watched.monitor(AS_OF + 8 * HOUR)
    assert (calm.version, calm.verdict) == ("2", "ok")
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
    names = {"name": "another", "experiment": "another_training"}
    spec = SPEC.model_copy(update=names)
    watched = Watched(watched.settings, watched.frame, watched.ledger, spec)
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
    model = tiny_onnx(1.2, "Reciprocal", kinds=SPEC.features)
    return register(
        watched.settings, model=watched.spec.name, run_id=run_id, files=folder / CANDIDATE,
        exported=ModelFile(model.SerializeToString()),
        input_example=feature_columns(SPEC, watched.frame).head(), tags={},
        description="reversed", requirements=["onnxruntime"],
    ).version  # fmt: skip


def test_a_version_with_a_worse_f1_is_rolled_back_to_a_better_one(watched, tmp_path):
    """Row 19 of the faults: outcomes come late."""
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


def test_a_harmful_version_is_rolled_back_without_a_stored_decision(twice_trained):
    """Tables of decisions and of checks can neither be read nor written."""
    watched = twice_trained
    for name in ("decisions", "checks"):
        tear(watched.settings.data / name)
    watched.log_answers("2", AS_OF + 60 * HOUR, "harm", score=0.7)
    with pytest.raises(DataError, match="table decisions: "):
        watched.monitor(AS_OF + 61 * HOUR)
    roles = watched.roles
    last = roles.rows[-1]
    assert (last.from_version, last.to_version, last.who) == ("2", "1", "monitor")
    assert "every one of" in last.why
    assert roles.aliases["production"] == "1"
    assert len(watched.alerts("harm of version 2 ")) == 1
    assert watched.alerts("decisions cannot be stored")
