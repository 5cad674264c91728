"""Predictions that were made elsewhere, of a team's table, as rows of `predictions`."""

import logging
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import ibis
import pyarrow as pa

from core.connectors.addresses import shown_address
from core.errors import DataError
from core.settings import Settings
from core.spec import ModelSpec
from core.spec.tables import PredictionTable
from feature_repo.team_tables import open_table, utc_time
from mlflow_server.api.registry import Registry
from mlflow_server.manifest import ModelManifest
from mlflow_server.model.pyfunc import read_version
from monitoring.log.collect import PredictionLine
from monitoring.log.tables import predictions
from serving.errors import InvalidRequestError
from serving.routes.predictions import logged_line

log = logging.getLogger(__name__)
LATEST_ROWS = timedelta(days=2)
"""How long after the newest stored prediction an older one may still come."""
BATCH_ROWS = 50_000


def take_predictions(settings: Settings, spec: ModelSpec, version: str) -> int:
    """Add the new rows of the table that the spec names; a row that is there already stays as it is.

    Args:
        settings: Settings of the installation.
        spec: The model.
        version: The version in production, by whose contract the rows are read.

    Returns:
        The number of new rows.

    Raises:
        DataError: The table cannot be read, lacks a column, or has a score of another model.
        RegistryError: MLflow does not answer.

    """
    table = spec.serving.predictions
    if table is None:
        return 0
    registry = Registry(settings)
    contract, _ = read_version(registry, registry.version(spec.name, version))
    created = registry.assignment(spec.name).created
    stored = predictions(settings)
    newest = stored.newest("received")
    count = 0
    connection = ibis.duckdb.connect()
    try:
        rows = open_table(connection, table.source)
        names = _columns(spec, contract, table, rows.columns)
        times = utc_time(rows, names["predicted_at"])
        rows = rows.select(
            {name: rows[column] for name, column in names.items()}
            | {"predicted_at": times}
        )
        if newest:
            rows = rows.filter(rows.predicted_at > ibis.literal(newest - LATEST_ROWS))
        for batch in rows.to_pyarrow_batches(chunk_size=BATCH_ROWS):
            lines = list(_lines(table, contract, version, created, batch.to_pylist()))
            new_rows = pa.Table.from_pylist(lines, schema=stored.schema)
            count += stored.insert(new_rows, "request_id", "received")
    finally:
        connection.disconnect()
    if count:
        log.info("%s: %d predictions arrived from its table", spec.name, count)
    return count


def _columns(
    spec: ModelSpec,
    contract: ModelManifest,
    table: PredictionTable,
    found: tuple[str, ...],
) -> dict[str, str]:
    """Return the table's column of each field.

    Raises:
        DataError: One is missing.

    """
    names = ["request_id", "predicted_at", "score"]
    names += [*contract.entity_key, *contract.features]
    columns = {name: table.columns.get(name, name) for name in names}
    for column in columns.values():
        if column not in found:
            place = f"{spec.name}.toml: serving.predictions"
            problem = f"expected a column {column} of {shown_address(table.source)}"
            raise DataError(f"{place}: {problem}, found {', '.join(found)}")
    version = table.columns.get("version", "version")
    if version in found:
        columns["version"] = version
    return columns


def _lines(
    table: PredictionTable,
    contract: ModelManifest,
    version: str,
    created: int,
    rows: list[dict[str, Any]],
) -> Iterator[dict[str, Any]]:
    """Yield the rows of `predictions`, as if they had been sent.

    Raises:
        DataError: A row has a score of another model.

    """
    for row in rows:
        sent = row | {
            "request_id": str(row["request_id"]),
            "features": {name: row[name] for name in contract.features},
            "version": str(row.get("version") or version),
        }
        try:
            line = logged_line(contract, version, created, sent)
        except InvalidRequestError as exc:
            place = shown_address(table.source)
            raise DataError(f"{place}: row {sent['request_id']}: {exc}") from exc
        yield PredictionLine.model_validate(line).row()
