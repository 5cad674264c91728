"""Would the version before do better on the very rows that the version in production does badly on?

Else going back would only bring an older model: the world has changed for both, and learning is the
answer. Better is: by each metric that is too bad, and surely by the loss, row by row.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
from scipy.stats import ttest_rel

from mlflow_server.registry import Registry
from monitoring.collect import predictions
from monitoring.verdict import SURELY
from stack.spec import LOWER_IS_BETTER
from training.evaluate import as_trained, champion_scores
from training.frame import canonical
from training.metrics import all_metrics, losses

if TYPE_CHECKING:
    from collections.abc import Sequence

    from monitoring.performance import Judged
    from monitoring.verdict import Finding
    from stack.settings import Settings
    from stack.spec import ModelSpec

log = logging.getLogger(__name__)


def outdone(
    settings: Settings,
    spec: ModelSpec,
    version: str,
    previous: str,
    seen: Judged,
    found: Sequence[Finding],
) -> str | None:
    """Say by how much `previous` is better than `version` on `seen`; None if it is not, surely.

    found: what `version` is too bad at. Whatever cannot be compared is no reason to go back.
    """
    try:
        own, rows, registry = spec, seen.rows, Registry(settings)
        if "request_id" in rows.column_names:
            own = as_trained(spec, registry.served(registry.version(spec.name, version))[0])
            rows = _frame(settings, own, rows)
        ours, theirs = (champion_scores(settings, own, each, rows) for each in (version, previous))
    except Exception as exc:  # noqa: BLE001  (whatever it is, nothing is known of the other)
        log.warning("%s: version %s could not be compared: %s", spec.name, previous, exc)
        return None
    y = rows["label"].to_numpy()
    better = ttest_rel(losses(y, theirs), losses(y, ours), alternative="less").pvalue
    if not better < SURELY:
        return None
    now, then = (all_metrics(y, each, spec.costs) for each in (ours, theirs))
    told = []
    for name in (each.feature for each in found):
        gain = then[name] - now[name]
        if not (gain < 0 if name in LOWER_IS_BETTER else gain > 0):
            return None
        told.append(f"{name} {now[name]:.3f}, of version {previous} {then[name]:.3f}")
    return f"{seen.performance.kind}, {seen.performance.about}: {', '.join(told)}"


def _frame(settings: Settings, own: ModelSpec, answered: pa.Table) -> pa.Table:
    """Rows of `predictions` with `label` as a frame of the features logged, if they are all."""
    single = next(iter(own.entity_key)) if len(own.entity_key) == 1 else None
    label = dict(
        zip(*(answered[name].to_pylist() for name in ("request_id", "label")), strict=True)
    )
    asked = pc.field("request_id").isin([*label])
    columns = ["request_id", "entity", "as_of", "features"]
    rows = [
        ({single: row["entity"]} if single else json.loads(row["entity"]))
        | {"event_timestamp": row["as_of"], "label": label[row["request_id"]]}
        | given
        for row in predictions(settings).read(columns=columns, where=asked).to_pylist()
        if (given := json.loads(row["features"])).keys() == own.features.keys()
    ]
    return canonical(own, pa.Table.from_pylist(rows))
