"""The files and tables that a path, a folder or a pattern names.

A table of Delta, Iceberg or a similar format is no folder of files: its log tells which files count.
"""

from collections.abc import Sequence
from glob import glob
from pathlib import Path

from core.errors import DataError

CSV_ENDINGS = (".csv", ".csv.gz")
TABLE_MARKS = {
    "_delta_log": "Delta",
    "metadata/*.metadata.json*": "Iceberg",
    ".hoodie": "Hudi",
    "_spark_metadata": "Spark streaming",
}
"""Name of a file or folder that lies in a table's folder → format of the table."""


def files_at(address: str) -> list[str]:
    """Return the files and the folders of Delta tables that an address on this disk names.

    Raises:
        DataError: There are none, or they belong to a table that cannot be read.

    """
    path = Path(address)
    paths = [path]
    if not path.exists():
        # An existing folder is meant by its name; only the rest is a pattern.
        folder = next(parent for parent in path.parents if parent.exists())
        names = glob(str(path.relative_to(folder)), root_dir=folder, recursive=True)  # noqa: PTH207
        matches = [folder / name for name in names]
        paths = [path for path in matches if _is_data(path) or _table_format(path)]
    files = {file for path in paths for file in _files_of(path)}
    if not files:
        raise DataError("expected parquet files or CSV files, found none")
    return sorted(files)


def _files_of(path: Path) -> list[str]:
    """Return a file, or the files of a folder.

    Raises:
        DataError: The path is a part of a table, whose log tells which files count.

    """
    for folder in path.resolve().parents:
        table_format = _table_format(folder)
        if table_format:
            problem = f"{path} is a part of {folder}, a table of {table_format}"
            raise DataError(f"{problem}: name the table")
    return _files_below(path, [])


def _files_below(path: Path, folders: Sequence[Path]) -> list[str]:
    """Return the files of a folder, without hidden files and files that Spark still writes."""
    table_format = _table_format(path)
    if table_format == "Delta":
        return [str(path)]
    if table_format:
        problem = f"{path}: a table of {table_format} cannot be read"
        raise DataError(
            f"{problem}: export its rows as parquet files, or name a database"
        )
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


def _is_data(path: Path) -> bool:
    return path.name.lower().endswith((".parquet", *CSV_ENDINGS))


def _table_format(folder: Path) -> str | None:
    """Return the format of the table whose log lies in a folder."""
    for mark, table_format in TABLE_MARKS.items():
        if any(folder.glob(mark)):
            return table_format
    return None
