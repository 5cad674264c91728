"""What Prometheus reads of the loop: figures of rows and runs, taken when it asks.

Times are seconds since 1970. What is not known has no sample: it is never 0.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from core.monitoring_spec import PSI, Monitoring
from feature_repo.dataset_summary import DatasetSummary
from feature_repo.freshness import LATE
from mlflow_server.records import ModelRows
from mlflow_server.window_details import QUANTILES, WindowDetails
from monitoring.console.status import ModelStatus

Add = Callable[..., None]
METRICS = {
    "alerts_open": "Alerts seen within 3 hours; of a version only while it is in a role.",
    "alerts_undelivered": "Alerts that no address has taken.",
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
    summaries: Sequence[DatasetSummary] = (),
    programs: Mapping[str, tuple[float, int]] | None = None,
) -> bytes:
    """programs: CPU seconds and bytes of memory."""
    registry = CollectorRegistry()
    gauges: dict[str, Gauge] = {}

    def add(name: str, value: float, **labels: str) -> None:
        if name not in gauges:
            meaning = METRICS[name]
            gauges[name] = Gauge(f"gyre_{name}", meaning, [*labels], registry=registry)
        gauges[name].labels(**labels).set(value)

    for status in statuses:
        add_model = partial(add, model=status.spec.name)
        _add_sources(add_model, status, now)
        if status.rows.value:
            _add_rows(add_model, status.rows.value, status.spec.monitoring, now)
            _add_quantiles(add_model, status.rows.value.details or WindowDetails())
    for summary in summaries:
        _add_dataset(add, summary)
    meaning = METRICS["cpu_seconds_total"]
    seconds = Counter("gyre_cpu_seconds_total", meaning, ["program"], registry=registry)
    for program, (cpu, memory) in (programs or {}).items():
        seconds.labels(program).inc(cpu)
        add("memory_bytes", memory, program=program)
    return generate_latest(registry)


def _add_sources(add: Add, status: ModelStatus, now: datetime) -> None:
    add("feature_age_promise_seconds", LATE.total_seconds())
    sources = {"database": status.rows, "mlflow": status.runs, "features": status.freshness}
    for source, reading in sources.items():
        if reading.at:
            add("observed_timestamp_seconds", reading.at.timestamp(), source=source)
    if version := (status.aliases.value or {}).get("production"):
        add("production_version", 1, told_by="mlflow", version=version)
    if run := status.runs.value:
        add("last_training_timestamp_seconds", run.started.timestamp(), status=run.status)
    for fresh in status.freshness.value or ():
        dataset = fresh.dataset
        add("source_silence_promise_seconds", fresh.silence.total_seconds(), dataset=dataset)
        if fresh.newest:
            add("source_silence_seconds", (now - fresh.newest).total_seconds(), dataset=dataset)


def _add_rows(add: Add, rows: ModelRows, limits: Monitoring, now: datetime) -> None:
    add("alerts_open", len(rows.open_alerts(now)))
    add("alerts_undelivered", len(rows.undelivered()))
    for action, at in rows.last.items():
        add("last_decision_timestamp_seconds", at.timestamp(), action=action)
    if row := rows.newest("production"):
        add("last_promotion_timestamp_seconds", row.time.timestamp())
        if row.to_version:
            add("production_version", 1, told_by="ledger", version=row.to_version)
    if not rows.decisions:
        return
    newest = rows.decisions[-1]
    add("last_monitoring_run_timestamp_seconds", newest.as_of.timestamp())
    add("verdict", 1, version=newest.version, verdict=newest.verdict)
    for feature in limits.acted_on(newest.figures):
        add("drift_psi_limit", limits.psi_significant, feature=feature)
    for name, value in newest.figures.items():
        kind, _, metric = name.partition("_")
        if name.startswith(PSI):
            add("drift_psi", value, feature=name.removeprefix(PSI))
        elif kind in {"online", "backfilled"}:
            add("performance", value, kind=kind, metric=metric)
        elif name == "entities":
            add("window_entities", value)


def _add_quantiles(add: Add, details: WindowDetails) -> None:
    of = {"window": details.quantiles, "reference": details.reference_quantiles}
    for kind, columns in of.items():
        for feature, values in columns.items():
            for share, value in zip(QUANTILES, values, strict=True):
                add(f"{kind}_quantile", value, feature=feature, quantile=f"{share}")


def _add_dataset(add: Add, summary: DatasetSummary) -> None:
    rows, aside = sum(summary.rows.values()), sum(summary.quarantined.values())
    if rows + aside:
        add("data_quality_ratio", rows / (rows + aside), dataset=summary.dataset)
    if summary.validated:
        add("data_validation_passed", summary.passed, dataset=summary.dataset)
