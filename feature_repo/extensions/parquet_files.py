"""Parquet files of a team, read by DuckDB as Feast's own client of files reads them.

Which files a path names, and which columns their folders add, is left to fsspec and PyArrow, as in
Feast's dask store. DuckDB alone would take a name for a pattern, and the types of the first file
for those of all.
"""

import glob
from collections.abc import Collection, Container, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
from pyarrow.fs import LocalFileSystem

from core.errors import DataError
from feature_repo.team_tables import require_distinct

ENDINGS = (".parquet", ".parq", ".pq")
"""Names of files that are read of a folder; a file that is named itself may have any name."""
MOST_DIGITS = 38
"""Digits of DuckDB's decimals; it reads others as doubles."""
ALL_INTEGERS = pa.decimal128(20, 0)
FILE = ibis.util.gen_name("file")
"""Column with the path of a row's file; no column of a team has a name of 26 random letters."""


class ParquetFile(NamedTuple):
    """A file without its rows.

    Attributes:
        path: Its path.
        columns: Names and types of its columns.
        partition: Values of all of its rows, which its folders name: {"x": 7} in `x=7`.

    """

    path: str
    columns: pa.Schema
    partition: dict[str, int | str | None]


def read_parquet_files(path: str, names: Collection[str]) -> ir.Table:
    """Return columns of all files that a path names.

    A column of several types gets the one that holds all of its values. A column of the files
    counts before one of their folders.

    Args:
        path: A file, a folder, or a pattern with `*`.
        names: Names of the columns; a column that no file has is left out.

    Raises:
        DataError: There is no file, one cannot be read, or a column is not in all of them, or is
            not the same in all of them. DuckDB does not tell two columns apart, or has no such type.

    """
    files, folder_columns = _open_files(path)
    types: dict[str, pa.DataType] = {}
    folder_types: dict[str, pa.DataType] = {}
    for name in sorted(names):
        if any(name in file.columns.names for file in files):
            types[name] = _common_type(name, files)
        elif name in folder_columns.names:
            _require_in_all(name, files, [file.partition for file in files])
            folder_types[name] = folder_columns.field(name).type
    require_distinct([*types, *folder_types], path)
    groups: dict[tuple[object, ...], list[ParquetFile]] = {}
    for file in files:
        groups.setdefault((*file.columns,), []).append(file)
    options = {"filename": FILE} if folder_types else {}
    if options and "filename" in types:
        raise DataError(
            f"{path}: filename: expected another name of a column beside columns of folders, as "
            "DuckDB takes it for the name of the file: rename the column"
        )
    tables = [_read_group(group, types, options) for group in groups.values()]
    rows = ibis.union(*tables) if len(tables) > 1 else tables[0]
    if not folder_types:
        return rows
    folders = _folder_values(files, folder_types)
    return rows.join(folders, FILE).drop(FILE)


def _open_files(path: str) -> tuple[list[ParquetFile], pa.Schema]:
    """Open all files that a path names.

    Returns:
        The files, and the columns that their folders add.

    Raises:
        DataError: There is no file, or one cannot be read.

    """
    paths = _file_paths(path)
    if not paths:
        endings = ", ".join(ENDINGS)
        raise DataError(
            f"{path}: expected a file, or a folder of files that end in {endings}; found none"
        )
    partitioning = pads.HivePartitioning.discover()
    factory = pads.FileSystemDatasetFactory(
        LocalFileSystem(),
        paths,
        pads.ParquetFileFormat(),
        pads.FileSystemFactoryOptions(partitioning=partitioning),
    )
    files: list[ParquetFile] = []
    try:
        folder_columns = factory.inspect_schemas()[-1]
        dataset = factory.finish(folder_columns)
        for fragment in dataset.get_fragments():
            partition = pads.get_partition_keys(fragment.partition_expression)
            files.append(
                ParquetFile(fragment.path, fragment.physical_schema, partition)
            )
    except (OSError, pa.ArrowException) as exc:
        raise DataError(f"{path}: {exc}") from exc
    return files, folder_columns


def _file_paths(path: str) -> list[str]:
    """Return the paths of the files that a path names, as Feast's dask store finds them."""
    disk = fsspec.filesystem("file")
    # DuckDB gives the paths of rows without `..`.
    path = str(Path(path).resolve() if ".." in path else Path(path).absolute())
    if "*" in path:
        return sorted(file for file in disk.glob(path) if disk.isfile(file))
    if disk.isfile(path):
        return [path]
    list_of_files = f"{path}/_metadata"
    if disk.isfile(list_of_files):
        # Dask and older versions of Spark write it.
        return list(pads.parquet_dataset(list_of_files).files)
    return [file for file in disk.find(path) if file.endswith(ENDINGS)]


def _common_type(name: str, files: list[ParquetFile]) -> pa.DataType:
    """Return the type that holds the values of a column of all files.

    Raises:
        DataError: There is none, or a file lacks the column.

    """
    _require_in_all(name, files, [file.columns.names for file in files])
    paths_by_type: dict[pa.DataType, str] = {}
    for file in files:
        paths_by_type.setdefault(file.columns.field(name).type, file.path)
    types_text = " and ".join(
        f"{kind} in {path}" for kind, path in paths_by_type.items()
    )
    try:
        kind = _promoted(set(paths_by_type))
    except pa.ArrowException as exc:
        raise DataError(
            f"{name}: expected a type that holds the values of all files, found {types_text}: write "
            "the files with one type"
        ) from exc
    if pa.types.is_decimal(kind) and kind.precision > MOST_DIGITS:
        raise DataError(
            f"{name}: expected a decimal of at most {MOST_DIGITS} digits for the values of all "
            f"files, found {types_text}: write the files with fewer digits"
        )
    return kind


def _promoted(types: set[pa.DataType]) -> pa.DataType:
    """Return the type that holds the values of several types, as pandas gives them.

    Raises:
        pa.ArrowException: There is none.

    """
    if len(types) == 1:
        return next(iter(types))
    types = {_plain_type(kind) for kind in types} - {pa.null()}
    if len(types) > 1 and all(map(_is_number, types)):
        dtypes = [kind.to_pandas_dtype() for kind in types]
        kind = pa.from_numpy_dtype(np.result_type(*dtypes))
        are_whole = not any(map(pa.types.is_floating, types))
        # A double does not hold all of uint64 and int64: two keys would be one.
        return ALL_INTEGERS if are_whole and pa.types.is_floating(kind) else kind
    if len(types) > 1 and all(map(pa.types.is_timestamp, types)):
        # A time without a zone is UTC.
        return pa.timestamp("us", "UTC")
    if any(map(pa.types.is_decimal, types)) and any(map(pa.types.is_floating, types)):
        raise pa.ArrowInvalid("a float does not hold all decimals")
    if any(map(_is_binary, types)) and pa.string() in types:
        raise pa.ArrowInvalid("bytes are no text")
    schemas = [pa.schema({"column": kind}) for kind in types]
    return pa.unify_schemas(schemas, promote_options="permissive").field("column").type


def _plain_type(kind: pa.DataType) -> pa.DataType:
    """Return a type without what differs between files alone: encodings, units, zones."""
    if pa.types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_float16(kind):
        return pa.float32()  # DuckDB has none of 16 bits
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", "UTC" if kind.tz else None)
    return kind


def _is_number(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
    )


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _require_in_all(
    name: str, files: Iterable[ParquetFile], names_of_files: Iterable[Container[str]]
) -> None:
    """Raise a DataError if the names of a file lack a name."""
    for file, names in zip(files, names_of_files, strict=True):
        if name not in names:
            raise DataError(
                f"{file.path}: {name}: expected a column as in the other files, found none: write "
                "it again with the column"
            )


def _read_group(
    files: list[ParquetFile],
    types: dict[str, pa.DataType],
    options: dict[str, str],
) -> ir.Table:
    """Return columns of files whose columns have the same names and types.

    Args:
        files: The files.
        types: Types that the columns get, by name.
        options: Options of DuckDB: {"filename": FILE} adds FILE.

    Raises:
        DataError: DuckDB cannot find a file by its path.

    """
    patterns = [_pattern_of(file.path) for file in files]
    rows = ibis.read_parquet(patterns, hive_partitioning=False, **options)
    names_here = [name for name in rows.columns if name != FILE]
    columns = {name: rows[name] for name in options.values()}
    # DuckDB gives `V` beside `v` another name.
    for field, name_here in zip(files[0].columns, names_here, strict=True):
        if field.name not in types:
            continue
        value = rows[name_here]
        if field.type != types[field.name]:
            value = value.cast(ibis.dtype(types[field.name]))
        columns[field.name] = value
    return rows.select(**columns)


def _pattern_of(path: str) -> str:
    """Return the pattern by which DuckDB finds one file.

    Raises:
        DataError: There is none.

    """
    pattern = glob.escape(path)
    if pattern != path and "\\" in path:
        raise DataError(
            f"{path}: expected a path without a backslash, as it has *, ? or [, too, and DuckDB "
            "finds no such file: rename it"
        )
    return pattern


def _folder_values(files: list[ParquetFile], types: dict[str, pa.DataType]) -> ir.Table:
    """Return the values that folders name, by FILE."""
    columns: dict[str, list[Any]] = {FILE: [file.path for file in files]}
    for name in types:
        columns[name] = [file.partition[name] for file in files]
    schema = pa.schema({FILE: pa.string(), **types})
    return ibis.memtable(pa.table(columns, schema=schema))
