"""`make audit`: compares the server that Gyre starts as Redis with the releases that have fixes.

pip-audit knows the packages of PyPI, not the programs in them. The release notes of Valkey and
Redis have the numbers of a new vulnerability.
"""

import sys

from core.errors import StackError
from feature_repo.online_store import ServerVersion, find_server, server_version

FIXED = {
    "Valkey": ((7, 2, 14), (8, 0, 10), (8, 1, 9), (9, 0, 5), (9, 1, 1)),
    "Redis": ((7, 2, 11), (7, 4, 6), (8, 0, 4), (8, 2, 2)),
}
"""The first release with the fix in each series; newer series have it from the start."""
VULNERABILITY = {"Valkey": "CVE-2026-63639", "Redis": "CVE-2025-49844"}
"""The last vulnerability by which a client runs code. Valkey fixed CVE-2025-49844 before its own."""


def is_fixed(version: ServerVersion) -> bool:
    """Whether a version has the fixes."""
    releases = FIXED[version.product]
    series = version.numbers[:2]
    for release in releases:
        if release[:2] == series:
            return version.numbers >= release
    return version.numbers > max(releases)


def main() -> int:
    """Print one line about the server; return 1 if it lacks a fix."""
    try:
        server = find_server()
        version = server_version(server)
    except StackError as exc:
        print(exc)  # noqa: T201
        return 1
    vulnerability = VULNERABILITY[version.product]
    if is_fixed(version):
        print(f"{version} has the fix of {vulnerability}: {server}")  # noqa: T201
        return 0
    first_fixed = ", ".join(
        ".".join(map(str, release)) for release in FIXED[version.product]
    )
    print(  # noqa: T201
        f"{version} lacks the fix of {vulnerability}: {server}; "
        f"install {first_fixed} or newer"
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
