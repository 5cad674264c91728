"""The project: the folder of a team's specs, features and packages, and where it is found."""

import os
import sys
from contextlib import suppress
from pathlib import Path

CLONE = Path(__file__).resolve().parents[1]
"""Folder of Gyre's own packages: the clone, or site-packages."""
SHIPPED = CLONE / "gyre" / "shipped"
"""Files of the clone that an installed Gyre has too: example rows, example spec, lock file."""
STORE = Path("feature_repo", "feature_store.yaml")
"""Feast's configuration in a project. A folder with it and with models/ is a project."""
ENV_FILE = "gyre.env"
"""File in a stack's home with the settings that always belong to it."""
OFFLINE_STORE = "feature_repo.extensions.offline.AsofOfflineStore"
"""Gyre's offline store, by which its own `feature_store.yaml` is known."""


def is_own_store(file: Path) -> bool:
    """Whether a `feature_store.yaml` is Gyre's, or absent; any other is a team's."""
    return not file.is_file() or OFFLINE_STORE in file.read_text()


def is_project(folder: Path) -> bool:
    """Whether a folder is a project of a team, as `gyre init` writes it, or the clone.

    Its Feast repository may lie elsewhere, where GYRE_FEAST_REPO names it.
    """
    has_features = (folder / STORE).is_file() or _has_feast_elsewhere(folder)
    return (folder / "models").is_dir() and has_features


def _has_feast_elsewhere(folder: Path) -> bool:
    from dotenv import dotenv_values  # noqa: PLC0415  (hardly any start needs it)

    file = Path(os.environ.get("GYRE_HOME") or folder / ".gyre", ENV_FILE)
    return "GYRE_FEAST_REPO" in os.environ | dotenv_values(file)


def find_project() -> Path:
    """Return the folder that GYRE_PROJECT names, or the project that the working directory is in.

    Where both are absent, it is the clone. An installed Gyre has none: it gives SHIPPED, which
    `load_settings` refuses.
    """
    named_folder = os.environ.get("GYRE_PROJECT")
    if named_folder:
        return Path(named_folder).expanduser().resolve()
    folders = [CLONE]
    with suppress(FileNotFoundError):  # the working directory was deleted
        folders = [Path.cwd(), *Path.cwd().parents, CLONE]
    for folder in folders:
        if is_project(folder):
            return folder
    return SHIPPED if SHIPPED.is_dir() else CLONE


PROJECT = find_project()
"""Folder of a team's models/, feature_repo/ and Python packages. It is a constant, as Python finds
modules by it; `load_settings` checks it."""
# The clone first: in a project `feature_repo` is a folder, in the clone the package.
sys.path += [str(folder) for folder in (CLONE, PROJECT) if str(folder) not in sys.path]
