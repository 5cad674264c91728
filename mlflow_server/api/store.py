"""Which locations lie in the store of Gyre's own MLflow.

Whoever reaches MLflow can write a location into its database. So it is compared as a text: a link in
another user's folder may lead into the store now, and elsewhere when the location is opened. Nothing
of MLflow is imported, which takes 2 s.
"""

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from core.settings import Settings

PROXIED = "mlflow-artifacts"
"""Scheme of a location in the store of whichever server answers."""
FOLDERS = frozenset({"", "file"})
"""Schemes of a folder of this machine."""
NOT_PLAIN = re.compile(r"[\x00-\x1f\x7f\\?#]")
"""Signs that one reader of an address takes for a part of it, and another one leaves out."""


def own_store(settings: Settings) -> str:
    """Return the folder or the address where Gyre's own MLflow keeps files."""
    return settings.artifacts_url or str(settings.home / "mlflow" / "artifacts")


def may_open(settings: Settings, location: str) -> bool:
    """Whether Gyre's processes may open a location that MLflow names.

    A team's own MLflow is trusted with its locations.
    """
    return (
        settings.mlflow_url is not None
        or is_proxied(location)
        or is_in(own_store(settings), location)
    )


def is_proxied(location: str) -> bool:
    """Whether a location is `mlflow-artifacts:/PATH`, which names no host in any reading."""
    text = _decoded(location)
    path = text.removeprefix(f"{PROXIED}:/")
    folders = path.removesuffix("/").split("/") if path else []
    # MLflow takes what is behind two slashes for a host.
    has_odd_folder = not {"", "."}.isdisjoint(folders)
    return path != text and is_plain(location) and not has_odd_folder


def is_in(store: str, location: str) -> bool:
    """Whether a location is that of a store, or lies below it.

    Args:
        store: A folder, or an address such as s3://bucket/prefix.
        location: A folder or an address.

    """
    if not is_plain(location):
        return False
    is_folder = urlsplit(store).scheme in FOLDERS
    if urlsplit(location).scheme not in FOLDERS:
        root = store.rstrip("/")
        return not is_folder and f"{location}/".startswith(f"{root}/")
    if not is_folder:
        return False
    folder = _path(store).absolute()
    path = _path(location)
    is_below = path.is_relative_to(folder) or path.is_relative_to(folder.resolve())
    return is_below and path.resolve().is_relative_to(folder.resolve())


def is_plain(location: str) -> bool:
    """Whether an address has neither `..`, in any spelling, nor a query, nor a fragment."""
    text = _decoded(location)
    return ".." not in text.split("/") and not NOT_PLAIN.search(text)


def _decoded(location: str) -> str:
    """Return an address that was decoded until nothing in it is encoded."""
    text = location
    while (plainer := unquote(text)) != text:
        text = plainer
    return text


def _path(location: str) -> Path:
    """Return the path of a folder, as MLflow reads it."""
    is_address = location.startswith("file:")
    return Path(url2pathname(urlsplit(location).path if is_address else location))
