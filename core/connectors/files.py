"""The files and tables that a path, a folder or a pattern names, on this disk or in a bucket.

A table of Delta, Iceberg or a similar format is no folder of files: its log tells which files count.
"""

import re
from collections.abc import Sequence
from glob import glob, has_magic
from pathlib import Path, PurePath, PurePosixPath

from fsspec.utils import glob_translate
from upath import UPath

from core.connectors.addresses import is_bucket
from core.errors import DataError
from core.files import location

CSV_ENDINGS = (".csv", ".csv.gz")
JSON_ENDINGS = (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")
DATA_ENDINGS = (".parquet", *CSV_ENDINGS, *JSON_ENDINGS)
TABLE_MARKS = {
    "_delta_log": "Delta",
    "metadata/*.metadata.json*": "Iceberg",
    ".hoodie": "Hudi",
    "_spark_metadata": "Spark streaming",
}
"""Name of a file or folder that lies in a table's folder → format of the table."""


def files_at(address: str) -> list[str]:
    """Return the files and the folders of Delta tables that an address names.

    Args:
        address: A path, a folder or a pattern, on this disk or in a bucket (`s3://…`).

    Returns:
        Paths, or addresses of a bucket; that of a Delta table ends with a slash.

    Raises:
        DataError: There are none, or they belong to a table that cannot be read.

    """
    if is_bucket(address):
        files = _objects_at(address)
    else:
        path = Path(address)
        paths = [path]
        if not path.exists():
            # An existing folder is meant by its name; only the rest is a pattern.
            folder = next(parent for parent in path.parents if parent.exists())
            names = glob(str(path.relative_to(folder)), root_dir=folder, recursive=True)  # noqa: PTH207
            matches = [folder / name for name in names]
            paths = [
                path
                for path in matches
                if (_is_data(path) or _table_format(path))
                and not _is_hidden(path, folder)
            ]
        files = {file for path in paths for file in _files_of(path)}
    if not files:
        raise DataError("expected parquet, CSV or JSON-lines files, found none")
    return sorted(files)


def _objects_at(address: str) -> set[str]:
    """Return the files and Delta tables of a bucket that an address names, by few requests.

    Raises:
        DataError: A file is a part of a table that the address does not name.

    """
    path = location(address)
    scheme = address.partition("://")[0]
    root = PurePosixPath(path.path)
    is_named = re.compile(f"{re.escape(str(root))}(/.*)?").fullmatch
    names = path.fs.find(str(root))
    if not names and has_magic(str(root)):
        is_named = re.compile(f"{glob_translate(str(root))[:-2]}(/.*)?").fullmatch
        while has_magic(str(root)):
            root = root.parent
        names = path.fs.find(str(root))
    _require_no_part(UPath(f"{scheme}://{root}"))
    objects = [PurePosixPath(name) for name in names]
    tables = dict(filter(None, (_table_of(file, root) for file in objects)))
    files = set()
    for file in objects:
        folder = next((parent for parent in file.parents if parent in tables), None)
        if not is_named(str(file)):
            continue
        if folder is None:
            if _is_data(file) and not _is_hidden(file, root):
                files.add(f"{scheme}://{file}")
        elif is_named(str(folder)):
            _require_delta(str(folder), tables[folder])
            files.add(f"{scheme}://{folder}/")
        else:
            raise _part_of(file, folder, tables[folder])
    return files


def _table_of(
    file: PurePosixPath, root: PurePosixPath
) -> tuple[PurePosixPath, str] | None:
    """Return the table below `root` to whose log a file belongs, and its format."""
    for folder in file.parents:
        if not folder.is_relative_to(root):
            break
        parts = file.relative_to(folder).parts
        for mark, table_format in TABLE_MARKS.items():
            first_parts = PurePosixPath(*parts[: mark.count("/") + 1])
            if first_parts.match(mark):
                return folder, table_format
    return None


def _is_hidden(file: PurePath, root: PurePath) -> bool:
    """Whether a file below `root` is hidden, or Spark still writes it."""
    parts = file.relative_to(root).parts
    return any(part.startswith(".") or part == "_temporary" for part in parts)


def _files_of(path: Path) -> list[str]:
    """Return a file, or the files of a folder.

    Raises:
        DataError: The path is a part of a table, whose log tells which files count.

    """
    _require_no_part(path.resolve())
    return _files_below(path, [])


def _require_no_part(path: Path | UPath) -> None:
    """Raise a DataError for a part of a table, whose log tells which files count."""
    for folder in path.parents:
        table_format = _table_format(folder)
        if table_format:
            raise _part_of(path, folder, table_format)


def _part_of(part: object, folder: object, table_format: str) -> DataError:
    problem = f"{part} is a part of {folder}, a table of {table_format}"
    return DataError(f"{problem}: name the table")


def _files_below(path: Path, folders: Sequence[Path]) -> list[str]:
    """Return the files of a folder, without hidden files and files that Spark still writes."""
    table_format = _table_format(path)
    if table_format:
        _require_delta(str(path), table_format)
        return [str(path)]
    if not path.is_dir():
        return [str(path)] if _is_data(path) else []
    real_path = path.resolve()
    if real_path in folders:  # a link to a folder above
        return []
    files = []
    for child in path.iterdir():
        if not child.name.startswith(".") and child.name != "_temporary":
            files += _files_below(child, [*folders, real_path])
    return files


def _require_delta(folder: str, table_format: str) -> None:
    """Raise a DataError for a table of another format."""
    remedy = "export its rows as parquet files, or name a database"
    if table_format == "Iceberg":
        remedy = "name it by its catalog: iceberg://CATALOG#namespace.table"
    if table_format != "Delta":
        problem = f"{folder}: a table of {table_format} cannot be read by its folder"
        raise DataError(f"{problem}: {remedy}")


def _is_data(path: PurePath) -> bool:
    return path.name.lower().endswith(DATA_ENDINGS)


def _table_format(folder: Path | UPath) -> str | None:
    """Return the format of the table whose log lies in a folder."""
    for mark, table_format in TABLE_MARKS.items():
        if any(folder.glob(mark)):
            return table_format
    return None
