"""The states of one model: roles, monitoring, alerts, training and features; pure functions."""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from core.spec import ModelSpec
from feature_engine.ingest.record import DatasetRecord
from mlflow_server.alerts import (
    FAILED,
    ROLLOUT_STOPPED,
    WAITS,
    alert_details,
    is_undelivered,
)
from mlflow_server.api.pages import DeletedExperiment, RunPage
from mlflow_server.roles import PRODUCTION, ROLES, version_text
from monitoring.check import CheckResult, Status, farthest_from_limit
from monitoring.console.states import EVENTS_WAIT, LoopState, silent_program
from monitoring.console.status import (
    Alert,
    ModelRows,
    ModelStatus,
    refusal_cause,
)
from monitoring.decisions.decision import ALERT_ONLY
from monitoring.decisions.store import DecisionRow

HOUR = timedelta(hours=1)
MONITORING_LATE = 3 * HOUR
"""Monitoring runs are hourly: two missed."""
REFUSED_FOR = 24 * HOUR
"""A training that its gates refused needs attention for so long: a weekly one may well be."""
INGEST_RUNS = "airflow/dags/ingest/runs"


def states_of_model(status: ModelStatus, now: datetime) -> Iterator[LoopState]:
    """Judge one model; a source that does not answer is a state of its own."""
    model = status.spec.name
    for program, reading, kind in (
        ("serving", status.serving, "serving"),
        ("mlflow", status.aliases, "mlflow"),
        ("mlflow", status.runs, "mlflow"),
        ("the database", status.rows, "database"),
        ("ingest", status.freshness, "features"),
    ):
        if reading.at is None:
            yield silent_program(program, reading, kind)
    yield from _states_of_roles(status)
    if status.rows.value:
        yield _state_of_monitoring(model, status.rows.value, now)
        yield from _states_of_decision(model, status.rows.value)
        yield from _states_of_alerts(status, status.rows.value, now)
    if status.runs.at:
        yield _state_of_training(status.spec, status.runs.value, now)
    for record in status.freshness.value or ():
        age_limit = status.spec.monitoring.feature_age_limit
        yield _state_of_features(model, record, age_limit, now)


def _state_of_features(
    model: str, record: DatasetRecord, age_limit: timedelta, now: datetime
) -> LoopState:
    name = record.dataset
    problems = record.problems(now, age_limit)
    faults = [text for _, text in problems]
    status: Status = "alert" if faults else "ok"
    words = (
        f"{name} complete up to {_time_text(record.watermark)}, newest event "
        f"{_time_text(record.newest)}"
    )
    if record.behind:
        words += f"; keys that differ from their source: {record.behind}"
    if record.watermark is None and not faults:
        status = "unknown"
        words = f"{name}: nothing is ingested yet"
    return LoopState(
        name="features",
        kind="features" if faults else "waiting",
        status=status,
        words="; ".join(faults) or words,
        remedy="Open the failed or missing run of DAG ingest, or run "
        f"`gyre ingest {name}`. If the source is silent, ask its owner; `silence` of the "
        "dataset sets how long it may be silent.",
        link=INGEST_RUNS,
        repeats=(model, problems[0][0]) if len(problems) == 1 else None,
    )


def _states_of_roles(status: ModelStatus) -> Iterator[LoopState]:
    """Compare the sources of the version in each role: production, and other roles that are taken."""
    model = status.spec.name
    rows = status.rows.value
    refused = status.refused_versions()
    refusals = [
        f"Serving refuses version {version}: {reason}"
        for version, reason in refused.items()
    ]
    repeats = (model, refusal_cause(*refused)) if len(refused) == 1 else None
    for role in ROLES:
        row = rows.newest(role) if rows else None
        versions: dict[str, str | None] = {}
        if status.serving.value:
            versions["workers"] = " and ".join(status.served_versions(role)) or None
        if status.aliases.value is not None:
            versions["MLflow's alias"] = status.aliases.value.get(role)
        if rows:
            versions["ledger"] = row.to_version if row else None
        is_missing = role == PRODUCTION and None in versions.values()
        if len({*versions.values()}) > 1 or is_missing:
            parts = [f"{source}: {version_text(v)}" for source, v in versions.items()]
            remedy = f"`gyre ledger {model}` makes ledger and MLflow agree."
            if refusals:
                remedy = (
                    f"Go back to the version before: `gyre rollback {model} --reason …`"
                )
            elif is_missing:
                remedy = f"`gyre promote {model} VERSION --reason …`"
            yield LoopState(
                name=role,
                kind="version" if any(versions.values()) else "absent",
                status="alert",
                words="; ".join([*refusals, f"{role}: {', '.join(parts)}"]),
                remedy=remedy,
                link=f"/status/{model}?tab=ledger",
                repeats=repeats,
            )
        elif any(versions.values()):
            words = version_text(next(iter(versions.values())))
            if row:
                words += f" since {_time_text(row.time)}, by {row.who}: {row.why}"
            yield LoopState(name=role, kind="version", words=words)


def _state_of_monitoring(model: str, rows: ModelRows, now: datetime) -> LoopState:
    """Judge whether monitoring runs are in time."""
    decision = rows.last_decision
    promotion = rows.newest(PRODUCTION)
    moments = [decision.as_of] if decision else []
    if promotion:
        moments.append(promotion.time)
    is_late = now - max(moments, default=now) > MONITORING_LATE
    status: Status = "ok" if decision else "unknown"
    newest = _time_text(decision.as_of if decision else None)
    return LoopState(
        name="last monitoring run",
        kind="features" if is_late else "waiting",
        status="alert" if is_late else status,
        words=f"last monitoring run of {model}: {newest}; "
        f"expected: at most {MONITORING_LATE / HOUR:.0f} h ago",
        remedy=_run_monitoring(model),
        link=f"airflow/dags/monitor_{model}/runs",
    )


def _run_monitoring(model: str) -> str:
    return f"Airflow starts a monitoring run every hour. To start one now: `gyre monitor {model}`"


def _states_of_decision(model: str, rows: ModelRows) -> Iterator[LoopState]:
    """Yield the verdict of the newest monitoring run, and the checks that it acts on."""
    decision = rows.last_decision
    if decision is None:
        return
    promotion = rows.newest(PRODUCTION)
    is_current = promotion is None or promotion.to_version == decision.version
    checks = [check for check in rows.results if check.acts]
    if is_current and decision.verdict in {"ok", "bad"}:
        yield _state_of_verdict(model, decision, checks)
    else:
        words = decision.words or decision.reason
        yield LoopState(
            name="verdict",
            kind="waiting",
            status="unknown",
            words="no verdict on the version in production; "
            f"version {decision.version}: {words}",
            remedy=_run_monitoring(model),
            link=f"/status/{model}?tab=ledger#verdicts",
        )
        checks = [check for check in checks if check.kind in ALERT_ONLY]
    for check in checks:
        cause = check.incident or decision.cause
        yield LoopState(**vars(check), repeats=(model, cause))


def _state_of_verdict(
    model: str, decision: DecisionRow, checks: Sequence[CheckResult]
) -> LoopState:
    """Return the verdict, with the remedy of the worst check if there is a bad one."""
    remedy = ""
    link = f"/status/{model}?tab=checks"
    worst = farthest_from_limit(
        check for check in checks if check.status in {"bad", "harmful"}
    )
    if worst:
        remedy = worst.remedy
        link = worst.link
    return LoopState(
        name="verdict",
        kind="verdict",
        status="ok" if decision.verdict == "ok" else "bad",
        words=f"version {decision.version}: {decision.words or decision.reason}",
        remedy=remedy or f"See which check is bad: `gyre decide {model} --explain`",
        link=link,
        repeats=(model, decision.cause),
    )


def _states_of_alerts(
    status: ModelStatus, rows: ModelRows, now: datetime
) -> Iterator[LoopState]:
    """Yield the open alerts that no other state repeats, and all that no address has taken."""
    shown_causes = {EVENTS_WAIT, *(check.incident for check in rows.results)}
    shown_causes |= {*map(refusal_cause, status.refused_versions())}
    decision = rows.last_decision
    if decision and decision.verdict == "bad":
        shown_causes.add(decision.cause)
    further_alerts = [
        alert
        for alert in rows.open_alerts(now)
        if alert["cause"] not in shown_causes
        # A question of before the spec's `approval` was taken out waits for nobody.
        and (status.spec.promotion.approval or not alert["cause"].endswith(WAITS))
    ]
    alerts = [
        alert
        for alert in rows.alerts
        if is_undelivered(alert, now) or alert in further_alerts
    ]
    if not alerts:
        yield LoopState(name="alerts", kind="alerts", words="no other alert")
    for alert in alerts:
        yield _state_of_alert(status.spec.name, alert, now)


def _state_of_alert(model: str, alert: Alert, now: datetime) -> LoopState:
    cause = alert["cause"]
    task, is_of_task, _ = cause.partition(FAILED)
    dag, _, _ = task.partition(".")
    remedy = f"To see the decision: `gyre decide {model} --explain`"
    link = f"/status/{model}?tab=ledger#alerts"
    if cause.startswith(ROLLOUT_STOPPED):
        remedy = f"To see the steps of the rollout: `gyre ledger {model}`"
    if cause.endswith(WAITS):
        remedy = "Approve or reject it in Airflow, in the run that waits."
        link = f"airflow/dags/approve_{model}/runs"
    if is_of_task:
        remedy = "Read the log of the failed task; fix the cause, then clear the task."
        link = f"airflow/dags/{dag}/runs"
    first = _time_text(datetime.fromisoformat(alert["first"]))
    words = f"{alert['message']} (since {first}; seen: {alert['count']})"
    if is_undelivered(alert, now):
        words = f"not delivered: {words}"
        remedy = "Check the addresses in GYRE_ALERT_URLS: none of them took the alert."
    return LoopState(
        name="alerts",
        kind=alert_details(alert).get("drift_type", dag),
        status="alert",
        words=words,
        remedy=remedy,
        link=link,
        repeats=(alert["model"], cause),
    )


def _state_of_training(
    spec: ModelSpec, run: RunPage | DeletedExperiment | None, now: datetime
) -> LoopState:
    if isinstance(run, DeletedExperiment):
        return LoopState(
            name="last training",
            kind="training",
            status="alert",
            words=f"no training of {spec.name} can start: {run.words}",
            remedy=run.remedy,
            link="mlflow/",
        )
    if run is None:
        return LoopState(
            name="last training",
            kind="waiting",
            status="unknown",
            words="no training yet",
            remedy=f"`{spec.command}`",
            link=f"airflow/dags/train_{spec.name}/runs",
        )
    end = f"ended {_time_text(run.ended)}" if run.ended else "still running"
    is_recent = now - (run.ended or now) < REFUSED_FOR
    is_refused = run.outcome.startswith("refused") and is_recent
    has_failed = run.status in {"FAILED", "KILLED"}
    remedy = "Production is unchanged. The model card names the gate."
    if has_failed:
        remedy = f"Open the run to see the error. After the fix: `{spec.command}`"
    return LoopState(
        name="last training",
        kind="training",
        status="alert" if has_failed or is_refused else "ok",
        words=f"training of {spec.name} for {run.tags.get('reason')}: {run.status.lower()}, {end}: "
        f"{run.outcome}",
        remedy=remedy,
        link=run.address,
    )


def _time_text(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC" if moment else "never"
