"""Metrics that Prometheus reads: sums over all workers, including workers that have ended.

Each process counts in files of its own in the folder that `PROMETHEUS_MULTIPROC_DIR` names, which
must be set before this module is imported (`serving.__main__`).
"""

import collections
import os
from functools import cache

from prometheus_client import Counter, Gauge, Histogram, values

if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
    # A worker is not forked. To ask for its number at every count takes a tenth of an answer's time.
    _PROCESS = os.getpid()
    values.ValueClass = values.MultiProcessValue(lambda: _PROCESS)  # type: ignore[no-untyped-call]

BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

REQUESTS = Counter("gyre_requests", "Requests answered.", ["model", "route", "status"])
VERSION = ["model", "version", "role"]
PREDICTIONS = Counter("gyre_predictions", "Rows scored.", [*VERSION, "features_from"])
FAILURES = Counter("gyre_prediction_failures", "Predictions that failed.", VERSION)
PREDICTION_SECONDS = Histogram(
    "gyre_prediction_seconds",
    "Seconds from arrival to the log.",
    VERSION,
    buckets=BUCKETS,
)
OVERLOADED = Counter("gyre_overloaded", "Requests turned away because too many wait.")
SHADOW_DROPPED = Counter(
    "gyre_shadow_dropped", "Rows that the shadow skipped.", ["model"]
)
WATERMARK_AGE = Gauge(
    "gyre_feature_watermark_age_seconds",
    "Now minus the time up to which features are complete; NaN: unknown.",
    ["model"],
    multiprocess_mode="mostrecent",
)
EVENTS = Counter("gyre_events", "Events put on the stream.", ["dataset"])
EVENTS_REFUSED = Counter(
    "gyre_events_refused",
    "Requests with events that are answered with 422; reason: pydantic's word for the first error.",
    ["dataset", "reason"],
)
LOG_FAILURES = Counter("gyre_log_failures", "Rows that could not be written.", ["log"])
INBOX_FAILURES = Counter("gyre_inbox_failures", "Failed transfers of log files to S3.")
OUTBOX_FAILURES = Counter(
    "gyre_outbox_failures", "Failed attempts to send predictions to their topic."
)
OUTBOX_BYTES = Gauge(
    "gyre_outbox_bytes",
    "Size of the predictions that are not on their topic yet.",
    multiprocess_mode="livemostrecent",  # one worker sends
)
MODEL_INFO = Gauge(
    "gyre_model_info",
    "1 for the version in a role, 0 once it left.",
    VERSION,
    multiprocess_mode="livemostrecent",  # a killed worker cannot set its gauge to 0
)
SWAPS = Counter("gyre_model_swaps", "Changes of the version that answers.", ["model"])
LOG_LAG = Gauge(
    "gyre_log_lag_seconds",
    "Longest wait for the disk, in seconds.",
    ["log"],
    multiprocess_mode="livemax",
)
PYFUNC_PROCESSES = Gauge(
    "gyre_pyfunc_processes",
    "Processes of versions that are not ONNX, over all workers; ended ones do not count.",
    ["model", "version"],
    multiprocess_mode="livesum",
)
REFUSED = Counter(
    "gyre_model_refused", "Versions refused, each reason once.", ["model"]
)
UNREADABLE_FEATURES = Counter(
    "gyre_unreadable_features",
    "Rows whose stored values are not of the types expected.",
)
_timer = cache(PREDICTION_SECONDS.labels)
_counts = collections.Counter[tuple[Counter, tuple[str, ...]]]()


def count(meter: Counter, *labels: str) -> None:
    """Count in memory until `hand_over`. A kill loses the counts since."""
    _counts[meter, labels] += 1


def observe(model: str, version: str, role: str, seconds: float) -> None:
    """Add the time of a request to `PREDICTION_SECONDS`."""
    _timer(model, version, role).observe(seconds)


def hand_over() -> None:
    """Add the counts to Prometheus's files, once a second rather than at each answer."""
    for (meter, labels), number in _counts.items():
        meter.labels(*labels).inc(number)
    _counts.clear()
