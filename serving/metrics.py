"""What Prometheus reads. One registry per application, so that two can live in one process.

Imported before Feast, which turns on the client's multi-process files for who imports it later.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Metrics:
    def __init__(self) -> None:
        self.registry = own = CollectorRegistry()
        self.requests = Counter(
            "gyre_requests", "Requests answered.", ["model", "route", "status"], registry=own
        )
        self.seconds = Histogram(
            "gyre_request_seconds", "Time to the answer.", ["model", "route"],
            buckets=BUCKETS, registry=own,
        )  # fmt: skip
        self.predictions = Counter(
            "gyre_predictions", "Rows scored.", ["model", "version", "features_from"], registry=own
        )
        self.watermark_age = Gauge(
            "gyre_feature_watermark_age_seconds",
            "Now minus the time up to which features are complete; NaN: unknown.",
            ["model"], registry=own,
        )  # fmt: skip
        self.log_failures = Counter(
            "gyre_log_failures", "Rows that could not be written.", ["log"], registry=own
        )
        self.torn_lines = Counter(
            "gyre_log_torn_lines", "Lines skipped when a log was read.", registry=own
        )
        self.model_info = Gauge(
            "gyre_model_info", "1 for the version that answers.", ["model", "version"], registry=own
        )
        self.refused = Counter(
            "gyre_model_refused", "Versions refused, each reason once.", ["model"], registry=own
        )

    def total(self, counter: Counter, **labels: str) -> int:
        """Sum of a counter over all series that carry these labels."""
        samples = (s for metric in counter.collect() for s in metric.samples)
        return int(
            sum(
                s.value
                for s in samples
                if s.name.endswith("_total") and labels.items() <= s.labels.items()
            )
        )
