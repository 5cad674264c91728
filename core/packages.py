"""Versions of packages, whether they are installed here or not."""

import re
from importlib.metadata import PackageNotFoundError, version

from core.project import SHIPPED

DISTRIBUTION = "gyre-loop"
"""Gyre's own name among the installed packages."""


def package_version(package: str) -> str:
    """Return the installed version; if there is none, that of requirements.lock.

    The image `serving` lacks packages whose versions it reports.
    """
    try:
        return version(package)
    except PackageNotFoundError:
        lock = (SHIPPED / "requirements.lock").read_text()
        pin = re.search(rf"^{package}(?:\[\S+\])?==(\S+)", lock, re.MULTILINE)
        return pin[1] if pin else "unknown"


def with_extra(extra: str) -> str:
    """Return how to install an extra of Gyre: in a clone by make, else by pip or uv."""
    target = "spark" if extra == "spark" else "extras"
    return f"install {DISTRIBUTION}[{extra}]; in a clone: make {target}"
