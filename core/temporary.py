"""A second installation beside the present one: it has a home of its own and free ports."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

from core.errors import StackError
from core.files import append_secrets
from core.project import ENV_FILE
from core.settings import Settings, free_ports


@contextmanager
def temporary_installation(
    settings: Settings, purpose: str, folder: Path | None = None, *, keep: bool = False
) -> Iterator[Settings]:
    """Yield settings of another home, on free ports that its `gyre.env` names; start nothing.

    Args:
        settings: Settings of the present installation.
        purpose: Word in the name of a temporary folder.
        folder: The home, which stays at the end. Default: a temporary folder.
        keep: Whether a temporary folder stays at the end, too.

    Raises:
        StackError: The folder holds an installation already.

    """
    if folder and (folder / "data").exists():
        raise StackError(f"{folder} holds a stack already: choose another folder")
    home = folder or Path(mkdtemp(prefix=f"gyre-{purpose}-"))
    ports = free_ports()
    variables = {f"GYRE_{name.upper()}": str(port) for name, port in ports.items()}
    try:
        append_secrets(home / ENV_FILE, variables)  # it may have other lines already
        yield settings.beside(home.resolve(), **ports)
    finally:
        if folder is None and not keep:
            shutil.rmtree(home, ignore_errors=True)
