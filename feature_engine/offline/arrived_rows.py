"""Features of the rows that had arrived by a moment: what could be known online then.

A view's table knows every row that has come since, also those of an earlier event time. Here the
views' expressions are computed again, for some entities, from the raw rows that had arrived.
"""

from collections.abc import Iterator

import ibis
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureView

from feature_engine.engines.duckdb_engine import duckdb_connection
from feature_engine.engines.engine import temporary_table
from feature_engine.offline.raw import open_raw, raw_table
from feature_repo.datasets import dataset_of
from feature_repo.definition import OWN_PREFIX
from feature_repo.extensions.asof_join import asof_join, dated_rows
from feature_repo.published.service import PublishedService

KNOWN_AT = f"{OWN_PREFIX}known_at"
NUMBER = f"{OWN_PREFIX}number"
ARRIVAL = f"{OWN_PREFIX}arrival"


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
        for feature in view.projection.features:
            column = answers[feature.name].take(places)
            table = table.append_column(feature.name, column)
    for view in service.on_demand:
        outputs = view.transform_arrow(table)
        for feature in view.projection.features:
            table = table.append_column(feature.name, outputs[feature.name])
    return table


def _answers(
    service: PublishedService, view: FeatureView, questions: pa.Table
) -> Iterator[pa.Table]:
    """Yield questions, some rows of the dataset had arrived by, with a view's features."""
    dataset = dataset_of(view.name)
    assert dataset is not None  # noqa: S101  (see above)
    expression = dataset.views[view.name]
    names = [feature.name for feature in view.projection.features]
    raw = raw_table(service.settings, dataset)
    with duckdb_connection() as connection:
        # Ibis makes no table of an Arrow table itself, only of an expression.
        rows = ibis.memtable(questions)
        asked = temporary_table(connection, rows.select(rows.columns))
        raw_rows = open_raw(raw, connection=connection)
        raw_rows = raw_rows.semi_join(asked, dataset.entity)
        raw_rows = temporary_table(connection, raw_rows)
        arrivals = raw_rows.select({ARRIVAL: "ingested_at"}).distinct()
        asked = asked.asof_join(arrivals, asked[KNOWN_AT] >= arrivals[ARRIVAL])
        asked = temporary_table(connection, asked)
        moments = connection.to_pyarrow(asked.select(ARRIVAL).distinct())
        for moment in moments[ARRIVAL].to_pylist():
            part = asked.filter(asked[ARRIVAL] == moment)
            arrived_rows = raw_rows.filter(raw_rows.ingested_at <= moment)
            view_rows = dated_rows(expression(arrived_rows), view, names)
            answers = asof_join(part, "event_timestamp", view_rows, view)
            yield connection.to_pyarrow(answers)
