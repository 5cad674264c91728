"""Why a version must go back: it fails, is slow, its scores collapsed, or the one before is better.

What is unknown is no harm.
"""

import json
import logging
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike
from scipy.stats import ttest_rel

from core.monitoring_spec import Monitoring
from core.settings import Settings
from core.spec import ModelSpec, entity_of
from core.training_spec import LOWER_IS_BETTER
from mlflow_server.registry import PRODUCTION, Registry
from mlflow_server.served_model import ServedModel
from monitoring.checks.performance import Judged, judge_performance
from monitoring.checks.result import PREDICTED, SCORE, CheckResult
from monitoring.collect import predictions
from monitoring.run import MonitoringRun, Reference
from monitoring.serving_status import Counted, did
from training.evaluate import as_trained, version_scores
from training.frame import canonical
from training.metrics import Labels, Scored, all_metrics, losses

log = logging.getLogger(__name__)
SHARES = {0.5: "half", 0.95: "95 %"}
"""Of the predictions. Both must be slower: a few large requests lengthen the tail alone."""


def failures(run: MonitoringRun, _reference: Reference | None) -> Iterator[CheckResult]:
    counted = run.past.counted(run.counters or {}, run.spec.monitoring.counted_hours)
    failed, asked = counted.failed, counted.failed + counted.answered
    yield from _harmful(failing(run.spec.monitoring, failed, asked))


def latency(run: MonitoringRun, _reference: Reference | None) -> Iterator[CheckResult]:
    counters = run.counters or {}
    now = run.past.counted(counters, run.spec.monitoring.counted_hours)
    before = did(f"{PRODUCTION} {run.past.previous}", counters, {})
    yield from _harmful(slow(run.spec.monitoring, now, before))


def collapsed_scores(
    run: MonitoringRun, reference: Reference | None
) -> Iterator[CheckResult]:
    limits, rows = run.spec.monitoring, run.window.rows
    threshold = reference.said.threshold if reference else run.spec.threshold
    usual: ArrayLike = reference.population[SCORE] if reference else []
    yield from _harmful(collapsed(limits, rows[SCORE], threshold, usual))
    if reference and PREDICTED in rows and len(rows) >= limits.fewest:
        sides, before = rows[PREDICTED].unique(), reference.population[PREDICTED]
        share = np.mean(before == sides[0])
        if len(sides) == 1 and share ** len(rows) < limits.collapse_chance:
            yield from _harmful(f"every one of {len(rows)} predictions is {sides[0]}")


def previous_is_better(
    run: MonitoringRun, reference: Reference
) -> Iterator[CheckResult]:
    """Compare with the version before on the rows on which this one is too bad.

    If both are, the world has changed, and learning is the answer.
    """
    if run.past.previous is None:
        return
    for judged in run.judged:
        results = judge_performance(
            run.spec.monitoring, judged.performance, reference.evaluated
        )
        metrics = [result.feature for result in results if result.status == "bad"]
        if metrics:
            yield from _harmful(
                compare_previous(run, run.past.previous, judged, metrics)
            )


def failing(limits: Monitoring, failed: int, asked: int) -> str | None:
    """Say how many predictions failed, if too many did."""
    if asked >= limits.fewest_requests and failed >= limits.failures * asked:
        return f"{failed} of {asked} predictions failed"
    return None


def collapsed(
    limits: Monitoring, scores: ArrayLike, threshold: float | None, reference: ArrayLike
) -> str | None:
    """Say whether scores are all one, or all on one side of the threshold, unlike the reference's.

    threshold: None where numbers are predicted, which have no sides.
    """
    values, usual = np.asarray(scores), np.asarray(reference)
    if len(values) < limits.fewest:
        return None
    if values.max() == values.min():
        share = np.mean(usual == values[0]) if len(usual) else 0.0
        # One that always was one score is harmful for it, however usual.
        if share == 1 or share ** len(values) < limits.collapse_chance:
            return f"every one of {len(values)} scores is {values[0]:.6g}"
    if threshold is None or not len(usual):
        return None
    sides = values >= threshold
    if sides.all() or not sides.any():
        share = np.mean((usual >= threshold) == sides[0])
        if share ** len(values) < limits.collapse_chance:
            name = "positive" if sides[0] else "negative"
            return f"every one of {len(values)} predictions is {name}"
    return None


def slow(limits: Monitoring, now: Counted, before: Counted) -> str | None:
    """Say by how much a version takes longer now than the one before it did, if it does."""
    if min(now.timed, before.timed) < limits.fewest_requests:
        return None
    parts = []
    for share, words in SHARES.items():
        ours, theirs = now.quantile(share) or 0.0, before.quantile(share) or 0.0
        if ours < max(limits.slower * theirs, theirs + limits.slower_seconds):
            return None
        parts.append(f"{words} within {ours * 1000:.0f} ms, was {theirs * 1000:.0f} ms")
    return f"predictions are slow: {', '.join(parts)}"


def compare_previous(
    run: MonitoringRun, previous: str, judged: Judged, metrics: Sequence[str]
) -> str | None:
    """Say by how much the version before is better: by each metric, and surely by the loss."""
    spec = run.spec
    try:
        y, ours, theirs = _both_scores(run, previous, judged.rows)
    except Exception as exc:  # noqa: BLE001  (whatever it is, nothing is known of the other)
        log.warning(
            "%s: version %s could not be compared: %s", spec.name, previous, exc
        )
        return None
    p = ttest_rel(losses(y, theirs), losses(y, ours), alternative="less").pvalue
    if not p < spec.monitoring.significance:
        return None
    now, then = (all_metrics(y, scored, spec.costs) for scored in (ours, theirs))
    parts = []
    for name in metrics:
        gain = then[name] - now[name]
        if not (gain < 0 if name in LOWER_IS_BETTER else gain > 0):
            return None
        parts.append(f"{name} {now[name]:.3f}, of version {previous} {then[name]:.3f}")
    return f"{judged.performance.kind}, {judged.performance.about}: {', '.join(parts)}"


def _both_scores(
    run: MonitoringRun, previous: str, rows: pa.Table
) -> tuple[Labels, Scored, Scored]:
    """What came true of the rows, and what the version and the one before say of them."""
    spec = run.spec
    if "request_id" in rows.column_names:
        registry = Registry(run.settings)
        served, _ = registry.served(registry.version(spec.name, run.version))
        spec = as_trained(spec, served)
        rows = _frame(run.settings, spec, served, rows)
    ours = version_scores(run.settings, spec, run.version, rows)
    return (
        rows["label"].to_numpy(),
        ours,
        version_scores(run.settings, spec, previous, rows),
    )


def _frame(
    settings: Settings, spec: ModelSpec, served: ServedModel, rows: pa.Table
) -> pa.Table:
    """Rows of `predictions` with `label` as a frame of the features logged, if they are all."""
    labels = (
        rows.select(["request_id", "label"])
        .to_pandas()
        .set_index("request_id")["label"]
    )
    wanted = pc.field("request_id").isin(rows["request_id"].combine_chunks())
    columns = ["request_id", "entity", "request_data", "as_of", "features"]
    found = []
    for row in predictions(settings).read(columns=columns, where=wanted).to_pylist():
        features, key = json.loads(row["features"]), dict.fromkeys(spec.entity_key)
        if row["entity"] is not None:
            key |= entity_of(spec.entity_key, row["entity"])
        if features.keys() == spec.features.keys():
            about = {
                "event_timestamp": row["as_of"],
                "label": labels[row["request_id"]],
            }
            data = dict.fromkeys(served.lookup.request_data) | json.loads(
                row["request_data"]
            )
            found.append(data | key | features | about)
    return canonical(spec, pa.Table.from_pylist(found), served.lookup.request_data)


def _harmful(reason: str | None) -> Iterator[CheckResult]:
    if reason is not None:
        yield CheckResult("harm", status="harmful", remark=reason, kind="harm")
