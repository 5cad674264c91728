"""What Prometheus reads: sums over the workers and the keeper, ended workers included.

Each process counts in files of its own in the folder that `PROMETHEUS_MULTIPROC_DIR` names, which
must be set before this is imported (`serving.__main__`).
"""

import asyncio
import os
from bisect import bisect_left
from collections import Counter as Counted
from collections.abc import Iterable, Sequence
from typing import Literal

from prometheus_client import Counter, Gauge, Histogram, values

if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
    _PROCESS = os.getpid()  # never forked: asked at every count it is a tenth of an answer's time
    values.ValueClass = values.MultiProcessValue(lambda: _PROCESS)  # type: ignore[no-untyped-call]

NEWEST: Literal["mostrecent"] = "mostrecent"
"""Of a gauge that several processes set, the value set last."""
BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

REQUESTS = Counter("gyre_requests", "Requests answered.", ["model", "route", "status"])
SECONDS = Histogram(
    "gyre_request_seconds", "Time to the answer.", ["model", "route"], buckets=BUCKETS
)
VERSION = ["model", "version", "role"]
PREDICTIONS = Counter("gyre_predictions", "Rows scored.", [*VERSION, "features_from"])
FAILURES = Counter("gyre_prediction_failures", "Predictions that failed.", VERSION)
PREDICTION_SECONDS = Histogram(
    "gyre_prediction_seconds",
    "From a request's arrival until its rows are scored and on file.",
    VERSION,
    buckets=BUCKETS,
)
OVERLOADED = Counter("gyre_overloaded", "Requests turned away because too many wait.")
SHADOW_DROPPED = Counter("gyre_shadow_dropped", "Rows that no shadow had time for.", ["model"])
WATERMARK_AGE = Gauge(
    "gyre_feature_watermark_age_seconds",
    "Now minus the time up to which features are complete; NaN: unknown.",
    ["model"],
    multiprocess_mode=NEWEST,
)
SOURCE_SILENCE = Gauge(
    "gyre_source_silence_seconds",
    "Now minus the event time of the dataset's newest row; NaN: unknown.",
    ["dataset"],
    multiprocess_mode=NEWEST,
)
EVENTS = Counter(
    "gyre_events", "Events sent; of refused ones, the requests.", ["dataset", "outcome"]
)
LOG_FAILURES = Counter("gyre_log_failures", "Rows that could not be written.", ["log"])
TORN_LINES = Counter("gyre_log_torn_lines", "Lines skipped when a log was read.")
MODEL_INFO = Gauge(
    "gyre_model_info", "1 for the version in a role, 0 once it left.", VERSION,
    multiprocess_mode="livemostrecent",  # nobody sets to 0 what a killed worker held
)  # fmt: skip
SWAPS = Counter("gyre_model_swaps", "Changes of the version that answers.", ["model"])
LOG_LAG = Gauge(
    "gyre_log_lag_seconds",
    "How long the oldest row of the last flush had waited to be on disk.",
    ["log"],
    multiprocess_mode="livemax",
)
REFUSED = Counter("gyre_model_refused", "Versions refused, each reason once.", ["model"])
UNREADABLE_FEATURES = Counter(
    "gyre_unreadable_features", "Rows whose stored values are not of the types expected."
)


WRITE_SECONDS = 0.02


class Tally:
    """Counts and times of one kind, written to this process's file fifty times a second.

    For the event loop: each written by itself is a tenth of an answer's time.
    """

    def __init__(self, counter: Counter, histogram: Histogram, *of: str) -> None:
        """of: the labels of `histogram`; `counter` has one more, what is counted."""
        self._counter, self._of, self._histogram = counter, of, histogram.labels(*of)
        self._what, self._seconds, self._due = list[object](), list[float](), False

    def add(self, what: Iterable[object], seconds: Iterable[float]) -> None:
        self._what += what
        self._seconds += seconds
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_later(WRITE_SECONDS, self._write)

    def _write(self) -> None:
        what, seconds = self._what, self._seconds
        self._what, self._seconds, self._due = [], [], False
        for each, count in Counted(what).items():
            self._counter.labels(*self._of, each).inc(count)
        _observe_all(self._histogram, seconds)


def _observe_all(histogram: Histogram, values: Sequence[float]) -> None:
    """As `observe` for each of `values`, with one write for each bucket they fall into."""
    buckets = histogram._buckets  # noqa: SLF001  (there is no public way to add several)
    for at, count in Counted(bisect_left(BUCKETS, value) for value in values).items():
        buckets[at].inc(count)
    histogram._sum.inc(sum(values))  # noqa: SLF001
