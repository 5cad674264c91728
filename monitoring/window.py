"""A window: the last prediction of each entity in a stretch of time, and what was left out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow.compute as pc

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from datetime import datetime

    import pyarrow as pa

LENGTH = timedelta(hours=24)


@dataclass(frozen=True)
class Window:
    """Rows: the features, `score`, `entity`, `as_of`; one per entity, population only.

    score: the probability, or the number predicted. A number is a float (null: nan), a text an
    object (null: None).

    left_out: predictions that do not count, by why: of a version that is not registered (any
    more), of another version, outside the population, without an entity, answered from defaults,
    with other features than the version's (or text for a number), or followed by a later one of
    the same entity.
    """

    rows: pd.DataFrame
    left_out: dict[str, int]


def window(
    predictions: pa.Table,
    model: str,
    version: str,
    registered: Collection[str],
    features: Mapping[str, str],
    until: datetime,
) -> Window:
    """Take what `version` answered in the 24 hours up to `until`.

    registered: all versions of the model. features: their types (`string` or a number's) by name.
    """
    seen = predictions.filter(
        (pc.field("model") == model)
        & (pc.field("received") > until - LENGTH)
        & (pc.field("received") <= until)
    ).to_pandas()
    parsed = seen["features"].map(json.loads)
    reasons = pd.Series("", index=seen.index)
    for why, bad in (
        ("of an unknown version", ~seen["version"].isin(registered)),
        ("of another version", seen["version"] != version),
        ("outside the population", ~seen["in_population"].astype(bool)),
        ("without an entity", seen["entity"].isna()),
        ("answered from defaults", seen["features_from"] == "defaults"),
        ("with other features", ~parsed.map(lambda row: _fits(row, features)).astype(bool)),
    ):
        reasons = reasons.mask((reasons == "") & bad, why)
    counted = seen[reasons == ""].sort_values("received", kind="stable")
    last = counted.drop_duplicates("entity", keep="last")
    left_out = {str(why): int(n) for why, n in reasons[reasons != ""].value_counts().items()}
    if len(last) < len(counted):
        left_out["followed by a later one"] = len(counted) - len(last)
    rows = pd.DataFrame(list(parsed[last.index]), columns=list(features), index=last.index)
    # Numbers even where every one of them is null, which pandas takes for objects.
    rows = rows.astype({name: float for name, kind in features.items() if kind != "string"})
    scores = last["probability"].fillna(last["prediction"])
    rows = rows.assign(score=scores, entity=last["entity"], as_of=last["as_of"])
    return Window(rows.reset_index(drop=True), left_out)


def _fits(row: Mapping[str, Any], features: Mapping[str, str]) -> bool:
    return set(row) == set(features) and all(
        value is None or isinstance(value, str) == (features[name] == "string")
        for name, value in row.items()
    )
