"""What Prometheus reads of the loop: figures of rows and runs, taken when it asks.

Times are seconds since 1970. What is not known has no sample: it is never 0.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from core.monitoring_spec import PSI, Monitoring
from feature_repo.broker import ConsumerLag
from feature_repo.dataset_record import FEATURE_AGE_LIMIT, DatasetRecord
from mlflow_server.records import ModelRows
from mlflow_server.window_details import QUANTILES, WindowDetails
from monitoring.console.status import ModelStatus

Add = Callable[..., None]
METRICS = {
    "alerts_open": "Alerts seen within 3 hours; of a version only while it is in a role.",
    "alerts_undelivered": "Alerts that no address has taken.",
    "consumer_lag_entries": "Requests of events that the consumer has not processed.",
    "consumer_lag_seconds": "Age of the oldest such request; 0: none waits.",
    "cpu_seconds_total": "CPU time of a program of the supervisor, with all its processes.",
    "data_quality_ratio": "Share of a dataset's rows of the last 60 days that were not set aside.",
    "data_validation_passed": "0: the last batch broke a rule as a whole and was stopped.",
    "drift_psi": "PSI of a feature or the score, newest window.",
    "drift_psi_limit": "The PSI from which the loop acts; none where it does not act.",
    "feature_age_promise_seconds": "The most that gyre_feature_watermark_age_seconds may be.",
    "last_decision_timestamp_seconds": "When an action was last decided.",
    "last_monitoring_run_timestamp_seconds": "The moment that the newest monitoring run is as of.",
    "last_promotion_timestamp_seconds": "When a version came into production.",
    "last_training_timestamp_seconds": "When the newest training started.",
    "memory_bytes": "Memory of such a program; what its processes share counts once.",
    "observed_timestamp_seconds": "When a source (database, mlflow, features) was read.",
    "performance": "A metric of the newest monitoring run; kind: online or backfilled.",
    "production_version": "1 for the version in production, told by mlflow or the ledger.",
    "reference_quantile": "Quantiles of features and score in the evaluated snapshots.",
    "source_silence_promise_seconds": "How long a dataset may have no new event.",
    "source_silence_seconds": "Now minus a dataset's newest event.",
    "verdict": "1 for the newest verdict.",
    "window_entities": "Entities of the newest window.",
    "window_quantile": "Quantiles of features and score in the newest window.",
}
"""Without `gyre_`."""


def loop_metrics(
    statuses: Sequence[ModelStatus],
    now: datetime,
    records: Sequence[DatasetRecord] = (),
    programs: Mapping[str, tuple[float, int]] | None = None,
    lags: Mapping[str, ConsumerLag] | None = None,
) -> bytes:
    """Return all samples in Prometheus's text format.

    Args:
        statuses: What is known of each model.
        now: Aware UTC.
        records: Of datasets.
        programs: CPU seconds and bytes of memory, by program.
        lags: Of the consumer, by dataset.

    """
    registry = CollectorRegistry()
    gauges: dict[str, Gauge] = {}

    def add(name: str, value: float, **labels: str) -> None:
        if name not in gauges:
            gauges[name] = Gauge(
                name=f"gyre_{name}",
                documentation=METRICS[name],
                labelnames=[*labels],
                registry=registry,
            )
        gauges[name].labels(**labels).set(value)

    for status in statuses:
        add_model = partial(add, model=status.spec.name)
        _add_sources(add_model, status, now)
        if status.rows.value:
            _add_rows(add_model, status.rows.value, status.spec.monitoring, now)
            _add_quantiles(add_model, status.rows.value.details or WindowDetails())
    for record in records:
        _add_dataset(add, record)
    for dataset, lag in (lags or {}).items():
        add("consumer_lag_entries", lag.entries, dataset=dataset)
        add("consumer_lag_seconds", lag.seconds(now), dataset=dataset)
    cpu_seconds = Counter(
        name="gyre_cpu_seconds_total",
        documentation=METRICS["cpu_seconds_total"],
        labelnames=["program"],
        registry=registry,
    )
    for program, (seconds, memory) in (programs or {}).items():
        cpu_seconds.labels(program).inc(seconds)
        add("memory_bytes", memory, program=program)
    return generate_latest(registry)


def _add_sources(add: Add, status: ModelStatus, now: datetime) -> None:
    add("feature_age_promise_seconds", FEATURE_AGE_LIMIT.total_seconds())
    readings = {
        "database": status.rows,
        "mlflow": status.runs,
        "features": status.freshness,
    }
    for source, reading in readings.items():
        if reading.at:
            add("observed_timestamp_seconds", reading.at.timestamp(), source=source)
    aliases = status.aliases.value or {}
    if "production" in aliases:
        add("production_version", 1, told_by="mlflow", version=aliases["production"])
    run = status.runs.value
    if run:
        add(
            "last_training_timestamp_seconds",
            run.started.timestamp(),
            status=run.status,
        )
    for record in status.freshness.value or ():
        if record.newest:
            name = record.dataset
            add(
                "source_silence_promise_seconds",
                record.silence.total_seconds(),
                dataset=name,
            )
            add(
                "source_silence_seconds",
                (now - record.newest).total_seconds(),
                dataset=name,
            )


def _add_rows(add: Add, rows: ModelRows, limits: Monitoring, now: datetime) -> None:
    add("alerts_open", len(rows.open_alerts(now)))
    add("alerts_undelivered", len(rows.undelivered()))
    for action, at in rows.last.items():
        add("last_decision_timestamp_seconds", at.timestamp(), action=action)
    promotion = rows.newest("production")
    if promotion:
        add("last_promotion_timestamp_seconds", promotion.time.timestamp())
        if promotion.to_version:
            add(
                "production_version",
                1,
                told_by="ledger",
                version=promotion.to_version,
            )
    if not rows.decisions:
        return
    decision = rows.decisions[-1]
    add("last_monitoring_run_timestamp_seconds", decision.as_of.timestamp())
    add(
        "verdict",
        1,
        version=decision.version,
        verdict=decision.verdict,
    )
    for feature in limits.acted_on(decision.figures):
        add("drift_psi_limit", limits.psi_significant, feature=feature)
    for name, value in decision.figures.items():
        kind, _, metric = name.partition("_")
        if name.startswith(PSI):
            add("drift_psi", value, feature=name.removeprefix(PSI))
        elif kind in {"online", "backfilled"}:
            add(
                "performance",
                value,
                kind=kind,
                metric=metric,
            )
        elif name == "entities":
            add("window_entities", value)


def _add_quantiles(add: Add, details: WindowDetails) -> None:
    columns_by_metric = {
        "window_quantile": details.quantiles,
        "reference_quantile": details.reference_quantiles,
    }
    for metric, columns in columns_by_metric.items():
        for feature, values in columns.items():
            for share, value in zip(QUANTILES, values, strict=True):
                add(
                    metric,
                    value,
                    feature=feature,
                    quantile=f"{share}",
                )


def _add_dataset(add: Add, record: DatasetRecord) -> None:
    good_rows = sum(record.rows.values())
    rows = good_rows + sum(record.quarantined.values())
    if rows:
        add("data_quality_ratio", good_rows / rows, dataset=record.dataset)
    if record.as_of:
        add("data_validation_passed", record.passed, dataset=record.dataset)
