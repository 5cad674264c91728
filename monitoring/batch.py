"""Batch scores as a window of predictions: a model that is seldom asked is watched on these."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from monitoring.collect import ANSWERS, PREDICTIONS
from monitoring.verdict import FEWEST
from monitoring.window import LENGTH, Window, window
from training.batch import scores

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from datetime import datetime

    from stack.settings import Settings

BATCH = "batch"
"""Role of a row, and where its features are from."""


def or_batch(
    asked: Window,
    settings: Settings,
    model: str,
    version: str,
    registered: Collection[str],
    features: Mapping[str, str],
    until: datetime,
) -> Window:
    """Return `asked`, or if too few asked for a verdict the window of batch scores, if larger.

    The arguments after `settings` are those that `asked` was taken with.
    """
    if len(asked.rows) >= FEWEST:
        return asked
    scored = batch(settings, model, until)
    found = window(scored, model, version, registered, features, until)
    if len(found.rows) <= len(asked.rows):
        return asked
    few = Counter({"asked, but too few for a verdict": len(asked.rows)})
    return Window(found.rows, dict(Counter(asked.left_out) + Counter(found.left_out) + few))


def batch(settings: Settings, model: str, until: datetime) -> pa.Table:
    """Rows of `predictions` for what was scored as of the last 24 hours up to `until`.

    Each is as if its entity had asked at its `as_of`.
    """
    days = [f"{each:%Y-%m-%d}" for each in (until - LENGTH, until)]
    found = scores(settings).read(where=(pc.field("model") == model) & pc.field("day").isin(days))
    n = found.num_rows
    said = {
        "request_id": pc.binary_join_element_wise(BATCH, found["day"], found["entity"], "/"),
        "role": pa.repeat(BATCH, n),
        "received": found["as_of"],
        "features_from": pa.repeat(BATCH, n),
        "in_population": pa.repeat(True, n),  # noqa: FBT003  (nobody else is scored)
    }
    schema = pa.schema([PREDICTIONS.field(name) for name in (*ANSWERS, "features")])
    columns = {name: found[name] for name in schema.names if name not in said}
    return pa.table(columns | said).select(schema.names).cast(schema)
