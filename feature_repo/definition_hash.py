"""Hashes of definitions: the SQL of feature views, and the code of on-demand functions.

Comments, the order of columns, names inside a query and redundant subqueries do not count. A Python
function that an expression calls (`ibis.udf`) counts by its name.
"""

from functools import cache
from typing import Any

import ibis
import pyarrow as pa
import sqlglot
from google.protobuf.json_format import MessageToJson
from ibis.expr.operations import InMemoryTable
from sqlglot.optimizer import optimize
from sqlglot.optimizer.canonicalize_internal_names import canonicalize_internal_names

from core.tables.query import quoted
from feature_repo.definition import Dataset, Expression, raw_schema
from feature_repo.on_demand import digest, function_source


def view_definition(
    dataset: Dataset,
    view: str,
    unread: frozenset[str] = frozenset(),
) -> str:
    """Return the hash of the SQL of `view`, without its features `unread`."""
    return _sql_hash(dataset.views[view], raw_schema(dataset), unread)


@cache
def _sql_hash(
    expression: Expression,
    schema: pa.Schema,
    unread: frozenset[str],
) -> str:
    raw = ibis.table(schema, name="raw")
    rows = expression(raw)
    columns = [name for name in rows.columns if name not in unread]
    sql = ibis.to_sql(rows.select(columns), dialect="duckdb")
    query = optimize(
        str(sql),
        schema={"raw": dict.fromkeys(map(quoted, raw.columns), "unknown")},
        dialect="duckdb",
        validate_qualify_columns=False,
    )
    for select in query.find_all(sqlglot.exp.Select):
        is_operand = isinstance(select.parent, sqlglot.exp.SetOperation)
        if not is_operand:  # the columns of an operand count by their position
            select.expressions.sort(key=lambda column: column.alias_or_name)
    plain_query = sqlglot.parse_one(query.sql(comments=False))
    texts = [canonicalize_internal_names(plain_query).sql()]
    for table in rows.op().find(InMemoryTable):
        frame = table.data.to_frame()
        texts.append(frame.to_json())
    return digest("\n".join(texts))


def function_definition(transformation: Any) -> str:
    """Return the hash of the function of an on-demand view; a lambda counts as it is written."""
    text = transformation.udf_string
    source = function_source(text, transformation.udf.__name__)
    return digest(source or text)


def source_definition(view: Any) -> str:
    """Return the hash of source and transformation of a view of plain Feast."""
    source = view.batch_source.to_proto()
    for name in ("meta", "description", "tags", "owner", "project"):
        source.ClearField(name)
    parts = [MessageToJson(source, sort_keys=True)]
    transformation = getattr(view, "feature_transformation", None)
    if transformation is not None:
        parts.append(function_definition(transformation))
    return digest("\n".join(parts))
