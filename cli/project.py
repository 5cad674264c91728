"""`gyre init`: a project of a team's own."""

import keyword
import shlex
import shutil
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from cli.use_case import TEMPLATES, write_use_case
from core.errors import SettingsError
from core.project import CLONE, SHIPPED, STORE

ROWS = "data/orders.parquet"
NEXT_STEPS = """wrote a project to {folder}; next:
  cd {folder}
  git init && git add . && git commit -m "Begin"  # lineage names the commit
  gyre check
  gyre up  # its state is in .gyre there, or in GYRE_HOME"""


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="New, or empty.")],
) -> None:
    """Write a project of your own that runs as it is: a model, its dataset, a Python package.

    The package has the folder's name. Commands find the project from any folder in it; elsewhere
    GYRE_PROJECT names it.
    """
    folder = folder.expanduser().resolve()
    package = folder.name.lower().replace("-", "_")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise SettingsError(
            f"{folder}: expected a new or an empty folder; nothing was written"
        )
    if not package.isidentifier() or keyword.iskeyword(package) or find_spec(package):
        expected = "expected a name that a new Python package can have"
        raise SettingsError(
            f"{folder}: {expected}, such as shop_models; nothing was written"
        )
    from cli.new.columns import describe, in_types  # noqa: PLC0415  (heavy)
    from core.connectors.reading import read  # noqa: PLC0415

    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder) as name:  # all of it, or nothing
        part = Path(name) / "project"
        shutil.copytree(TEMPLATES / "project", part)
        (part / "package").rename(part / package)
        (part / "data").mkdir()
        shutil.copy(SHIPPED / "data" / "cdnow_orders.parquet", part / ROWS)
        columns = describe(
            in_types(read(str(part / ROWS))),
            key=["order_id"],
            entity="customer_id",
            time="order_ts",
        )
        write_use_case(part, "orders", columns, shipped=ROWS)
        shutil.copy(CLONE / STORE, part / STORE)
        for path in part.iterdir():
            path.rename(folder / path.name)
    typer.echo(NEXT_STEPS.format(folder=shlex.quote(str(folder))))
