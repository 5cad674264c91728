"""How often a version failed and how long it took, as serving itself counts it."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite
from typing import TYPE_CHECKING

import httpx
from prometheus_client.parser import text_string_to_metric_families

from mlflow_server.registry import PRODUCTION

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.samples import Sample

    from stack.settings import Settings

FAILURES, ANSWERS = "gyre_prediction_failures_total", "gyre_predictions_total"
SECONDS = "gyre_prediction_seconds_bucket"


@dataclass(frozen=True)
class Counted:
    """Of one version in one role since serving started.

    timed: how many predictions were timed. within: how many of them took at most so many seconds,
    by bound, rising.
    """

    failed: int = 0
    timed: int = 0
    within: tuple[tuple[float, float], ...] = ()

    def since(self, earlier: Counted) -> Counted:
        """What came after `earlier`; all of it where serving has begun anew since."""
        before = dict(earlier.within)
        rows = tuple((bound, n - before.get(bound, 0)) for bound, n in self.within)
        new = Counted(self.failed - earlier.failed, self.timed - earlier.timed, rows)
        anew = min(new.failed, new.timed, *(n for _, n in rows)) < 0
        return self if anew else new

    def quantile(self, share: float) -> float | None:
        """Seconds within which `share` was done, on a line within its bucket; None without any.

        As Prometheus's histogram_quantile: beyond the last bound, that bound.
        """
        if not self.timed:
            return None
        below, done, wanted = 0.0, 0.0, share * self.timed
        for bound, count in self.within:
            if count >= wanted:
                return below + (bound - below) * (wanted - done) / (count - done)
            below, done = bound, count
        return below


def failures(settings: Settings, model: str, version: str) -> tuple[int, int]:
    """Predictions of `version` that failed, and how many were asked of it, since serving started.

    In production: what it did as shadow or challenger was judged by its rollout.

    (0, 0) where serving does not answer: what is unknown is no harm.
    """
    counted = dict.fromkeys((FAILURES, ANSWERS), 0.0)
    for sample in _samples(settings) or ():
        labels = (sample.labels.get("model"), sample.labels.get("version"))
        role = sample.labels.get("role", PRODUCTION)
        if sample.name in counted and (*labels, role) == (model, version, PRODUCTION):
            counted[sample.name] += sample.value
    failed = int(counted[FAILURES])
    return failed, failed + int(counted[ANSWERS])


def counts(settings: Settings, model: str) -> dict[str, Counted] | None:
    """By "role version" what serving counted of `model`; None where serving does not answer."""
    samples = _samples(settings)
    if samples is None:
        return None
    failed: dict[str, float] = {}
    within: dict[str, dict[float, float]] = {}
    for sample in samples:
        if sample.labels.get("model") != model or sample.name not in {FAILURES, SECONDS}:
            continue
        key = f"{sample.labels.get('role')} {sample.labels.get('version')}"
        if sample.name == FAILURES:
            failed[key] = failed.get(key, 0) + sample.value
        else:
            bounds, bound = within.setdefault(key, {}), float(sample.labels["le"])
            bounds[bound] = bounds.get(bound, 0) + sample.value
    return {
        key: _counted(int(failed.get(key, 0)), within.get(key, {}))
        for key in failed.keys() | within.keys()
    }


def _counted(failed: int, within: dict[float, float]) -> Counted:
    finite = tuple(sorted((bound, n) for bound, n in within.items() if isfinite(bound)))
    return Counted(failed, int(within.get(inf, 0)), finite)


def _samples(settings: Settings) -> Iterator[Sample] | None:
    try:
        text = httpx.get(f"{settings.serving_address}/metrics", timeout=5).raise_for_status().text
    except httpx.HTTPError:
        return None
    families = text_string_to_metric_families(text)
    return (sample for family in families for sample in family.samples)
