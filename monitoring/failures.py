"""How often a version failed and how long it took, as serving itself counts it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from math import inf, isfinite
from typing import TYPE_CHECKING

import httpx
from pydantic import TypeAdapter

from mlflow_server.registry import PRODUCTION
from monitoring.serving_status import read_samples

if TYPE_CHECKING:
    from stack.settings import Settings

FAILURES, ANSWERS = "gyre_prediction_failures_total", "gyre_predictions_total"
SECONDS = "gyre_prediction_seconds_bucket"


@dataclass(frozen=True)
class Counted:
    """Of one version in one role since serving started.

    failed, answered: rows. timed: how many requests were timed. within: how many of them took at
    most so many seconds, by bound, rising.
    """

    failed: int = 0
    timed: int = 0
    within: tuple[tuple[float, float], ...] = ()
    answered: int = 0

    def since(self, earlier: Counted) -> Counted:
        """What came after `earlier`; all of it where serving has begun anew since."""
        before = dict(earlier.within)
        rows = tuple((bound, n - before.get(bound, 0)) for bound, n in self.within)
        new = Counted(
            self.failed - earlier.failed, self.timed - earlier.timed, rows,
            self.answered - earlier.answered,
        )  # fmt: skip
        anew = min(new.failed, new.timed, new.answered, *(n for _, n in rows)) < 0
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


COUNTS = TypeAdapter(dict[str, Counted])
"""What `counts` gives, as JSON."""


def counts(settings: Settings, model: str) -> dict[str, Counted] | None:
    """By "role version" what serving counted of `model`; None where serving does not answer."""
    try:
        samples = read_samples(settings)
    except httpx.HTTPError:
        return None
    found: defaultdict[str, defaultdict[tuple[str, float], float]]
    found = defaultdict(lambda: defaultdict(float))
    for name, labels, value, *_ in samples:
        if labels.get("model") == model and name in {FAILURES, ANSWERS, SECONDS}:
            key = f"{labels.get('role', PRODUCTION)} {labels.get('version')}"
            found[key][name, float(labels.get("le", inf))] += value
    return {key: _counted(each) for key, each in found.items()}


def _counted(found: defaultdict[tuple[str, float], float]) -> Counted:
    """found: by name and bound, which is infinite of what is no bucket."""
    within = sorted((bound, n) for (_, bound), n in found.items() if isfinite(bound))
    failed, timed, answered = (int(found[name, inf]) for name in (FAILURES, SECONDS, ANSWERS))
    return Counted(failed, timed, tuple(within), answered)
