"""Metrics of the loop for Prometheus: figures of rows and runs, read when it asks.

Times are seconds since 1970. A figure that is not known has no sample: it is never 0.
"""

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from feature_engine.ingest.record import DatasetRecord
from mlflow_server.alerts import (
    DEFAULT_SEVERITY,
    alert_details,
    is_muted,
    is_undelivered,
)
from mlflow_server.api.pages import RunPage
from mlflow_server.roles import PRODUCTION
from monitoring.console.loop import LoopStatus
from monitoring.console.status import Alert, ModelRows, ModelStatus
from stack.supervisor import Usage

Add = Callable[..., None]
METRICS = {
    "alerts_open": "Alerts seen within 3 hours; of a version only while it is in a role.",
    "alerts_undelivered": "Alerts that no address has taken, without muted ones.",
    "check_limit": "The value from which a check acts; none where it does not act.",
    "check_status": "1 for the status of a check that acts and is not ok.",
    "check_value": "The figure of a check in the newest monitoring run.",
    "consumer_lag_seconds": "Age of the oldest request of events that waits for the consumer; 0: none.",
    "cpu_seconds_total": "Processor time of a program of the stack, with all its processes.",
    "dag_runs": "Runs of one of Gyre's DAGs that have ended in 30 days, by state.",
    "dag_success_ratio": "Share of gyre_dag_runs that succeeded.",
    "data_quality_ratio": "Share of a dataset's rows of the last 60 days that were not set aside.",
    "data_validation_passed": "0: the last batch broke a rule as a whole and was stopped.",
    "feature_age_promise_seconds": "The most that gyre_feature_watermark_age_seconds may be.",
    "incident": "1 for an open incident that is not muted, only where GYRE_ALERT_URLS is empty.",
    "last_decision_timestamp_seconds": "When an action was last decided.",
    "last_monitoring_run_timestamp_seconds": "The moment that the newest monitoring run is as of.",
    "last_promotion_timestamp_seconds": "When a version came into production.",
    "last_training_timestamp_seconds": "When the newest training started.",
    "memory_bytes": "Memory of a program of the stack; what its processes share counts once.",
    "observed_timestamp_seconds": "When a source (database, mlflow, features) was read.",
    "production_version": "1 for the version in production, told by mlflow or the ledger.",
    "reproduced_ratio": "Share of gyre_reproduced_versions that were the same when last built again.",
    "reproduced_versions": "Versions that were built again by `gyre reproduce`.",
    "source_silence_promise_seconds": "How long a dataset may have no new event.",
    "source_silence_seconds": "Now minus a dataset's newest event.",
    "verdict": "1 for the newest verdict.",
}
"""Metric → its meaning; names are without `gyre_`."""


def loop_metrics(
    loop: LoopStatus,
    records: Iterable[DatasetRecord],
    usages: Mapping[str, Usage],
    incidents: Iterable[Alert],
) -> bytes:
    """Return all samples in Prometheus's text format.

    Args:
        loop: The loop at one moment.
        records: Records of datasets.
        usages: Processor time and memory of the programs of a stack on one machine.
        incidents: Open alerts that no address of Gyre's is told of.

    """
    registry = CollectorRegistry()
    gauges: dict[str, Gauge] = {}

    def add(name: str, value: float, **labels: str) -> None:
        if name not in gauges:
            gauges[name] = Gauge(
                f"gyre_{name}", METRICS[name], [*labels], registry=registry
            )
        gauges[name].labels(**labels).set(value)

    for name, status in loop.models.items():
        add_model = partial(add, model=name)
        _add_sources(add_model, status)
        if status.rows.value:
            _add_rows(add_model, status.rows.value, loop.now)
    for dag, counts in (loop.dag_runs.value or {}).items():
        _add_dag(partial(add, dag=dag), counts)
    for record in records:
        _add_dataset(partial(add, dataset=record.dataset), record, loop.now)
    for dataset, lag in loop.lags.items():
        add("consumer_lag_seconds", lag.seconds(loop.now), dataset=dataset)
    _add_incidents(add, incidents, loop.now)
    if usages:
        cpu_seconds = Counter(
            "gyre_cpu_seconds_total",
            METRICS["cpu_seconds_total"],
            ["program"],
            registry=registry,
        )
        for program, usage in usages.items():
            cpu_seconds.labels(program).inc(usage.cpu_seconds)
            add("memory_bytes", usage.memory_bytes, program=program)
    return generate_latest(registry)


def _add_sources(add: Add, status: ModelStatus) -> None:
    age_limit = status.spec.monitoring.feature_age_limit
    add("feature_age_promise_seconds", age_limit.total_seconds())
    readings = {
        "database": status.rows,
        "mlflow": status.runs,
        "features": status.freshness,
    }
    for source, reading in readings.items():
        if reading.at:
            add("observed_timestamp_seconds", reading.at.timestamp(), source=source)
    version = (status.aliases.value or {}).get(PRODUCTION)
    if version:
        add("production_version", 1, told_by="mlflow", version=version)
    run = status.runs.value
    if isinstance(run, RunPage):
        started = run.started.timestamp()
        add("last_training_timestamp_seconds", started, status=run.status)
    outcomes = (status.reproduced.value or {}).values()
    if outcomes:
        add("reproduced_versions", len(outcomes))
        add("reproduced_ratio", sum(outcomes) / len(outcomes))


def _add_rows(add: Add, rows: ModelRows, now: datetime) -> None:
    add("alerts_open", len(rows.open_alerts(now)))
    undelivered = [alert for alert in rows.alerts if is_undelivered(alert, now)]
    add("alerts_undelivered", len(undelivered))
    for action, at in rows.last_moments().items():
        add("last_decision_timestamp_seconds", at.timestamp(), action=action)
    promotion = rows.newest(PRODUCTION)
    if promotion and promotion.to_version:
        add("last_promotion_timestamp_seconds", promotion.time.timestamp())
        add("production_version", 1, told_by="ledger", version=promotion.to_version)
    newest = rows.last_decision
    if newest:
        add("last_monitoring_run_timestamp_seconds", newest.as_of.timestamp())
        add("verdict", 1, version=newest.version, verdict=newest.verdict)
    for result in rows.results:
        if result.value is not None:
            add("check_value", result.value, check=result.name)
        if result.acts and result.limit is not None:
            add("check_limit", result.limit, check=result.name)
        if result.acts and result.status not in {"ok", "note"}:
            add("check_status", 1, check=result.name, status=result.status)


def _add_incidents(add: Add, incidents: Iterable[Alert], now: datetime) -> None:
    for alert in incidents:
        if not is_muted(alert, now):
            add(
                "incident",
                1,
                model=alert["model"],
                number=str(alert["sequence"]),
                severity=alert_details(alert).get("severity", DEFAULT_SEVERITY),
            )


def _add_dag(add: Add, counts: Mapping[str, int]) -> None:
    for state, count in counts.items():
        add("dag_runs", count, state=state)
    ended_count = sum(counts.values())
    if ended_count:
        add("dag_success_ratio", counts["success"] / ended_count)


def _add_dataset(add: Add, record: DatasetRecord, now: datetime) -> None:
    good_rows = sum(record.rows.values())
    rows = good_rows + sum(record.quarantined.values())
    if rows:
        add("data_quality_ratio", good_rows / rows)
    if record.as_of:
        add("data_validation_passed", record.passed)
    if record.newest:
        add("source_silence_promise_seconds", record.silence.total_seconds())
        add("source_silence_seconds", (now - record.newest).total_seconds())
