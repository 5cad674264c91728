"""What Prometheus reads.

Imported before Feast, which turns on the client's multi-process files for who imports it later.
"""

from prometheus_client import Counter, Gauge, Histogram

BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

REQUESTS = Counter("gyre_requests", "Requests answered.", ["model", "route", "status"])
SECONDS = Histogram(
    "gyre_request_seconds", "Time to the answer.", ["model", "route"], buckets=BUCKETS
)
PREDICTIONS = Counter("gyre_predictions", "Rows scored.", ["model", "version", "features_from"])
FAILURES = Counter("gyre_prediction_failures", "Predictions that failed.", ["model", "version"])
WATERMARK_AGE = Gauge(
    "gyre_feature_watermark_age_seconds",
    "Now minus the time up to which features are complete; NaN: unknown.",
    ["model"],
)
SOURCE_SILENCE = Gauge(
    "gyre_source_silence_seconds",
    "Now minus the event time of the dataset's newest row; NaN: unknown.",
    ["dataset"],
)
EVENTS = Counter(
    "gyre_events", "Events sent; of refused ones, the requests.", ["dataset", "outcome"]
)
LOG_FAILURES = Counter("gyre_log_failures", "Rows that could not be written.", ["log"])
TORN_LINES = Counter("gyre_log_torn_lines", "Lines skipped when a log was read.")
MODEL_INFO = Gauge("gyre_model_info", "1 for the version that answers.", ["model", "version"])
REFUSED = Counter("gyre_model_refused", "Versions refused, each reason once.", ["model"])
FEATURE_FALLBACKS = Counter(
    "gyre_feature_fallbacks", "Rows that Feast's own reader was to answer.", ["reason"]
)
