"""A window: the last prediction of each entity in 24 hours, and what was left out."""

import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa

from core.spec import ModelSpec
from core.storage import Table
from monitoring.checks.result import PREDICTED, SCORE
from monitoring.collect import COMPACT, PREDICTIONS
from training.frame import features
from training.metrics import Scored, predict

LENGTH = timedelta(hours=24)
MEMORY = "600MB"
"""What DuckDB may hold; beyond it, it spills to a temporary folder."""
WITHIN = "received > '{since}' AND received <= '{until}'"
TEXTS = {"string", "timestamp"}
"""Types of features that are a text in the log."""
OTHER_FEATURES = "with other features"
PLACE = [pa.field("file_index", pa.int64()), pa.field("file_row_number", pa.int64())]
NOTHING = pa.schema([*PREDICTIONS, *PLACE]).empty_table()
"""What DuckDB would read of files, where there are none."""
# `id`: file and row, ascending as the rows came. Of equal times the later row is the last.
ANSWERS = """
CREATE TEMP VIEW answers AS
SELECT *, (file_index::BIGINT << 32) + file_row_number AS id, CASE
    WHEN NOT list_contains(getvariable('registered'), version) THEN 'of an unknown version'
    WHEN version <> getvariable('version') THEN 'of another version'
    WHEN NOT in_population THEN 'outside the population'
    WHEN entity IS NULL THEN 'without an entity'
    WHEN features_from = 'defaults' THEN 'answered from defaults'
    WHEN names <> getvariable('names') THEN getvariable('other_features') END AS why
FROM (SELECT *, file_index, file_row_number FROM {source})
WHERE model = getvariable('model')
  AND received > getvariable('since') AND received <= getvariable('until')"""
LAST = """
SELECT {columns}, coalesce(probability, prediction) AS score, entity, as_of, prediction,
  {fits} AS fits
FROM answers
WHERE id IN (
  SELECT id FROM answers WHERE why IS NULL
  QUALIFY row_number() OVER (PARTITION BY entity ORDER BY received DESC, id DESC) = 1)"""
COUNTS = "SELECT why, count(*) FROM answers GROUP BY why"


@dataclass(frozen=True)
class Window:
    """rows: the features, `score`, `entity`, `as_of`; one per entity, population only.

    score: the probability, or the number predicted; of many classes also `predicted_class`, of
    which it is the probability. A number is a float (null: nan), a text an
    object (null: None). left_out: predictions that do not count, by why.
    """

    rows: pd.DataFrame
    left_out: dict[str, int]


def window(
    answers: Table,
    model: str,
    version: str,
    registered: Collection[str],
    features: Mapping[str, str],
    until: datetime,
    classes: Sequence[str] = (),
) -> Window:
    """Take what `version` answered in the 24 hours up to `until`.

    registered: the model's versions. features: types by name.
    """
    times = {"since": until - LENGTH, "until": until}
    variables = times | {
        "model": model,
        "version": version,
        "registered": [*registered],
        "names": json.dumps(sorted(features), separators=COMPACT),
        "other_features": OTHER_FEATURES,
        "files": answers.files(within=WITHIN.format(**times)),
    }
    rows, left_out = _select(variables, features)
    # Entities not as objects: millions of Python texts take more than all the features.
    entity = pd.Series(pd.arrays.ArrowExtensionArray(rows["entity"]))
    # By the same name: a column is freed as it is converted only where nothing else holds it.
    named = [*features, "score", "as_of", PREDICTED]
    rows = rows.drop_columns(["entity", "fits"]).rename_columns(named)
    frame: pd.DataFrame = rows.to_pandas(split_blocks=True, self_destruct=True)
    frame.insert(len(features) + 1, "entity", entity)
    positions = frame.pop(PREDICTED)
    if classes:
        frame[PREDICTED] = np.array(classes, object)[positions.astype(np.int64)]
    return Window(frame, left_out)


def with_scores(
    rows: pd.DataFrame, scored: Scored, classes: Sequence[str]
) -> pd.DataFrame:
    """Add to rows of features what a window has of them: `score`, and maybe `predicted_class`."""
    rows = rows.assign(**{SCORE: scored.rounded().top})
    if classes:
        rows[PREDICTED] = np.array(classes, object)[predict(scored.scores, None)]
    return rows


def _select(
    variables: Mapping[str, Any], features: Mapping[str, str]
) -> tuple[pa.Table, dict[str, int]]:
    """Return the last row of each entity, and how many others there are, by why."""
    with (
        TemporaryDirectory(prefix="gyre-window-") as spill,
        closing(
            duckdb.connect(config={"memory_limit": MEMORY, "temp_directory": spill})
        ) as opened,
    ):
        opened.execute("SET TimeZone = 'UTC'")
        for name, value in variables.items():
            opened.execute(f"SET VARIABLE {name} = $1", [value])
        opened.register("nothing", NOTHING)
        source = (
            "read_parquet(getvariable('files'))" if variables["files"] else "nothing"
        )
        opened.execute(ANSWERS.format(source=source))
        reader = opened.execute(_select_last(features)).to_arrow_reader()
        read, fitting = 0, list[pa.RecordBatch]()
        for batch in reader:
            read += batch.num_rows
            # A copy: a column of a batch from DuckDB keeps all its others in memory.
            fitting.append(batch.filter(batch["fits"]))
        rows = pa.Table.from_batches(fitting, reader.schema)
        left_out = dict(opened.execute(COUNTS).fetchall())
    if followed := left_out.pop(None, 0) - read:
        left_out["followed by a later one"] = followed
    if unfit := read - len(rows):
        left_out[OTHER_FEATURES] = left_out.get(OTHER_FEATURES, 0) + unfit
    return rows, left_out


def compared_features(spec: ModelSpec, frame: pa.Table) -> pd.DataFrame:
    """What windows are compared with. Not timestamps, which always move on."""
    kept = {name: kind for name, kind in spec.features.items() if kind != "timestamp"}
    return features(spec.model_copy(update={"features": kept}), frame)


def _select_last(features: Mapping[str, str]) -> str:
    """SQL of the last row of each entity; `fits`: no number has a text, and no text a number."""
    places = {name: place for place, name in enumerate(sorted(features), 1)}
    columns, misfits = [], []
    for number, (name, kind) in enumerate(features.items()):
        own, other = ("texts", "numbers") if kind in TEXTS else ("numbers", "texts")
        columns.append(f"{own}[{places[name]}] AS f{number}")
        misfits.append(f"{other}[{places[name]}] IS NULL")
    return LAST.format(columns=", ".join(columns), fits=" AND ".join(misfits))
