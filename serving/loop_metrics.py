"""What Prometheus reads of the loop: figures of rows and runs, taken when it asks.

Moments are seconds since 1970. What is not known has no sample: it is never 0.
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from feature_repo.freshness import LATE
from mlflow_server.registry import PRODUCTION
from serving.loop import Known, Rows
from stack.spec import PSI, ModelSpec

Sample = tuple[tuple[str, ...], float]
KINDS = "logged", "replay"


class LoopMetrics(Collector):
    """Samples of `found`, as they were when it was read."""

    def __init__(self, found: Sequence[Known], now: datetime) -> None:
        self._found = [(known.spec.name, samples(known, now)) for known in found]

    def collect(self) -> Iterator[GaugeMetricFamily]:
        for name, (help_text, labels) in FAMILIES.items():
            family = GaugeMetricFamily(f"gyre_{name}", help_text, labels=["model", *labels])
            for model, of_model in self._found:
                for own, value in of_model.get(name, ()):
                    family.add_metric([model, *own], value)
            yield family


FAMILIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "drift_psi": ("PSI of the newest window; none of one with too few entities.", ("feature",)),
    "drift_psi_limit": ("PSI from which the loop acts on the feature.", ("feature",)),
    "performance": (
        "Metric of the version, as of the newest look: of logged predictions, or of a replay.",
        ("kind", "metric"),
    ),
    "window_entities": ("Entities in the newest window.", ()),
    "verdict": ("1: the newest verdict.", ("version", "verdict")),
    "last_look_timestamp_seconds": ("When the monitor last looked.", ()),
    "last_decision_timestamp_seconds": ("When it last decided so.", ("action",)),
    "alerts_open": ("Alerts whose cause goes on.", ()),
    "alerts_undelivered": ("Alerts that nobody has heard yet.", ()),
    "last_promotion_timestamp_seconds": ("When production last changed.", ()),
    "last_training_timestamp_seconds": ("When the newest training began.", ("status",)),
    "production_version": ("1: the version in production, as told there.", ("told_by", "version")),
    "feature_age_promise_seconds": ("How old features may be.", ()),
    "source_silence_promise_seconds": ("How long its source may be silent.", ("dataset",)),
    "observed_timestamp_seconds": ("When this was read, by source.", ("source",)),
}


def samples(known: Known, now: datetime) -> dict[str, list[Sample]]:
    """Values by family, with the labels after the model's; of what is not known, none."""
    rows, runs, freshness = known.rows.value, known.runs.value, known.freshness.value
    promotion = rows.promotion if rows else None
    told = {
        "mlflow": known.aliases.value and known.aliases.value.get(PRODUCTION),
        "ledger": promotion and promotion.to_version,
    }
    seen = {"database": known.rows.at, "mlflow": known.runs.at, "features": known.freshness.at}
    found: dict[str, list[Sample]] = {
        "production_version": [((by, version), 1.0) for by, version in told.items() if version],
        "feature_age_promise_seconds": [((), LATE.total_seconds())],
        "observed_timestamp_seconds": [((by,), at.timestamp()) for by, at in seen.items() if at],
    }
    if rows:
        found |= _of_rows(known.spec, rows, now)
    if runs and (run := runs.training):
        found["last_training_timestamp_seconds"] = [((run.status,), run.started.timestamp())]
    if freshness:
        silence = freshness.silence.total_seconds()
        found["source_silence_promise_seconds"] = [((known.spec.dataset,), silence)]
    return found


def _of_rows(spec: ModelSpec, rows: Rows, now: datetime) -> dict[str, list[Sample]]:
    found: dict[str, list[Sample]] = {
        "alerts_open": [((), len(rows.open_alerts(now)))],
        "alerts_undelivered": [((), len(rows.undelivered))],
        "last_decision_timestamp_seconds": [
            ((action,), at.timestamp()) for action, at in rows.last.items()
        ],
    }
    if rows.promotion:
        found["last_promotion_timestamp_seconds"] = [((), rows.promotion.time.timestamp())]
    if not rows.decisions:
        return found
    newest, limits = rows.decisions[-1], spec.drift
    acted_on = limits.acted_on(newest.figures)
    return found | {
        "drift_psi": [
            ((name.removeprefix(PSI),), value) for name, value in _starting(newest.figures, PSI)
        ],
        "drift_psi_limit": [((name,), limits.significant) for name in acted_on],
        "performance": [
            ((kind, name.removeprefix(f"{kind}_")), value)
            for kind in KINDS
            for name, value in _starting(newest.figures, f"{kind}_")
        ],
        "window_entities": [((), v) for _, v in _starting(newest.figures, "entities")],
        "verdict": [((newest.version, newest.verdict), 1.0)],
        "last_look_timestamp_seconds": [((), newest.as_of.timestamp())],
    }


def _starting(figures: dict[str, float], start: str) -> Iterable[tuple[str, float]]:
    return ((name, value) for name, value in figures.items() if name.startswith(start))
