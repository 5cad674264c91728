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
from feature_repo.definition import OWN_PREFIX
from feature_repo.engines import connected
from feature_repo.features import open_raw, raw_table
from feature_repo.service import PublishedService, field_types

KNOWN_AT = f"{OWN_PREFIX}known_at"
NUMBER = f"{OWN_PREFIX}number"
ARRIVAL = f"{OWN_PREFIX}arrival"
TIME = f"{OWN_PREFIX}time"


def arrived_features(service: PublishedService, questions: pa.Table) -> pa.Table:
    """Compute a service's features from the rows that had arrived.

    A row that was corrected since counts from its correction on, as its former content is gone.

    Args:
        service: Its features are computed. Each of its views is of a dataset.
        questions: Join keys and request data; KNOWN_AT, by when rows had arrived;
            event_timestamp, at or before which a view's row is dated; both aware UTC.

    Returns:
        `questions` with the features, in their order.

    """
    numbers = pa.array(range(questions.num_rows), pa.int64())
    questions = questions.append_column(NUMBER, numbers)
    table = questions
    for view in service.stored:
        answers = pa.concat_tables(_answers(service, view, questions))
        places = pc.index_in(numbers, answers[NUMBER].combine_chunks())
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
    """Yield NUMBER and features of the questions to which a view has a row."""
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
        arrivals = raw_rows.select(**{ARRIVAL: "ingested_at"}).distinct()
        asked = asked.asof_join(arrivals, asked[KNOWN_AT] >= arrivals[ARRIVAL])
        asked = connection.create_table("dated", asked, temp=True)
        moments = connection.to_pyarrow(asked.select(ARRIVAL).distinct())
        for moment in moments[ARRIVAL].to_pylist():
            part = asked.filter(asked[ARRIVAL] == moment)
            arrived_rows = raw_rows.filter(raw_rows.ingested_at <= moment)
            newest = _newest_rows(view, expression(arrived_rows), part)
            yield connection.to_pyarrow(newest)


def _newest_rows(view: FeatureView, rows: ir.Table, asked: ir.Table) -> ir.Table:
    """Return the newest row at or before each question's time, if it is young enough."""
    keys = list(view.join_keys)
    names = [feature.name for feature in view.projection.features]
    newest = rows.select(*keys, *names, **{TIME: rows.event_timestamp})
    asked = asked.select(NUMBER, "event_timestamp", *keys)
    joined: Any = asked.asof_join(newest, asked.event_timestamp >= newest[TIME], keys)
    is_young = joined[TIME].notnull()
    if view.ttl:
        is_young &= joined[TIME] + ibis.literal(view.ttl) >= joined.event_timestamp
    return joined.filter(is_young).select(NUMBER, *names)
