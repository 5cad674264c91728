"""Predictions that were made elsewhere, of a team's table, as rows of `predictions`."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import ibis
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError
from pydantic_core import to_json

from core.connectors.addresses import shown_address
from core.connectors.exact_values import JudgedColumn, judge_column
from core.errors import DataError
from core.settings import Settings
from core.spec import ModelSpec
from core.spec.tables import PredictionTable
from core.tables.table import Table
from feature_repo.published.service import ARROW
from feature_repo.team_tables import UTC_MICROSECONDS, open_table
from mlflow_server.api.registry import Registry
from mlflow_server.manifest import ModelManifest
from mlflow_server.model.pyfunc import read_version
from monitoring.log.collect import PredictionLine
from monitoring.log.tables import TIMESTAMP, predictions
from serving.errors import InvalidRequestError
from serving.routes.predictions import logged_line
from serving.scoring.schemas import build_schemas
from serving.versions.signature import sign

log = logging.getLogger(__name__)
LATEST_ROWS = timedelta(days=2)
"""How long after the newest stored prediction of a model an older one may still come."""
BATCH_ROWS = 50_000
TYPES_OF_FIELDS = {
    "request_id": pa.string(),
    "predicted_at": TIMESTAMP,
    "score": pa.float64(),
    "version": pa.string(),
}
"""Types of what each row has beside keys and features."""
MOST_NAMED_ROWS = 3
"""Number of refused rows that the program's log names; the others are counted."""


@dataclass(frozen=True)
class TakenPredictions:
    """What came of the rows of a table.

    Attributes:
        new_count: Number of rows that were added.
        refused: Number of rows that are no prediction of the model, by reason. A row is counted at
            each reading until it is mended, or is older than LATEST_ROWS.

    """

    new_count: int
    refused: dict[str, int]


def take_predictions(
    settings: Settings, spec: ModelSpec, version: str
) -> TakenPredictions:
    """Add the new rows of the table that the spec names; a row that is there already stays as it is.

    A row is refused where `POST /models/NAME/predictions` would refuse it, or where a column's type
    does not hold a value of its own; the others arrive.

    Args:
        settings: Settings of the installation.
        spec: The model.
        version: The version in production, by whose contract the rows are read.

    Raises:
        DataError: The table cannot be read, lacks a column, or has one of another type.
        RegistryError: MLflow does not answer.

    """
    table = spec.serving.predictions
    if table is None:
        return TakenPredictions(0, {})
    registry = Registry(settings)
    contract, _ = read_version(registry, registry.version(spec.name, version))
    created = registry.assignment(spec.name).created
    reader = _RowReader(spec, contract, version, created)
    stored = predictions(settings)
    newest = _newest(stored, spec.name, created)
    new_count = 0
    connection = ibis.duckdb.connect()
    try:
        rows = open_table(connection, table.source)
        names = _columns(spec, contract, table, rows.columns)
        rows = rows.select({name: rows[column] for name, column in names.items()})
        if newest and not rows.predicted_at.type().is_string():
            moment = rows.predicted_at.try_cast(UTC_MICROSECONDS)
            is_late = moment > ibis.literal(newest - LATEST_ROWS)
            rows = rows.filter(is_late | moment.isnull())
        for batch in rows.to_pyarrow_batches(chunk_size=BATCH_ROWS):
            new_rows = [*reader.read(pa.Table.from_batches([batch]))]
            new_table = pa.Table.from_pylist(new_rows, schema=stored.schema)
            new_count += stored.insert(new_table, "request_id", "received")
    finally:
        connection.disconnect()
    if new_count:
        log.info("%s: %d predictions arrived from its table", spec.name, new_count)
    if reader.refused:
        text = "%s: %d rows of %s are no predictions of it, and were left out"
        place = shown_address(table.source)
        log.warning(text, spec.name, reader.refused.total(), place)
    return TakenPredictions(new_count, dict(reader.refused))


def _newest(stored: Table, model: str, created: int) -> datetime | None:
    """Return the time of a model's newest stored prediction; None if it has none.

    Another model's table may be days ahead of this one's.
    """
    is_own = (pc.field("model") == model) & (pc.field("created") == created)
    times = stored.read(columns=["received"], where=is_own)["received"]
    newest: datetime | None = pc.max(times).as_py()
    return newest


def _columns(
    spec: ModelSpec,
    contract: ModelManifest,
    table: PredictionTable,
    found: tuple[str, ...],
) -> dict[str, str]:
    """Return the table's column of each field.

    Raises:
        DataError: One is missing, or two have one name.

    """
    place = f"{spec.name}.toml: serving.predictions"
    taken_names = [name for name in contract.features if name in TYPES_OF_FIELDS]
    if taken_names:
        problem = f"{taken_names[0]} is a feature, and a column of this table"
        remedy = f"send the predictions to POST /models/{spec.name}/predictions"
        raise DataError(f"{place}: {problem}; {remedy}")
    names = ["request_id", "predicted_at", "score"]
    names += [*contract.entity_key, *contract.features]
    columns = {name: table.columns.get(name, name) for name in names}
    for column in columns.values():
        if column not in found:
            problem = f"expected a column {column} of {shown_address(table.source)}"
            raise DataError(f"{place}: {problem}, found {', '.join(found)}")
    version = table.columns.get("version", "version")
    if version in found:
        columns["version"] = version
    return columns


class _WrongRowError(Exception):
    """A row that is no prediction of the model; column: the column that is at fault."""

    def __init__(self, column: str, problem: str) -> None:
        super().__init__(f"{column}: {problem}")
        self.column = column


class _RowReader:
    """Reads rows of a table as rows of `predictions`, as if they had been sent.

    Args:
        spec: The model, whose table it is.
        contract: Contract of the version in production.
        version: That version.
        created: When the model was registered, ms since 1970.

    Attributes:
        refused: Number of the rows that were refused, by reason.

    """

    def __init__(
        self, spec: ModelSpec, contract: ModelManifest, version: str, created: int
    ) -> None:
        self.refused: Counter[str] = Counter()
        self._spec = spec
        self._contract = contract
        self._version = version
        self._created = created
        self._prediction = build_schemas(sign(spec, contract, [])).prediction
        self._ids: set[str] = set()

    def read(self, rows: pa.Table) -> Iterator[dict[str, Any]]:
        """Yield the rows that are predictions of the model, each once.

        Raises:
            DataError: A column has another type.

        """
        columns = {name: self._judged(name, rows[name]) for name in rows.column_names}
        lost_columns = [""] * rows.num_rows
        for name, column in columns.items():
            for position in pc.indices_nonzero(column.is_lost).to_pylist():
                lost_columns[position] = name
        judged_rows = pa.table(
            {name: column.values for name, column in columns.items()}
        )
        for values, lost_column in zip(
            judged_rows.to_pylist(), lost_columns, strict=True
        ):
            try:
                line = self._line(values, lost_column)
            except _WrongRowError as exc:
                self._refuse(values["request_id"], exc)
                continue
            if line.request_id not in self._ids:
                self._ids.add(line.request_id)
                yield line.row()

    def _judged(self, name: str, column: pa.ChunkedArray) -> JudgedColumn:
        """Return a column in the type that it has in a request.

        Raises:
            DataError: It has another type.

        """
        contract = self._contract
        kind = (
            TYPES_OF_FIELDS.get(name)
            or ARROW[(contract.features | contract.entity_key)[name]]
        )
        values = column.combine_chunks()
        if name == "score" and pa.types.is_nested(values.type):
            with suppress(pa.ArrowException):
                lists = values.cast(pa.list_(kind))
                return JudgedColumn(lists, pa.array([False] * len(lists)))
        is_identity = name in TYPES_OF_FIELDS or name in contract.entity_key
        if kind == pa.string() and pa.types.is_floating(values.type) and is_identity:
            # pandas makes doubles of whole numbers beside a gap.
            numbers = judge_column(values, pa.int64(), is_identity=True)
            if numbers is not None:
                return JudgedColumn(numbers.values.cast(kind), numbers.is_lost)
        judged = judge_column(values, kind, is_identity=is_identity)
        if judged is None:
            place = f"{self._spec.name}.toml: serving.predictions"
            problem = f"{name}: expected {kind}, found {values.type}"
            raise DataError(f"{place}: {problem}")
        return judged

    def _line(self, values: Mapping[str, Any], lost_column: str) -> PredictionLine:
        """Return the line that the log would have of a row.

        Raises:
            _WrongRowError: The row would be refused.

        """
        if lost_column:
            raise _WrongRowError(lost_column, "its type does not hold the value")
        contract = self._contract
        names = ("request_id", "predicted_at", "score", *contract.entity_key)
        row = {name: values[name] for name in names}
        row["features"] = {name: values[name] for name in contract.features}
        row["version"] = values.get("version") or self._version
        try:
            sent = self._prediction.validate_python(row)
        except ValidationError as exc:
            error = exc.errors(include_url=False)[0]
            path = [part for part in error["loc"] if part != "features"]
            raise _WrongRowError(str(path[0]), error["msg"]) from exc
        try:
            line = logged_line(contract, self._version, self._created, sent)
        except InvalidRequestError as exc:
            column, _, problem = str(exc).partition(": ")
            raise _WrongRowError(column, problem) from exc
        return PredictionLine.model_validate_json(to_json(line))

    def _refuse(self, request_id: str | None, error: _WrongRowError) -> None:
        if self.refused.total() < MOST_NAMED_ROWS:
            text = "%s: row %s of its table: %s"
            log.warning(text, self._spec.name, request_id, error)
        self.refused[f"rows of its table with a wrong {error.column}"] += 1
