"""A window: the last prediction of each entity in a stretch of time, and what was left out.

DuckDB looks at every row of it without keeping them: first which rows count, then their features.
"""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from monitoring.collect import COMPACT, PREDICTIONS, spread_out

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime

    from numpy.typing import NDArray

    from stack.storage import Table

LENGTH = timedelta(hours=24)
MEMORY = "600MB"
"""What DuckDB may hold; beyond it, it spills to a temporary folder."""
BITS = 32
"""Of an `id` that say which row of its file it is."""
WITHIN = "received > '{since}' AND received <= '{until}'"
PART = "SELECT *, {first} + file_row_number AS id FROM read_parquet({file}, file_row_number = true)"
# Rows that were collected before there were these columns have their features as JSON alone.
ROWS = """
WITH every AS NOT MATERIALIZED (
  (SELECT NULL::VARCHAR AS names, NULL::DOUBLE[] AS numbers, NULL::VARCHAR[] AS texts LIMIT 0)
  UNION ALL BY NAME {parts})
SELECT * FROM every WHERE names IS NOT NULL
UNION ALL BY NAME
SELECT * REPLACE (to_json(list_sort(json_keys(features)))::VARCHAR AS names, [{numbers}] AS numbers,
  [{texts}] AS texts)
FROM every WHERE names IS NULL"""
LAST = """
CREATE TEMP TABLE last AS
WITH seen AS (
  SELECT entity, received, id, CASE
      WHEN NOT list_contains($registered, version) THEN 'of an unknown version'
      WHEN version <> $version THEN 'of another version'
      WHEN NOT in_population THEN 'outside the population'
      WHEN entity IS NULL THEN 'without an entity'
      WHEN features_from = 'defaults' THEN 'answered from defaults'
      WHEN NOT (names = $names AND {fits}) THEN 'with other features' END AS why
  FROM ({rows}) WHERE model = $model AND received > $since AND received <= $until)
SELECT why, CASE WHEN why IS NULL THEN entity END AS entity, count(*) AS n,
  max((epoch_us(received)::HUGEINT << 63) + id) AS newest
FROM seen GROUP BY ALL"""
COUNTS = """
SELECT coalesce(why, 'followed by a later one'),
  (sum(n) - count(*) FILTER (why IS NULL))::BIGINT AS left_out
FROM last GROUP BY why HAVING left_out > 0"""
ENTITIES = """
SELECT entity, (newest & 9223372036854775807::HUGEINT)::BIGINT AS id FROM last WHERE why IS NULL
ORDER BY id"""
READ = ["probability", "prediction", "as_of", "numbers", "texts"]


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
    predictions: pa.Table | Table,
    model: str,
    version: str,
    registered: Collection[str],
    features: Mapping[str, str],
    until: datetime,
) -> Window:
    """Take what `version` answered in the 24 hours up to `until`.

    predictions: the table, or rows of it. registered: all versions of the model. features: their
    types (`string` or a number's) by name.
    """
    names = json.dumps(sorted(features), separators=COMPACT)
    asked = {"model": model, "version": version, "registered": [*registered], "names": names}
    times = {"since": until - LENGTH, "until": until}
    with (
        TemporaryDirectory(prefix="gyre-window-") as spill,
        closing(duckdb.connect(config={"memory_limit": MEMORY, "temp_directory": spill})) as opened,
    ):
        opened.execute("SET TimeZone = 'UTC'")
        parts = _parts(predictions, WITHIN.format(**times))
        last, left_out = _last(opened, parts, features, asked | times)
    rows = _values(parts, features, last["id"].to_numpy())
    # Not as objects: millions of Python texts take more than all the features.
    rows["entity"] = pd.Series(pd.arrays.ArrowExtensionArray(last["entity"]))
    columns = [*features, "score", "entity", "as_of"]
    return Window(pd.DataFrame({name: rows[name] for name in columns}, copy=False), left_out)


def _parts(predictions: pa.Table | Table, within: str) -> Sequence[str | pa.Table]:
    """Files that may hold rows of the window; or the rows given."""
    return [predictions] if isinstance(predictions, pa.Table) else predictions.files(within=within)


def _last(
    opened: Any,
    parts: Sequence[str | pa.Table],
    features: Mapping[str, str],
    asked: Mapping[str, Any],
) -> tuple[pa.Table, dict[str, int]]:
    """Entity and `id` of each entity's last row that counts, in the table's order; why others do
    not.
    """
    if not parts:
        return pa.table({"entity": pa.array([], pa.string()), "id": pa.array([], pa.int64())}), {}
    sql = LAST.format(rows=_rows(opened, parts, features), fits=_fits(features))
    opened.execute(sql, asked)
    left_out = dict(opened.execute(COUNTS).fetchall())
    # Combined: DuckDB hands texts over in buffers up to twice as large.
    return opened.execute(ENTITIES).to_arrow_table().combine_chunks(), left_out


def _values(
    parts: Sequence[str | pa.Table], features: Mapping[str, str], ids: NDArray[np.int64]
) -> dict[str, Any]:
    """Columns of the rows `ids`, which ascend."""
    kinds = {name: object if kind == "string" else float for name, kind in features.items()}
    rows = {name: np.empty(len(ids), kind) for name, kind in kinds.items()}
    rows |= {"score": np.empty(len(ids)), "as_of": np.empty(len(ids), "datetime64[us]")}
    ends = np.searchsorted(ids, np.arange(len(parts) + 1) << BITS)
    for part, first, end in zip(parts, ends, ends[1:], strict=False):
        if first == end:
            continue
        some = _read(part, ids[first:end] & (1 << BITS) - 1)
        score = pc.coalesce(some["probability"], some["prediction"])
        rows["score"][first:end] = score.to_numpy()
        rows["as_of"][first:end] = some["as_of"].to_numpy()
        numbers = pc.list_flatten(some["numbers"]).to_numpy().reshape(-1, len(features))
        for place, name in enumerate(sorted(features)):
            text = kinds[name] is object
            # As pandas has them: a text that many rows share is one object.
            found = pc.list_element(some["texts"], place).to_pandas() if text else numbers[:, place]
            rows[name][first:end] = found
        del some, score, numbers, found
        pa.default_memory_pool().release_unused()
    times = pd.DatetimeIndex(rows["as_of"], tz="UTC", copy=False)
    return rows | {"as_of": pd.Series(times, copy=False)}


def _read(part: str | pa.Table, places: NDArray[np.int64]) -> pa.Table:
    """Rows of a part by their places, with `numbers` and `texts` in each."""
    if isinstance(part, pa.Table):
        some = part.take(places)
    else:
        there = set(pq.read_schema(part).names)
        some = pq.read_table(part, columns=[name for name in READ if name in there])
        some = some.take(places) if len(places) < some.num_rows else some
    if "numbers" in some.schema.names and not some["numbers"].null_count:
        return some
    found = part if isinstance(part, pa.Table) else pq.read_table(part, columns=["features"])
    spread = [spread_out(json.loads(row)) for row in found["features"].take(places).to_pylist()]
    lists = {name: [each[name] for each in spread] for name in ("numbers", "texts")}
    kept = some.select(["probability", "prediction", "as_of"])
    for name, values in lists.items():
        kept = kept.append_column(name, pa.array(values, PREDICTIONS.field(name).type))
    return kept


def _rows(opened: Any, parts: Sequence[str | pa.Table], features: Mapping[str, str]) -> str:
    """SQL of all rows: `numbers` and `texts` are in the order of the features' names."""
    each = []
    for n, part in enumerate(parts):
        if isinstance(part, pa.Table):
            opened.register("given", part.append_column("id", [range(part.num_rows)]))
            each.append("SELECT * FROM given")
        else:
            each.append(PART.format(first=n << BITS, file=_text(part)))
    paths = [_text(f"$.{json.dumps(name)}") for name in sorted(features)]
    text = "json_type(features, {0}) = 'VARCHAR' THEN"
    columns = {
        "numbers": f"CASE WHEN {text} NULL ELSE (features ->> {{0}})::DOUBLE END",
        "texts": f"CASE WHEN {text} features ->> {{0}} END",
    }
    lists = {name: ", ".join(map(sql.format, paths)) for name, sql in columns.items()}
    return ROWS.format(parts=" UNION ALL BY NAME ".join(each), **lists)


def _fits(features: Mapping[str, str]) -> str:
    """SQL: no feature that is a number has a text, none that is a text a number."""
    places = [n for n, name in enumerate(sorted(features), 1) if features[name] == "string"]
    texts = " + ".join(["0", *(f"(texts[{n}] IS NOT NULL)::INT" for n in places)])
    numbers = "".join(f" AND numbers[{n}] IS NULL" for n in places)
    return f"list_count(texts) = {texts}{numbers}"


def _text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
