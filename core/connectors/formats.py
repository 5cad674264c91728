"""Files of rows: parquet, CSV and JSON lines, on this disk or in a bucket, a batch at a time."""

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.dataset as ds
from pyarrow import csv
from pyarrow.fs import FileSystem, FSSpecHandler, LocalFileSystem, PyFileSystem
from upath import UPath

from core.errors import DataError

BLOCK_BYTES = 16 * 1024 * 1024
"""Bytes of a CSV that are read at a time: no row may be longer."""
READ_ROWS = 100_000
"""Rows that are read at a time."""
PARQUET = ds.ParquetFileFormat(coerce_int96_timestamp_unit="us", pre_buffer=False)
"""Reads a file row group by row group, not all of it ahead."""
OFFSETS = timedelta(days=1)
"""No zone is further from UTC."""


class Later(NamedTuple):
    """Rows later than a moment are asked for, and rows without a time.

    A source may give earlier rows, too.
    """

    column: str
    moment: datetime

    def limit(self, *, has_zone: bool) -> datetime:
        """Return the limit for a column of times, naive where they have no zone."""
        if has_zone:
            return self.moment
        return self.moment.astimezone(UTC).replace(tzinfo=None) - OFFSETS


@dataclass(frozen=True)
class Rows:
    """Rows of a file or a table.

    Attributes:
        batches: The rows.
        texts: Names of columns whose texts stand for other types: whoever asked for the rows judges
            each value.
        types: The types in which a database declares such columns.

    """

    batches: pa.RecordBatchReader
    texts: Collection[str] = ()
    types: Mapping[str, pa.DataType] = field(default_factory=dict)


@dataclass(frozen=True)
class TableFile:
    """A file of a table that is written by commits.

    Attributes:
        commit: Number of the commit by which all its rows had come; a later one has a larger number.
        is_of_commit: Whether that commit brought all its rows; else they may be of any commit before.
        read: Reads some columns of its rows.

    """

    commit: int
    is_of_commit: bool
    read: Callable[[Sequence[str]], Iterator[pa.RecordBatch]]


def are_in_order(files: Sequence[TableFile]) -> bool:
    """Whether files tell which of two rows came later, whatever is in them: each is one commit's."""
    commits = {file.commit for file in files}
    return len(commits) == len(files) and all(file.is_of_commit for file in files)


def open_parquet(path: UPath, later: Later | None) -> pa.RecordBatchReader:
    """Open one file: no folder of its path is a column, and no name a pattern."""
    file_system: FileSystem = LocalFileSystem()
    if not isinstance(path, Path):
        file_system = PyFileSystem(FSSpecHandler(path.fs))
    fragment = PARQUET.make_fragment(path.path, file_system)
    schema = fragment.physical_schema
    require_names(schema.names)
    # Arrow 25 cannot filter columns of such texts.
    can_filter = pa.string_view() not in schema.types
    condition = None
    if later and can_filter and later.column in schema.names:
        kind = schema.field(later.column).type
        if pa.types.is_timestamp(kind):
            limit = later.limit(has_zone=kind.tz is not None)
            # The type may be of seconds.
            earlier = pa.scalar(limit - timedelta(seconds=1))
            time = ds.field(later.column)
            condition = (time > earlier.cast(kind, safe=False)) | time.is_null()
    return fragment.scanner(filter=condition, batch_size=READ_ROWS).to_reader()


def open_csv(path: Path | UPath, names: Collection[str]) -> pa.RecordBatchReader:
    """Open a CSV, with the columns `names` as the bytes of their texts, which may be no UTF-8."""
    return csv.open_csv(
        pa.TransformInputStream(_stream(path), _TextCheck()),
        read_options=csv.ReadOptions(block_size=BLOCK_BYTES),
        parse_options=csv.ParseOptions(newlines_in_values=True),
        convert_options=csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.binary()),
            null_values=[""],
            strings_can_be_null=True,
        ),
    )


def open_json_lines(
    path: Path | UPath, names: Sequence[str] | None
) -> pa.RecordBatchReader:
    """Open a file with a JSON object a line; all its values are texts in bytes, as a CSV's.

    Half of an emoji, which JSON can write, becomes bytes that are no UTF-8.

    Args:
        path: The file.
        names: Its columns; None: the fields of all its lines.

    Raises:
        DataError: A line is no object, or no line has one of the fields.

    """
    if names is None:
        fields: dict[str, None] = {}
        for row in _json_rows(path):
            fields |= dict.fromkeys(row)
        names = [*fields]
    schema = pa.schema([pa.field(name, pa.binary()) for name in names])
    batches = _json_batches(path, schema)
    return pa.RecordBatchReader.from_batches(schema, batches)


def _json_batches(path: Path | UPath, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    rows = _json_rows(path)
    known_names = {*schema.names}
    fields: set[str] = set()
    while True:
        batch = [*islice(rows, READ_ROWS)]
        if not batch:
            break
        fields.update(*batch)
        if not fields <= known_names:
            break
        yield pa.RecordBatch.from_pylist(batch, schema=schema)
    if fields and fields != known_names:
        expected = f"expected the fields {', '.join(schema.names)}"
        found = ", ".join(sorted(fields)).encode(errors="backslashreplace").decode()
        raise DataError(f"{expected}, found {found}")


def _json_rows(path: Path | UPath) -> Iterator[dict[str, bytes | None]]:
    """Yield the object of each line, its values as texts in UTF-8.

    A byte that is no UTF-8 stays as it is in its value: whoever asked for the rows judges it.
    """
    # Python keeps such a byte as half a letter of UTF-16, and writes it as the byte again.
    stream = TextIOWrapper(
        _stream(path), encoding="utf-8-sig", errors="surrogateescape"
    )
    with stream as lines:
        for number, line in enumerate(lines, 1):
            if line.isspace():
                continue
            row = _json_object(line, number)
            has_odd_bytes = _is_no_utf8(line)
            yield {
                name: _text_bytes(value, f"line {number}: {name}", has_odd_bytes)
                for name, value in row.items()
            }


def _json_object(line: str, number: int) -> dict[str, Any]:
    """Return the object of a line, its numbers as texts.

    Raises:
        DataError: The line is none, or one of its names is no UTF-8.

    """
    if number == 1 and "\0" in line:
        raise DataError(
            "expected JSON lines in UTF-8, found UTF-16 or no text: convert it"
        )
    try:
        row = json.loads(
            line,
            parse_int=str,
            parse_float=str,
            parse_constant=str,  # NaN and Infinity, which Python writes
            object_pairs_hook=fields_once,
        )
    except ValueError as exc:
        raise DataError(f"line {number}: expected JSON: {exc}") from exc
    except RecursionError as exc:
        raise DataError(
            f"line {number}: expected JSON, found too many levels: flatten it, or leave it out"
        ) from exc
    if not isinstance(row, dict):
        raise DataError(f"line {number}: expected a JSON object")
    for name in filter(_is_no_utf8, row):
        raise DataError(
            f"line {number}: expected the name of a field in UTF-8, found {name!r}: rename it"
        )
    return row


def _is_no_utf8(text: str) -> bool:
    """Whether a text has half a letter of UTF-16, which UTF-8 does not have."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _text_bytes(value: Any, place: str, has_odd_bytes: bool) -> bytes | None:  # noqa: FBT001  (of a line)
    """Return the text of a value of JSON, whose numbers are texts, in UTF-8.

    Args:
        value: The value.
        place: Line and field.
        has_odd_bytes: Whether the line has bytes that are no UTF-8.

    """
    if isinstance(value, dict | list):
        raise DataError(
            f"{place}: expected a text, a number, true, false or null, found more JSON: "
            "flatten it, or leave it out"
        )
    if value is None:
        return None
    text = json.dumps(value) if isinstance(value, bool) else str(value)
    if has_odd_bytes:
        try:
            return text.encode(errors="surrogateescape")
        except UnicodeEncodeError:  # half an emoji, which JSON can write
            pass
    return text.encode(errors="surrogatepass")


def fields_once(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; of a field that is there twice one value would be lost.

    Raises:
        ValueError: A field is there twice.

    """
    row = dict(fields)
    if len(row) < len(fields):
        names = [name for name, _ in fields]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"a field is there twice: {twice!r}")
    return row


def _stream(path: Path | UPath) -> Any:
    """Open the bytes of a file, which may be packed."""
    compression = "gzip" if path.name.lower().endswith(".gz") else None
    source = str(path) if isinstance(path, Path) else path.open("rb")
    return pa.input_stream(source, compression=compression)


class _TextCheck:
    """Passes the bytes of a CSV on.

    Raises:
        DataError: They are no UTF-8, or the last line has no end: half a number would be a number.

    """

    def __init__(self) -> None:
        self._last_byte = b""

    def __call__(self, block: pa.Buffer) -> pa.Buffer:
        if b"\0" in memoryview(block)[:1000].tobytes():
            raise DataError(
                "expected a CSV in UTF-8, found UTF-16 or no text: convert it"
            )
        if len(block):
            self._last_byte = block[-1:].to_pybytes()
        elif self._last_byte not in (b"\n", b"\r"):
            raise DataError(
                "the last line has no end: the file is incomplete, or still being written. "
                "If it is complete, add a line end"
            )
        return block


def require_names(names: Sequence[str]) -> None:
    """Raise a DataError where a column has no name, or two have the same."""
    for number, name in enumerate(names, 1):
        if not name:
            raise DataError(
                f"column {number} of {len(names)} has no name: name it, or remove the comma at "
                "the header's end"
            )
        if names.index(name) + 1 < number:
            raise DataError(f"two columns are called {name}: rename one")
