"""How often a version failed, as serving itself counts it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from stack.settings import Settings

FAILURES, ANSWERS = "gyre_prediction_failures_total", "gyre_predictions_total"


def failures(settings: Settings, model: str, version: str) -> tuple[int, int]:
    """Predictions of `version` that failed, and how many were asked of it, since serving started.

    (0, 0) where serving does not answer: what is unknown is no harm.
    """
    try:
        text = httpx.get(f"{settings.serving_address}/metrics", timeout=5).raise_for_status().text
    except httpx.HTTPError:
        return 0, 0
    counted = dict.fromkeys((FAILURES, ANSWERS), 0.0)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = (sample.labels.get("model"), sample.labels.get("version"))
            if sample.name in counted and labels == (model, version):
                counted[sample.name] += sample.value
    failed = int(counted[FAILURES])
    return failed, failed + int(counted[ANSWERS])
