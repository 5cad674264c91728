"""A window: the last prediction of each entity in a stretch of time, and what was left out.

DuckDB looks at every row of it without keeping them: first which rows count, then their features,
two files at a time.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa

from monitoring.collect import COMPACT

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime

    from numpy.typing import NDArray

    from stack.storage import Table

LENGTH = timedelta(hours=24)
MEMORY = "600MB"
"""What DuckDB may hold; beyond it, it spills to a temporary folder."""
READERS = 2
"""Files that are read at once: each takes the memory of its rows a second time."""
BITS = 32
"""Of an `id` that say which row of its file it is."""
OTHER_FEATURES = "with other features"
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
      WHEN names <> $names THEN '{other}' END AS why
  FROM ({rows}) WHERE model = $model AND received > $since AND received <= $until)
SELECT why, count(*) AS n,
  (max((epoch_us(received)::HUGEINT << 63) + id) & 9223372036854775807::HUGEINT)::BIGINT AS id
FROM seen GROUP BY why, CASE WHEN why IS NULL THEN entity END"""
COUNTS = """
SELECT coalesce(why, 'followed by a later one'),
  (sum(n) - count(*) FILTER (why IS NULL))::BIGINT AS left_out
FROM last GROUP BY why HAVING left_out > 0"""
IDS = "SELECT id FROM last WHERE why IS NULL ORDER BY id"
VALUES = """
SELECT {columns}, coalesce(probability, prediction) AS score, as_of, entity, {fits} AS fits
FROM ({rows}) SEMI JOIN wanted USING (id)"""
BESIDE = pa.schema({"entity": pa.string(), "fits": pa.bool_()})


@dataclass(frozen=True)
class Window:
    """Rows: the features, `score`, `entity`, `as_of`; one per entity, population only.

    score: the probability, or the number predicted. A number is a float (null: nan), a text an
    object (null: None).

    left_out: predictions that do not count, by why: of a version that is not registered (any
    more), of another version, outside the population, without an entity, answered from defaults,
    with other features than the version's (or, its entity's last, with text for a number), or
    followed by a later one of the same entity.
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
        parts: Sequence[str | pa.Table] = [predictions]
        if not isinstance(predictions, pa.Table):  # files that may hold rows of the window
            parts = predictions.files(within=WITHIN.format(**times))
        ids, left_out = _last(opened, parts, features, asked | times)
        rows = _values(opened, parts, features, ids)
    if unfit := len(ids) - len(rows):
        left_out[OTHER_FEATURES] = left_out.get(OTHER_FEATURES, 0) + unfit
    return Window(rows, left_out)


def _last(
    opened: Any,
    parts: Sequence[str | pa.Table],
    features: Mapping[str, str],
    asked: Mapping[str, Any],
) -> tuple[NDArray[np.int64], dict[str, int]]:
    """`id` of each entity's last row that counts, ascending; why others do not."""
    if not parts:
        return np.empty(0, np.int64), {}
    with opened.cursor() as cursor:
        cursor.execute("SET TimeZone = 'UTC'")
        sql = LAST.format(rows=_rows(cursor, parts, features), other=OTHER_FEATURES)
        cursor.execute(sql, asked)
        left_out = dict(cursor.execute(COUNTS).fetchall())
        ids = cursor.execute(IDS).fetchnumpy()["id"]
        cursor.execute("DROP TABLE last")
    return ids, left_out


def _values(
    opened: Any,
    parts: Sequence[str | pa.Table],
    features: Mapping[str, str],
    ids: NDArray[np.int64],
) -> pd.DataFrame:
    """Rows `ids`, which ascend, but those with a text for a number, or a number for a text."""
    kinds: dict[str, Any] = {n: object if k == "string" else float for n, k in features.items()}
    kinds |= {"score": float, "as_of": "datetime64[us]"}
    rows: dict[str, Any] = {name: np.empty(len(ids), kind) for name, kind in kinds.items()}
    ends = np.searchsorted(ids, np.arange(len(parts) + 1) << BITS)

    def read(n: int) -> pa.Table:
        """Fill the columns with the rows of part n; return `entity` and `fits` of them."""
        where = slice(ends[n], ends[n + 1])
        some = _read(opened, parts[n], n, features, ids[where])
        for name, column in zip(kinds, some.columns, strict=False):
            # As pandas has them: a text that many rows share is one object.
            to_array = column.to_pandas if kinds[name] is object else column.to_numpy
            rows[name][where] = to_array()
        # Copied: a column from DuckDB keeps all the others in memory.
        return pa.table({name: some[name].combine_chunks() for name in BESIDE.names})

    with ThreadPoolExecutor(READERS) as pool:
        found = pool.map(read, np.flatnonzero(np.diff(ends)))
        beside = pa.concat_tables([BESIDE.empty_table(), *found])
    rows["as_of"] = pd.Series(pd.DatetimeIndex(rows["as_of"], tz="UTC", copy=False), copy=False)
    # Not as objects: millions of Python texts take more than all the features.
    rows["entity"] = pd.Series(pd.arrays.ArrowExtensionArray(beside["entity"]))
    frame = pd.DataFrame({n: rows[n] for n in (*features, "score", "entity", "as_of")}, copy=False)
    fits = beside["fits"].to_numpy()
    return frame if fits.all() else frame[fits].reset_index(drop=True)


def _read(
    opened: Any,
    part: str | pa.Table,
    n: int,
    features: Mapping[str, str],
    ids: NDArray[np.int64],
) -> pa.Table:
    """Rows `ids` of part n: features, score, as_of, entity, fits."""
    places = {name: n for n, name in enumerate(sorted(features), 1)}
    columns = ", ".join(
        f"{'texts' if kind == 'string' else 'numbers'}[{places[name]}] AS f{places[name]}"
        for name, kind in features.items()
    )
    with opened.cursor() as cursor:
        cursor.execute("SET TimeZone = 'UTC'")
        cursor.register("wanted", pa.table({"id": ids}))
        rows = _rows(cursor, [part], features, n)
        sql = VALUES.format(columns=columns, fits=_fits(features), rows=rows)
        return cursor.execute(sql).to_arrow_table()


def _rows(
    opened: Any, parts: Sequence[str | pa.Table], features: Mapping[str, str], first: int = 0
) -> str:
    """SQL of all rows: `numbers` and `texts` are in the order of the features' names."""
    each = []
    for n, part in enumerate(parts, first):
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
