"""What came true of a model's predictions, and which lines of feedback do not count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from monitoring.collect import outcomes, predictions

if TYPE_CHECKING:
    from datetime import datetime

    from stack.settings import Settings


@dataclass(frozen=True)
class Settled:
    """known: the actual of each request that has one. left_out: lines that do not count, by why.

    Of several lines for one request the first received stands; the others are "told again" or
    "contradicting the first". A line names no model: one of an unknown request is every model's.
    A count is of everything told up to the moment of the look, not of its 24 hours: the next look
    counts the same lines again, and gives the same figure until somebody tells more.
    """

    known: dict[str, float]
    left_out: dict[str, int]


def settle(
    settings: Settings, lines: pa.Table, model: str, until: datetime, *, classes: bool
) -> Settled:
    """Join what was told up to `until` with what `model` answered.

    lines: every line of the feedback files, in the columns of `outcomes` (most are stored there
    too). classes: what comes true of `model` is 0 or 1.
    """
    told = _all_lines(outcomes(settings).read(), lines)
    if told.empty:
        return Settled({}, {})
    requests = pa.array(told["request_id"].unique(), pa.string())
    # Of the requests that lines name alone: there may be millions of predictions.
    asked = predictions(settings).read(
        columns=["request_id", "model", "received"], where=pc.field("request_id").isin(requests)
    )
    asked = asked.rename_columns(["request_id", "model", "asked"]).to_pandas()
    told = told.merge(asked, how="left", on="request_id")
    told = told[(told["received"] <= until) & (told["model"].isna() | (told["model"] == model))]
    unknown, early = told["model"].isna(), told["received"] < told["asked"]
    odd = ~unknown & ~early & ~told["actual"].isin([0, 1]) & classes
    fitting = told[~unknown & ~early & ~odd]
    first = fitting.drop_duplicates("request_id")
    known = dict(zip(first["request_id"], first["actual"], strict=True))
    later = fitting.drop(first.index)
    against = later["actual"] != later["request_id"].map(known)
    counts = {
        "of an unknown request": unknown.sum(),
        "dated before the prediction": early.sum(),
        "neither 0 nor 1": odd.sum(),
        "told again": (~against).sum(),
        "contradicting the first": against.sum(),
    }
    return Settled(known, {why: int(count) for why, count in counts.items() if count})


def _all_lines(*tables: pa.Table) -> pd.DataFrame:
    """Return the lines of all tables by time of receipt; one that two of them hold only once."""
    frames = [table.to_pandas() for table in tables]
    # Numbered, because a line that stands twice in one file was told twice.
    frames = [rows.assign(nth=rows.groupby(list(rows.columns)).cumcount()) for rows in frames]
    every: pd.DataFrame = pd.concat(frames).drop_duplicates()
    return every.sort_values("received", kind="stable", ignore_index=True)
