"""What the console says of the loop, and of what it could not ask; what happened."""

import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from core.spec.monitoring import Promotion
from feature_engine.events.interface import ConsumerLag
from feature_engine.ingest.record import DatasetRecord, IngestReport
from mlflow_server.alerts import (
    DRIFT_ALERTS,
    ROLLOUT_STOPPED,
    DriftAlert,
    cause_of_question,
)
from mlflow_server.api.pages import DeletedExperiment, RunPage
from monitoring.check import CheckResult
from monitoring.console.cached_reader import KEPT, CachedReader, Reading
from monitoring.console.loop import LoopStatus
from monitoring.console.loop_metrics import loop_metrics
from monitoring.console.model_states import states_of_model
from monitoring.console.states import (
    EVENTS_WAIT,
    LoopState,
    problems,
    state_word,
    states_of_events,
    states_of_serving,
    with_silence,
)
from monitoring.console.status import ModelRows, ModelStatus, refusal_cause
from monitoring.console.timeline import events_of
from tests.support.monitoring.ledger_rows import HOUR, LEDGER, NOW, SPEC
from tests.support.monitoring.year import decision_row

DECISION = decision_row(
    model=SPEC.name, version="2", as_of=NOW - HOUR, words="ok: f1 0.74"
)
DRIFT = CheckResult(
    name="psi/spend", kind="data_drift", status="bad", value=0.31, limit=0.25
)
SHOWN = replace(DRIFT, name="psi/tenure", acts=False, reason="grows by a day each day")
ALERT = {"model": SPEC.name, "cause": "drift <of> 2", "message": "bad " * 100, "count": 3,
         "first": f"{NOW - 2 * HOUR}", "last": f"{NOW - HOUR}", "delivered": True,
         "details": None, "sequence": 7, "who": None, "why": None, "silenced_at": None,
         "until": None}  # fmt: skip
PAST = f"{NOW - 4 * HOUR}"
RUN = RunPage("r", "http://mlflow/#/experiments/1/runs/r", "FINISHED", NOW - 9 * HOUR,
              NOW - 8 * HOUR, {"reason": "weekly", "outcome": "version 2 promoted"},
              params={}, metrics={}, artifacts="")  # fmt: skip
DELETED = DeletedExperiment("churn", "7")


def reading(value):
    return Reading(value, NOW)


def replica(version, **fields):
    """What a replica of serving says of itself."""
    versions = {"production": version} if version else {}
    model = {"versions": versions, "refused": {}, "watermark": None} | fields
    return {"ready": True, "resources": {}, "models": {SPEC.name: model}}


def workers(*versions, **fields):
    return reading({name: replica(name, **fields) for name in versions})


ROWS = ModelRows([LEDGER], [DECISION], [], [replace(DRIFT, status="ok"), SHOWN])
FRESH = DatasetRecord("orders", NOW - HOUR, watermark=NOW - HOUR, newest=NOW - 40 * HOUR,
                      silence=48 * HOUR)  # fmt: skip
WELL = ModelStatus(
    SPEC, workers("2"), reading({"production": "2"}), reading([FRESH]), reading(ROWS),
    reading(RUN), reading({"1": True, "2": False}),
)  # fmt: skip
NO_ANSWER = Reading[Any](why="it does not answer")
SILENT = ModelStatus(SPEC, *[NO_ANSWER for _ in range(6)])


def checked(status):
    return {check.name: check for check in states_of_model(status, NOW)}


def rows(**changed):
    return replace(WELL, rows=reading(replace(ROWS, **changed)))


def fresh(**changed):
    return replace(WELL, freshness=reading([replace(FRESH, **changed)]))


def decided(**changed):
    return rows(decisions=[replace(DECISION, **changed)])


def alerted(ledger=(LEDGER,), **changed):
    return rows(alerts=[ALERT | changed], ledger=ledger)


def trained(**changed):
    return replace(WELL, runs=reading(replace(RUN, **changed)))


def test_a_healthy_loop_has_no_problem():
    checks = checked(WELL)
    assert {check.health for check in checks.values()} == {"ok"}, checks
    assert checks["production"].words == (
        "version 2 since 2026-11-19 06:00:00 UTC, by ann: first"
    )
    assert checks.keys() == {
        "production", "last monitoring run", "verdict", "last training", "features",
        "alerts", "psi/spend",
    }  # fmt: skip
    assert problems({SPEC.name: [*checks.values()]}) == []


def test_keys_that_differ_from_their_source_are_counted_and_are_no_problem():
    stopped = IngestReport("orders", as_of=NOW, passed=False)
    passed = IngestReport("orders", as_of=NOW - HOUR, behind=3)
    check = checked(fresh(ingests=[stopped, passed]))["features"]
    assert check.health == "ok"
    assert check.words.endswith("; keys that differ from their source: 3")


def test_disagreeing_sources_and_refused_versions_are_named():
    refused = {"3": "ModelRefusedError: other inputs"}
    serving = workers("1", "2", refused=refused)
    status = replace(WELL, aliases=reading({"production": "3"}), serving=serving)
    check = checked(status)["production"]
    assert check.status == "alert"
    assert check.words == (
        "Serving refuses version 3: ModelRefusedError: other inputs; production: "
        "workers: version 1 and 2, MLflow's alias: version 3, ledger: version 2"
    )
    assert f"gyre rollback {SPEC.name}" in check.remedy


def test_a_source_without_an_answer_is_unknown_with_the_reason():
    checks = [*states_of_model(SILENT, NOW), *states_of_serving(SILENT.serving)]
    checks += states_of_events(SILENT.serving, SILENT.serving, NOW)
    assert {check.status for check in checks} == {"unknown"}
    assert all("it does not answer" in check.words for check in checks)
    listed = problems({SPEC.name: checks, "other": checks})
    assert [check.name for check, _ in listed] == [
        "serving", "the database", "redis", "mlflow",
    ]  # fmt: skip
    assert {len(subjects) for _, subjects in listed} == {2}


@pytest.mark.parametrize("version", ["1", "2", None])
def test_an_alert_is_over_once_its_version_is_in_no_role(version):
    content = DriftAlert(
        "spend", "data_drift", "significant", 0.3, NOW, "drifts", version
    )
    details = DRIFT_ALERTS.dump_json(content).decode()
    expected = "ok" if version == "1" else "alert"
    assert checked(alerted(details=details))["alerts"].status == expected
    shadow = replace(LEDGER, sequence=2, role="shadow", to_version=version)
    tried = alerted([LEDGER, shadow], details=details)
    assert checked(tried)["alerts"].status == "alert"


@pytest.mark.parametrize(
    ("status", "name", "expected", "words"),
    [
        (decided(as_of=NOW - 4 * HOUR), "last monitoring run",
         "attention", "2026-11-20 08:00:00 UTC; expected: at most 3 h ago"),
        (rows(decisions=[], ledger=[replace(LEDGER, time=NOW - HOUR)], results=()),
         "last monitoring run", "unknown", "never"),
        (decided(verdict="bad", words="bad: spend drifts"), "verdict", "attention",
         "version 2: bad: spend drifts"),
        (decided(version="1"), "verdict", "unknown",
         "no verdict on the version in production; version 1: ok"),
        (rows(ledger=[]), "production", "attention", "ledger: no version"),
        (trained(status="FAILED"), "last training", "attention",
         "failed, ended 2026-11-20 04:00:00 UTC: version 2 promoted"),
        (trained(tags={"outcome": "refused: auc"}), "last training", "attention", "refused: auc"),
        (replace(WELL, runs=reading(DELETED)), "last training", "attention",
         "the experiment churn was deleted in MLflow"),
        (fresh(watermark=NOW - 1.25 * HOUR), "features", "attention",
         "1.2 h, at most 1 h are expected"),
        (fresh(newest=NOW - 49 * HOUR), "features", "attention",
         "source is silent since 2026-11-18 11:00 UTC: 49 h"),
        (fresh(watermark=None, faults=["broken"]), "features", "attention", "broken"),
        (alerted(), "alerts", "attention", "bad bad"),
        (alerted(last=PAST), "alerts", "ok", "no other alert"),
        (alerted(last=PAST, delivered=False), "alerts", "attention", "not delivered: bad"),
    ],
)  # fmt: skip
def test_each_check_names_the_problem_and_the_remedy(status, name, expected, words):
    checks = checked(status)
    check = checks[name]
    assert (check.health, words in check.words) == (expected, True), check
    assert expected == "ok" or (check.remedy and check.link)
    others = {other for other in checks if checks[other].health != "ok"} - {name}
    assert others == set()


def test_a_deleted_experiment_and_a_stopped_rollout_have_the_remedy_that_shows_them():
    training = checked(replace(WELL, runs=reading(DELETED)))["last training"]
    assert "mlflow experiments restore --experiment-id 7" in training.remedy
    assert "last_training" not in metrics_of(replace(WELL, runs=reading(DELETED)))
    stopped = alerted(cause=f"{ROLLOUT_STOPPED}version 3 stopped (ledger row 4)")
    assert (
        checked(stopped)["alerts"].remedy
        == f"To see the steps of the rollout: `gyre ledger {SPEC.name}`"
    )


def test_a_version_that_waits_for_a_person_is_named_as_long_as_it_waits():
    until = NOW + timedelta(hours=72)
    asked = alerted(cause=cause_of_question("3"), last=until.isoformat())
    assert checked(asked)["alerts"].health == "ok", "nobody is asked any more"
    spec = SPEC.model_copy(update={"promotion": Promotion(approval=True)})
    check = checked(replace(asked, spec=spec))["alerts"]
    page = f"airflow/dags/approve_{SPEC.name}/runs"
    assert (check.health, check.link) == ("attention", page)


def test_a_bad_verdict_has_the_remedy_of_the_check_farthest_from_its_limit():
    near = replace(DRIFT, name="psi/near", value=0.26, remedy="look at near")
    far = replace(DRIFT, name="psi/far", value=0.9, remedy="look at far")
    bad = replace(DECISION, verdict="bad", words="bad: two features drift")
    check = checked(rows(decisions=[bad], results=[near, far]))["verdict"]
    assert check.remedy == "look at far"


def test_lost_rows_are_a_problem_though_there_are_too_few_answers_for_a_verdict():
    lost = CheckResult(
        name="online_store/customer_features", kind="online_store", status="alert", value=7.0,
        words="customer_features: of 700 known keys 7 have no row online",
        remedy="gyre ingest orders --full",
        incident="online_store/customer_features of version 2: alert",
    )  # fmt: skip
    few = replace(DECISION, verdict="insufficient_data", words="12 entities")
    alert = ALERT | {"cause": lost.incident}
    checks = [
        *states_of_model(rows(decisions=[few], results=[lost], alerts=[alert]), NOW)
    ]
    (first, _), *_ = problems({SPEC.name: checks})
    assert (first.words, first.remedy) == (lost.words, lost.remedy)


def test_an_unhealthy_resource_of_serving_is_named():
    resources = {"redis": {"ok": False, "detail": "refused"}}
    unready = replica("2") | {"ready": False, "resources": resources}
    serving, redis = states_of_serving(reading({"a": replica("2"), "b": unready}))
    assert (serving.name, serving.status) == ("serving", "alert")
    assert (redis.name, redis.status) == ("redis", "alert")
    assert "gyre logs redis" in redis.remedy


ACKNOWLEDGED = {"who": "ann", "why": "", "silenced_at": f"{NOW}", "until": None}
MUTED = ACKNOWLEDGED | {"until": f"{NOW + HOUR}"}
REFUSED = refusal_cause("3")
LATE = {"orders": ConsumerLag(entries=1, oldest=NOW - HOUR)}


def test_a_kafka_that_does_not_answer_is_named_with_what_to_do():
    (state,) = states_of_events(reading(None), NO_ANSWER, NOW, "kafka")
    assert (state.name, state.status) == ("kafka", "unknown")
    assert "GYRE_EVENTS_URL" in state.remedy


def states_of_bad_night():
    """A state of each kind that repeats an incident, by the cause of that."""
    bad = replace(DECISION, verdict="bad", words="bad: spend drifts", cause="drift")
    drift = replace(DRIFT, words="spend: PSI 0.31")
    unknown = CheckResult(
        name="skew/share", kind="skew", status="unknown", incident="skew", words="?"
    )
    alert = ALERT | {"cause": "train.fit failed: #", "model": "orders"}
    status = replace(
        rows(decisions=[bad], results=[drift, unknown], alerts=[alert]),
        freshness=reading([replace(FRESH, newest=NOW - 49 * HOUR)]),
        serving=workers("2", refused={"3": "why"}),
        aliases=reading({"production": "3"}),
    )
    states = [*states_of_model(status, NOW)]
    states += states_of_events(reading(None), reading(LATE), NOW)
    return states


REPEATED = {
    (SPEC.name, "drift"): {"verdict", "psi/spend"},
    (SPEC.name, "skew"): {"skew/share"},
    (SPEC.name, REFUSED): {"production"},
    (SPEC.name, "orders: source is silent"): {"features"},
    ("orders", EVENTS_WAIT): {"events"},
    ("orders", "train.fit failed: #"): {"alerts"},
}
"""Names of the states that repeat an incident, by its subject and cause."""


@pytest.mark.parametrize("incident", REPEATED)
def test_an_acknowledged_incident_is_shown_last_and_a_muted_one_is_no_problem(incident):
    states = states_of_bad_night()

    def listed(silence):
        alerts = {incident: ALERT | silence}
        silenced = [with_silence(state, alerts, NOW) for state in states]
        return problems({SPEC.name: silenced})

    before = [problem.state.name for problem in listed({})]
    assert REPEATED[incident] <= {*before}
    acknowledged = [problem.state for problem in listed(ACKNOWLEDGED)]
    last = [state for state in acknowledged if state.silence]
    assert acknowledged[-len(last) :] == last
    assert {state.name for state in last} == REPEATED[incident]
    assert all("acknowledged at 2026-11-20 12:00 UTC by ann" in s.words for s in last)
    assert len(acknowledged) == len(before)
    muted = [problem.state.name for problem in listed(MUTED)]
    assert {*before} - {*muted} == REPEATED[incident]


def test_a_muted_problem_hides_no_other_with_its_remedy():
    first = ALERT | {"cause": "train.fit failed: a"}
    second = ALERT | {"cause": "train.fit failed: b", "sequence": 8}
    states = states_of_model(rows(alerts=[first, second]), NOW)
    alerts = {(SPEC.name, first["cause"]): first | ACKNOWLEDGED,
              (SPEC.name, second["cause"]): second}  # fmt: skip
    silenced = [with_silence(state, alerts, NOW) for state in states]
    shown = [problem.state for problem in problems({SPEC.name: silenced})]
    assert [(state.number, bool(state.silence)) for state in shown] == [
        (8, False),
        (7, True),
    ]


def test_a_muted_alert_is_neither_undelivered_nor_an_incident_for_prometheus():
    undelivered = ALERT | {"delivered": False}
    for silence, count in (({}, 1), (MUTED, 0)):
        alert = undelivered | silence
        text = metrics_of(rows(alerts=[alert]), incidents=[alert])
        assert f'alerts_undelivered{{model="{SPEC.name}"}} {count}.0' in text
        sample = (
            f'gyre_incident{{model="{SPEC.name}",number="7",severity="significant"}}'
        )
        assert (f"{sample} 1.0" in text) == (count == 1)
        words = checked(rows(alerts=[alert]))["alerts"].words
        assert words.startswith("not delivered") == (count == 1)


def metrics_of(status, dag_runs=NO_ANSWER, incidents=()):
    loop = LoopStatus(now=NOW, is_ready=True, models={SPEC.name: status}, states={},
                      cards={}, lags={}, broken_specs=(), dag_runs=dag_runs)  # fmt: skip
    return loop_metrics(loop, records=(), usages={}, incidents=incidents).decode()


def test_unknown_figures_have_no_sample():
    skew = CheckResult(name="skew/share", kind="skew", status="alert", limit=0.1)
    counts = {"ingest": {"success": 9, "failed": 1}, "due": {"success": 0, "failed": 0}}
    text = metrics_of(rows(results=[DRIFT, SHOWN, skew]), reading(counts))
    model = f'model="{SPEC.name}"'
    for line in (
        f'gyre_check_value{{check="psi/spend",{model}}} 0.31',
        f'gyre_check_value{{check="psi/tenure",{model}}} 0.31',
        f'gyre_check_limit{{check="psi/spend",{model}}} 0.25',
        f'gyre_check_status{{check="psi/spend",{model},status="bad"}} 1.0',
        f'gyre_check_status{{check="skew/share",{model},status="alert"}} 1.0',
        f"gyre_alerts_undelivered{{{model}}} 0.0",
        f'gyre_production_version{{{model},told_by="ledger",version="2"}} 1.0',
        f"gyre_reproduced_versions{{{model}}} 2.0",
        f"gyre_reproduced_ratio{{{model}}} 0.5",
        'gyre_dag_runs{dag="ingest",state="failed"} 1.0',
        'gyre_dag_runs{dag="due",state="success"} 0.0',
        'gyre_dag_success_ratio{dag="ingest"} 0.9',
    ):
        assert line in text
    assert 'gyre_dag_success_ratio{dag="due"}' not in text
    for sample in ('value{check="skew/share"', 'limit{check="psi/tenure"'):
        assert f"gyre_check_{sample}" not in text
    silent = metrics_of(SILENT).splitlines()
    assert [line for line in silent if line[0] != "#"] == [
        f"gyre_feature_age_promise_seconds{{{model}}} 3600.0"
    ]


def state(kind, status="alert"):
    return LoopState(name="its name", kind=kind, status=status)


@pytest.mark.parametrize(
    ("states", "word"),
    [
        ([], "healthy"),
        ([state("data_drift", "ok")], "healthy"),
        ([state("verdict", "bad"), state("data_drift", "bad")], "drifted"),
        ([state("verdict", "bad"), state("performance_drift", "bad")], "degraded"),
        ([state("data_drift", "bad"), state("harm")], "harmful"),
        ([state("features"), state("mlflow", "unknown")], "stale"),
        ([state("absent")], "unserved"),
        ([state("training")], "alerted"),
        ([state("training", "note"), state("mlflow", "unknown")], "unknown"),
    ],
)
def test_one_word_says_how_a_model_is(states, word):
    assert state_word(states) == word


def test_a_model_without_a_version_is_unserved():
    empty = replace(WELL, aliases=reading({}), serving=workers(None))
    empty = replace(empty, rows=reading(replace(ROWS, ledger=[])))
    assert state_word([*states_of_model(empty, NOW)]) == "unserved"


def test_events_are_told_newest_first_with_their_cause_and_pages():
    taken_back = replace(
        LEDGER, sequence=2, action="automatic rollback", time=NOW - HOUR, to_version="1",
        who="monitor", why="it failed", applied_at=NOW,
    )  # fmt: skip
    started = replace(
        taken_back, sequence=3, role="challenger", percent=10, action="rollout"
    )
    bad = replace(DECISION, verdict="bad", words="bad: PSI 0.31", as_of=NOW - 3 * HOUR)
    status = rows(ledger=[LEDGER, taken_back, started], notable=[bad], alerts=[ALERT])
    report = f"{bad.as_of:%Y-%m-%dT%H:%M:%S}"
    events = events_of([status], NOW - 24 * HOUR, [report])
    assert [(event.title, event.health) for event in events] == [
        ("Automatic rollback to version 1", "attention"),
        ("Rollout: version 1, challenger 10 %", "ok"),
        ("Alert: drift <of> 2", "attention"),
        ("The window is bad", "attention"),
        ("Training finished", "ok"),
        ("Training started", "unknown"),
    ]
    assert events[0].text == "by monitor: it failed"
    assert ("report", f"/report/{SPEC.name}/{report}") in events[3].links
    assert ("MLflow run", RUN.address) in events[4].links
    promoted = rows(ledger=[LEDGER], alerts=[])
    (first,) = events_of([promoted], NOW - 31 * HOUR)[-1:]
    assert first.title == "Version 2 promoted"


def test_a_source_that_nobody_asked_for_long_does_not_answer_since_it_is_asked_again():
    answered = threading.Event()
    answered.set()
    # Its values are too old after a tenth of a second.
    reader = CachedReader(answered.wait, seconds=0.1 - KEPT.total_seconds())
    reader.begin().join()
    assert reader.reading.value
    answered.clear()
    time.sleep(1.1)
    asked_again = datetime.now(UTC)
    reading_thread = reader.begin()
    moments = [asked_again + timedelta(seconds=n) for n in range(3)]
    texts = [f"no answer since {moment:%Y-%m-%d %H:%M:%S} UTC" for moment in moments]
    assert reader.reading.why in texts
    answered.set()
    reading_thread.join()
    assert reader.reading.value
