"""The states of one model: roles, monitoring, alerts, training and features; pure functions."""

from collections.abc import Iterator
from datetime import datetime, timedelta

from feature_engine.ingest.record import DatasetRecord
from mlflow_server.alerts import FAILED, ROLLOUT, WAITS
from mlflow_server.api.pages import DeletedExperiment, RunPage
from mlflow_server.roles import PRODUCTION, ROLES, version_text
from monitoring.check import CheckResult, Status, farthest_from_limit
from monitoring.console.states import EVENTS_WAIT, silent, time_text
from monitoring.console.status import (
    ModelRows,
    ModelStatus,
    alert_details,
    refusal_cause,
)
from monitoring.decisions.decision import ALERT_ONLY

HOUR = timedelta(hours=1)
MONITORING_LATE = 3 * HOUR
"""Monitoring runs are hourly: two missed."""
REFUSED_FOR = 24 * HOUR
"""A training that its gates refused needs attention for so long: a weekly one may well be."""
INGEST_RUNS = "airflow/dags/ingest/runs"


def of_model(status: ModelStatus, now: datetime) -> Iterator[CheckResult]:
    """Judge one model; a source that does not answer is a check of its own."""
    model = status.spec.name
    for program, reading, kind in (
        ("serving", status.serving, "serving"),
        ("mlflow", status.aliases, "mlflow"),
        ("mlflow", status.runs, "mlflow"),
        ("the database", status.rows, "database"),
        ("ingest", status.freshness, "features"),
    ):
        if reading.at is None:
            yield silent(program, reading, kind)
    yield from _roles(status)
    if status.rows.value:
        yield from _monitoring(model, status.rows.value, now)
        yield from _alerts(status, status.rows.value, now)
    if status.runs.at:
        yield _training(model, status.runs.value, now)
    for record in status.freshness.value or ():
        yield _features(record, status.spec.monitoring.feature_age_limit, now)


def _features(
    record: DatasetRecord, age_limit: timedelta, now: datetime
) -> CheckResult:
    name = record.dataset
    faults = [text for _, text in record.problems(now, age_limit)]
    status: Status = "alert" if faults else "ok"
    words = (
        f"{name} complete up to {time_text(record.watermark)}, newest event "
        f"{time_text(record.newest)}"
    )
    if record.watermark is None and not faults:
        status = "unknown"
        words = f"{name}: nothing is ingested yet"
    return CheckResult(
        name="features",
        kind="features" if faults else "waiting",
        status=status,
        words="; ".join(faults) or words,
        remedy="Open the failed or missing run of DAG ingest, or run "
        f"`gyre ingest {name}`. If the source is silent, ask who delivers it; `silence` of "
        "the dataset says how long it may be.",
        link=INGEST_RUNS,
    )


def _roles(status: ModelStatus) -> Iterator[CheckResult]:
    """Compare who says which version is in a role: production, and others that are taken."""
    model = status.spec.name
    rows = status.rows.value
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
            refused = [
                f"Serving refuses version {version}: {reason}"
                for version, reason in status.refused_versions().items()
            ]
            remedy = f"`gyre ledger {model}` makes ledger and MLflow agree."
            if refused:
                remedy = (
                    f"Stay with the version before: `gyre rollback {model} --reason …`"
                )
            elif is_missing:
                remedy = f"`gyre promote {model} VERSION --reason …`"
            yield CheckResult(
                name=role,
                kind="version",
                status="alert",
                words="; ".join([*refused, f"{role}: {', '.join(parts)}"]),
                remedy=remedy,
                link=f"/status/{model}#ledger",
            )
        elif any(versions.values()):
            words = version_text(next(iter(versions.values())))
            if row:
                words += f" since {time_text(row.time)}, by {row.who}: {row.why}"
            yield CheckResult(name=role, kind="version", words=words)


def _monitoring(model: str, rows: ModelRows, now: datetime) -> Iterator[CheckResult]:
    """Judge whether runs are in time, and pass on what the newest one says."""
    decision = rows.last_decision
    promotion = rows.newest(PRODUCTION)
    moments = [decision.as_of] if decision else []
    if promotion:
        moments.append(promotion.time)
    is_late = now - max(moments, default=now) > MONITORING_LATE
    status: Status = "ok" if decision else "unknown"
    remedy = f"It runs every hour. At once: `gyre monitor {model}`"
    yield CheckResult(
        name="last monitoring run",
        kind="features" if is_late else "waiting",
        status="alert" if is_late else status,
        words=f"last monitoring run of {model}: {time_text(decision.as_of if decision else None)}; "
        f"at most {MONITORING_LATE / HOUR:.0f} h ago is expected",
        remedy=remedy,
        link=f"airflow/dags/monitor_{model}/runs",
    )
    if decision is None:
        return
    words = decision.words or decision.reason
    is_current = promotion is None or promotion.to_version == decision.version
    results = [result for result in rows.results if result.acts]
    if not is_current or decision.verdict not in {"ok", "bad"}:
        yield CheckResult(
            name="verdict",
            kind="waiting",
            status="unknown",
            words=f"no verdict on the version in production; version {decision.version}: {words}",
            remedy=remedy,
            link=f"/status/{model}#verdicts",
        )
        yield from [result for result in results if result.kind in ALERT_ONLY]
        return
    bad = [result for result in results if result.status in {"bad", "harmful"}]
    worst = farthest_from_limit(bad)
    remedy = worst.remedy if worst else ""
    yield CheckResult(
        name="verdict",
        kind="verdict",
        status="ok" if decision.verdict == "ok" else "bad",
        words=f"version {decision.version}: {words}",
        remedy=remedy or f"See which check is bad: `gyre decide {model} --explain`",
        link=worst.link if worst else f"/status/{model}#history",
    )
    yield from results


def _alerts(
    status: ModelStatus, rows: ModelRows, now: datetime
) -> Iterator[CheckResult]:
    """Name each that is open and not a check already, and each that nobody has heard."""
    model = status.spec.name
    checked_causes = {EVENTS_WAIT, *(result.incident for result in rows.results)}
    checked_causes |= {*map(refusal_cause, status.refused_versions())}
    decision = rows.last_decision
    if decision and decision.verdict == "bad":
        checked_causes.add(decision.cause)
    open_alerts = [
        alert
        for alert in rows.open_alerts(now)
        # Where nobody is asked any more, nothing waits.
        if status.spec.promotion.approval or not alert["cause"].endswith(WAITS)
    ]
    alerts = [
        alert
        for alert in rows.alerts
        if not alert["delivered"]
        or (alert in open_alerts and alert["cause"] not in checked_causes)
    ]
    if not alerts:
        yield CheckResult(name="alerts", kind="alerts", words="none other")
    for alert in alerts:
        task, failed, _ = alert["cause"].partition(FAILED)
        dag, _, _ = task.partition(".")
        details = alert_details(alert)
        remedy = f"For the decision: `gyre decide {model} --explain`"
        if alert["cause"].startswith(ROLLOUT):
            remedy = f"For its steps: `gyre ledger {model}`"
        link = f"/status/{model}#heard"
        if alert["cause"].endswith(WAITS):
            remedy = "Approve or reject it in Airflow, in the run that waits."
            link = f"airflow/dags/approve_{model}/runs"
        if failed:
            link = f"airflow/dags/{dag}/runs"
            remedy = (
                "Read the log of the failed task; fix the cause, then clear the task."
            )
        first = time_text(datetime.fromisoformat(alert["first"]))
        words = f"{alert['message']} (since {first}; seen: {alert['count']})"
        if not alert["delivered"]:
            words = f"not delivered: {words}"
            remedy = "Compare the addresses in GYRE_ALERT_URLS with the receivers'."
        yield CheckResult(
            name="alerts",
            kind=details.drift_type if details else dag,
            status="alert",
            words=words,
            remedy=remedy,
            link=link,
        )


def _training(
    model: str, run: RunPage | DeletedExperiment | None, now: datetime
) -> CheckResult:
    if isinstance(run, DeletedExperiment):
        return CheckResult(
            name="last training",
            kind="training",
            status="alert",
            words=f"no training of {model} can start: {run.words}",
            remedy=run.remedy,
            link="mlflow/",
        )
    if run is None:
        return CheckResult(
            name="last training",
            kind="waiting",
            status="unknown",
            words="no training yet",
            remedy=f"`gyre train {model}`",
            link=f"airflow/dags/train_{model}/runs",
        )
    outcome = run.tags.get("outcome") or run.tags.get("gate") or "no outcome yet"
    end = f"ended {time_text(run.ended)}" if run.ended else "goes on"
    is_recent = now - (run.ended or now) < REFUSED_FOR
    is_refused = outcome.startswith("refused") and is_recent
    has_failed = run.status in {"FAILED", "KILLED"}
    remedy = "Production is unchanged. The model card names the gate."
    if has_failed:
        remedy = f"Open its run. After the fix: `gyre train {model}`"
    return CheckResult(
        name="last training",
        kind="training",
        status="alert" if has_failed or is_refused else "ok",
        words=f"training of {model} for {run.tags.get('reason')}: {run.status.lower()}, {end}: "
        f"{outcome}",
        remedy=remedy,
        link=run.address,
    )
