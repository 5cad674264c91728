"""Features of the rows that had arrived by a moment: what could be known online then.

A view's table knows every row that has come since, also those of an earlier event time. Here the
views' expressions are computed again, for some entities, from the raw rows that had arrived.
"""

from collections.abc import Iterator
from typing import Any

import ibis
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureView

from feature_repo.datasets import dataset_of
from feature_repo.engines import connected
from feature_repo.features import open_raw, raw_table
from feature_repo.service import PublishedService, field_types


def arrived_features(service: PublishedService, questions: pa.Table) -> pa.Table:
    """Compute a service's features from the rows that had arrived.

    A row that was corrected since counts from its correction on, as its former content is gone.

    Args:
        service: Its features are computed. Each of its views is of a dataset.
        questions: Join keys and request data; `_known_at`, by when rows had arrived;
            event_timestamp, at or before which a view's row is dated; both aware UTC.

    Returns:
        `questions` with the features, in their order.

    """
    numbers = pa.array(range(questions.num_rows), pa.int64())
    questions = questions.append_column("_number", numbers)
    table = questions
    for view in service.stored:
        answers = pa.concat_tables(_answers(service, view, questions))
        places = pc.index_in(numbers, answers["_number"].combine_chunks())
        for name, kind in field_types(view.projection.features).items():
            column = answers[name].take(places)
            if kind == "timestamp":  # as Feast stores it
                column = pc.floor_temporal(column, unit="second")
            table = table.append_column(name, column)
    for view in service.on_demand:
        outputs = view.transform_arrow(table)
        for feature in view.projection.features:
            table = table.append_column(feature.name, outputs[feature.name])
    return table


def _answers(
    service: PublishedService, view: FeatureView, questions: pa.Table
) -> Iterator[pa.Table]:
    """Yield `_number` and features of the questions to which a view has a row."""
    dataset = dataset_of(view.name)
    assert dataset is not None  # noqa: S101  (see above)
    expression = dataset.views[view.name]
    raw = raw_table(service.settings, dataset)
    with connected() as connection:
        # Ibis makes no table of an Arrow table itself, only of an expression.
        rows = ibis.memtable(questions)
        asked = connection.create_table("asked", rows.select(rows.columns), temp=True)
        raw_rows = open_raw(raw, connection=connection)
        raw_rows = raw_rows.semi_join(asked, dataset.entity)
        raw_rows = connection.create_table("own_rows", raw_rows, temp=True)
        arrivals = raw_rows.select(_arrival="ingested_at").distinct()
        asked = asked.asof_join(arrivals, asked["_known_at"] >= arrivals["_arrival"])
        asked = connection.create_table("dated", asked, temp=True)
        moments = connection.to_pyarrow(asked.select("_arrival").distinct())
        for moment in moments["_arrival"].to_pylist():
            part = asked.filter(asked["_arrival"] == moment)
            arrived_rows = raw_rows.filter(raw_rows.ingested_at <= moment)
            newest = _newest_rows(view, expression(arrived_rows), part)
            yield connection.to_pyarrow(newest)


def _newest_rows(view: FeatureView, rows: ir.Table, asked: ir.Table) -> ir.Table:
    """Return the newest row at or before each question's time, if it is young enough."""
    keys = list(view.join_keys)
    names = [feature.name for feature in view.projection.features]
    newest = rows.select(*keys, *names, _time=rows.event_timestamp)
    asked = asked.select("_number", "event_timestamp", *keys)
    joined: Any = asked.asof_join(
        newest, asked.event_timestamp >= newest["_time"], keys
    )
    is_young = joined["_time"].notnull()
    if view.ttl:
        is_young &= joined["_time"] + ibis.literal(view.ttl) >= joined.event_timestamp
    return joined.filter(is_young).select("_number", *names)
