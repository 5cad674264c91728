"""Delta tables of any tool, on this disk or in a bucket."""

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from core.connectors.formats import Later
from core.errors import DataError
from core.tables.query import S3, quoted, short_text


def open_delta(address: str, later: Later | None) -> pa.RecordBatchReader:
    """Open the newest version of a table.

    Args:
        address: Folder of the table, on this disk or in a bucket.
        later: Rows that are asked for; other files are not read.

    Raises:
        DataError: There is no table, or it cannot be read.

    """
    if "%" in address:  # deltalake decodes it, and reads another folder
        raise DataError(
            f"{address}: deltalake reads no folder with % in its name: rename it"
        )
    try:
        table = DeltaTable(address, storage_options=S3)
        schema = pa.schema(table.schema().to_arrow())
        condition = None
        if later and later.column in schema.names:
            name = quoted(later.column)
            has_zone = getattr(schema.field(later.column).type, "tz", None) is not None
            limit = later.limit(has_zone=has_zone)
            condition = f"{name} > '{limit}' OR {name} IS NULL"
        rows = pa.RecordBatchReader.from_stream(table.scan(predicate=condition))
    except (DeltaError, OSError) as exc:
        raise DataError(short_text(exc)) from exc
    return rows.cast(schema)
