"""Versions of packages, whether they are installed here or not."""

import re
from importlib.metadata import PackageNotFoundError, version

from core.settings import CLONE


def package_version(package: str) -> str:
    """Return the installed version; if there is none, that of requirements.lock.

    The image `serving` lacks packages whose versions it reports.
    """
    try:
        return version(package)
    except PackageNotFoundError:
        lock = (CLONE / "requirements.lock").read_text()
        pin = re.search(rf"^{package}(?:\[\S+\])?==(\S+)", lock, re.MULTILINE)
        return pin[1] if pin else "unknown"
