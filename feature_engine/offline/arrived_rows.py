"""Features of the rows that had arrived by a moment, as they could be known online then.

A view's table has every row that has come since, also rows of an earlier event time. Here the
expressions of views are computed again, for some entities, from the raw rows that had arrived.
"""

from collections.abc import Iterator

import ibis
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureView

from core.errors import DataError
from feature_engine.engines.duckdb_engine import duckdb_connection
from feature_engine.engines.engine import temporary_table
from feature_engine.offline.raw import open_raw, raw_table
from feature_repo.datasets import dataset_of
from feature_repo.definition import KNOWN_AT, OWN_PREFIX
from feature_repo.extensions.asof_join import asof_join, dated_rows
from feature_repo.published.service import PublishedService

NUMBER = f"{OWN_PREFIX}number"
ARRIVAL = f"{OWN_PREFIX}arrival"


def arrived_features(service: PublishedService, questions: pa.Table) -> pa.Table:
    """Compute a service's features from the rows that had arrived.

    A row that was corrected since counts from its correction on, as its former content is gone.

    Args:
        service: A service whose views are all of datasets.
        questions: Join keys and request data, with two times (aware UTC): rows count that had
            arrived by KNOWN_AT, and rows of a view that are dated at or before event_timestamp.

    Returns:
        `questions` with the features, in their order.

    """
    numbers = pa.arange(0, questions.num_rows)
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
    """Yield the questions before which a row of the dataset had arrived, with a view's features.

    Raises:
        DataError: No dataset has the view.

    """
    dataset = dataset_of(view.name)
    if dataset is None:
        raise DataError(f"{view.name}: no dataset of the project has this view")
    expression = dataset.views[view.name]
    names = [feature.name for feature in view.projection.features]
    raw = raw_table(service.settings, dataset)
    with duckdb_connection() as connection:
        # Ibis makes a temporary table from an expression, and not from an Arrow table.
        rows = ibis.memtable(questions)
        question_rows = temporary_table(connection, rows.select(rows.columns))
        raw_rows = open_raw(connection, raw)
        raw_rows = raw_rows.semi_join(question_rows, dataset.entity)
        raw_rows = temporary_table(connection, raw_rows)
        arrivals = raw_rows.select({ARRIVAL: "ingested_at"}).distinct()
        question_rows = question_rows.asof_join(
            arrivals, question_rows[KNOWN_AT] >= arrivals[ARRIVAL]
        )
        question_rows = temporary_table(connection, question_rows)
        moments = connection.to_pyarrow(question_rows.select(ARRIVAL).distinct())
        for moment in moments[ARRIVAL].to_pylist():
            moment_rows = question_rows.filter(question_rows[ARRIVAL] == moment)
            arrived_rows = raw_rows.filter(raw_rows.ingested_at <= moment)
            view_rows = dated_rows(expression(arrived_rows), view, names)
            answers = asof_join(moment_rows, "event_timestamp", view_rows, view)
            yield connection.to_pyarrow(answers)
