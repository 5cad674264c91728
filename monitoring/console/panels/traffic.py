"""Figures of a minute of traffic, from the counters of serving's replicas; pure functions."""

from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timedelta
from itertools import pairwise
from math import inf

from prometheus_client.parser import text_string_to_metric_families

REQUESTS = "gyre_requests_total"
SECONDS = "gyre_prediction_seconds_bucket"
ROWS = "gyre_predictions_total"
EVENTS = "gyre_events_total"
LABELS = {
    REQUESTS: "status",
    SECONDS: "le",
    ROWS: "features_from",
    EVENTS: "dataset",
}
"""The counters that are read, and the label whose values are counted apart."""
TOTAL = ""
QUANTILES = (0.5, 0.95, 0.99)
Counts = Counter[tuple[str, str, str]]
"""Counts by counter, model (of events: none) and value of the label; TOTAL: of all values."""
Figures = list[float | None]


def counts_of(text: str) -> Counts:
    """Return the counters in the text of /metrics, without those of shadows, which answer nobody."""
    counts = Counts()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            label = LABELS.get(sample.name)
            labels = sample.labels
            if label and labels.get("role") != "shadow":
                for value in (labels[label], TOTAL):
                    counts[sample.name, labels.get("model", ""), value] += int(
                        sample.value
                    )
    return counts


def rates(samples: Mapping[datetime, Counts]) -> Counts:
    """Return how much a replica's counters increase in a minute.

    A counter that is less than before, or gone, tells of a restart, since which all count from 0.

    Args:
        samples: The counters at some moments, the oldest first.

    Returns:
        Rates by counter; none where all samples are of one moment.

    """
    increases = Counts()
    for before, after in pairwise(samples.values()):
        increases.update(after)
        if before <= after:
            increases.subtract(before)
    # Rounded, as samples are some milliseconds less or more apart: counts of a minute stay whole.
    minutes = round((max(samples) - min(samples)) / timedelta(minutes=1), 2)
    if not minutes:
        return Counts()
    return Counts({series: count / minutes for series, count in increases.items()})


def quantile(share: float, buckets: Mapping[float, float]) -> float | None:
    """Return a quantile of a histogram as Prometheus's histogram_quantile does.

    Args:
        share: 0.99 for p99.
        buckets: Number of values up to each bound, of which the last is infinite.

    Returns:
        The place in its bucket by linear interpolation, as if values were spread evenly; above the
        last finite bound that bound; None: there is no value.

    """
    rank = share * max(buckets.values(), default=0)
    lower_bound = 0.0
    lower_count = 0.0
    for bound, count in sorted(buckets.items()):
        if count and count >= rank:
            width = 0.0 if bound == inf else bound - lower_bound
            return lower_bound + width * (rank - lower_count) / (count - lower_count)
        lower_bound = bound
        lower_count = count
    return None


def traffic_of(model: str, counts: Counts) -> Figures:
    """Return the figures of a model.

    Args:
        model: Its name.
        counts: Rates of all replicas together.

    Returns:
        Requests a minute; p50, p95 and p99 in ms; answers 429 and 503 a minute; percent of the
        predictions from defaults. None: nothing was predicted.

    """
    buckets = {
        float(label): count
        for (counter, name, label), count in counts.items()
        if counter == SECONDS and name == model and label
    }
    rows = counts[ROWS, model, TOTAL]
    quantiles = [quantile(share, buckets) for share in QUANTILES]
    return [
        counts[REQUESTS, model, TOTAL],
        *(
            None if seconds is None else round(1000 * seconds, 3)
            for seconds in quantiles
        ),
        counts[REQUESTS, model, "429"],
        counts[REQUESTS, model, "503"],
        round(100 * counts[ROWS, model, "defaults"] / rows, 2) if rows else None,
    ]
