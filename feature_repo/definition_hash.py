"""What features mean, as hashes: the SQL of views, the code of on-demand functions, the schema.

Comments, the order of columns, names inside a query and redundant subqueries do not count. A Python
function that an expression calls (`ibis.udf`) counts by its name.
"""

import json
from contextlib import suppress
from functools import cache
from typing import Any

import feast
import ibis
import pyarrow as pa
import sqlglot
from ibis.expr.operations import InMemoryTable
from sqlglot.optimizer import optimize
from sqlglot.optimizer.canonicalize_internal_names import canonicalize_internal_names

from feature_repo.datasets import dataset_of
from feature_repo.definition import Dataset, Expression, raw_schema
from feature_repo.on_demand import UnsupportedError, digest, function_source
from feature_repo.service_views import service_views

DEFINITION_TAG = "definition."
"""Beginning of the tags of a run or version that say what its features mean."""
HASH_DIGITS = 16


def definitions(
    store: feast.FeatureStore,
    service: feast.FeatureService,
) -> dict[str, str]:
    """Return a hash of each view that `service` reads, and of its schema, by name.

    Of a view, only the features count that are read.
    """
    views = service_views(store, service)
    hashes: dict[str, str] = {}
    schema: dict[str, Any] = {}
    for view in views.stored:
        features = _types(view.projection.features)
        schema[view.name] = {
            "features": features,
            "keys": _types(view.entity_columns),
            "time_to_live": str(view.ttl),
        }
        dataset = dataset_of(view.name)
        if dataset is not None:
            unread = _types(view.features).keys() - features.keys()
            hashes[view.name] = view_definition(dataset, view.name, frozenset(unread))
    for view in views.on_demand:
        schema[view.name] = {
            "features": _types(view.projection.features),
            "mode": view.mode,
        }
        hashes[view.name] = _function_hash(view.feature_transformation)
    text = json.dumps(schema, sort_keys=True)
    hashes[f"service.{service.name}"] = _hash(text)
    return hashes


def view_definition(
    dataset: Dataset,
    view: str,
    unread: frozenset[str] = frozenset(),
) -> str:
    """Return the hash of the SQL of `view`, without its features `unread`."""
    expression = dataset.views[view]
    schema = raw_schema(dataset)
    return _sql_hash(expression, schema, unread)


@cache
def _sql_hash(
    expression: Expression,
    schema: pa.Schema,
    unread: frozenset[str],
) -> str:
    raw = ibis.table(ibis.Schema.from_pyarrow(schema), name="raw")
    rows = expression(raw)
    ignored = unread.intersection(rows.columns)
    sql = ibis.to_sql(rows.drop(*ignored), dialect="duckdb")
    columns = dict.fromkeys(raw.columns, "unknown")
    query = optimize(
        str(sql),
        schema={"raw": columns},
        dialect="duckdb",
        validate_qualify_columns=False,
    )
    for select in query.find_all(sqlglot.exp.Select):
        is_operand = isinstance(select.parent, sqlglot.exp.SetOperation)
        if not is_operand:  # its columns count by their position
            select.expressions.sort(key=lambda column: column.alias_or_name)
    plain_query = sqlglot.parse_one(query.sql(comments=False))
    texts = [canonicalize_internal_names(plain_query).sql()]
    for table in rows.op().find(InMemoryTable):
        frame = table.data.to_frame()
        texts.append(frame.to_json())
    return _hash("\n".join(texts))


def _function_hash(transformation: Any) -> str:
    source = transformation.udf_string
    name = transformation.udf.__name__
    with suppress(UnsupportedError):  # a lambda counts as it is written
        source = function_source(source, name)
    return _hash(source)


def _types(fields: list[feast.Field]) -> dict[str, str]:
    return {field.name: str(field.dtype) for field in fields}


def _hash(text: str) -> str:
    return digest(text)[:HASH_DIGITS]
