"""Versions of packages, whether they are installed here or not."""

import re
from importlib.metadata import PackageNotFoundError, version

from core.project import SHIPPED

EXTRAS = {
    "confluent_kafka": "kafka",
    "obstore": "s3",
    "psycopg": "postgres",
    "pymysql": "mysql",
    "pyiceberg": "iceberg",
}
"""Package of a client → Gyre's extra that brings it."""
CLIENTS = {"snowflake": "snowflake-connector-python"}
"""Package of a client → what brings it, where no extra does."""
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


def missing_client(error: ModuleNotFoundError) -> str:
    """Return which package is missing, and how to install it."""
    package = str(error.name).partition(".")[0]
    extra = EXTRAS.get(package)
    remedy = with_extra(extra) if extra else f"install {CLIENTS.get(package, package)}"
    return f"needs the package {package}: {remedy}"
