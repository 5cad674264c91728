"""A second installation beside the one that is here: a home of its own and free ports."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

from core.errors import StackError
from core.settings import ENV_FILE, Settings, free_ports


@contextmanager
def temporary_installation(
    settings: Settings, purpose: str, folder: Path | None = None, *, keep: bool = False
) -> Iterator[Settings]:
    """Give `settings` for another home, on free ports that its `gyre.env` names; start nothing.

    folder: the home, which stays as it is in the end. Default: a temporary folder with `purpose`
    in its name, which is removed unless `keep`.

    Raises:
        StackError: the folder holds an installation already.

    """
    if folder and (folder / "data").exists():
        raise StackError(f"{folder} holds a stack already: choose another folder")
    home, ports = folder or Path(mkdtemp(prefix=f"gyre-{purpose}-")), free_ports()
    try:
        home.mkdir(parents=True, exist_ok=True)
        with (home / ENV_FILE).open("a") as file:  # it may have other lines already
            file.writelines(
                f"\nGYRE_{name.upper()}={port}" for name, port in ports.items()
            )
            file.write("\n")
        yield settings.beside(home.resolve(), **ports)
    finally:
        if folder is None and not keep:
            shutil.rmtree(home, ignore_errors=True)
