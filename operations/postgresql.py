"""Programs of PostgreSQL on the settings' database, without a secret among their arguments."""

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from core.errors import StackError
from core.settings import Settings


def run_on_database(settings: Settings, program: str, *options: str) -> None:
    """Run pg_dump or pg_restore on the settings' database; no secret is in its arguments.

    Raises:
        StackError: The program failed, or libpq cannot read the address, or it has a secret beside
            a service.

    """
    from psycopg import ProgrammingError, pq  # noqa: PLC0415
    from psycopg.conninfo import conninfo_to_dict, make_conninfo  # noqa: PLC0415

    address = str(settings.database_url).partition("://")[2]
    try:
        parameters: Any = conninfo_to_dict(f"postgresql://{address}")
    except ProgrammingError:
        raise StackError(
            "GYRE_DATABASE_URL: PostgreSQL's clients cannot read it: write %25 for a percent sign"
        ) from None  # libpq quotes the password
    password = parameters.pop("password", os.environ.get("PGPASSWORD", ""))
    # Those that libpq marks as passwords, or as not to be shown.
    hidden_names = {
        option.keyword.decode()
        for option in pq.Conninfo.get_defaults()
        if option.dispchar
    }
    secrets = {name: parameters.pop(name) for name in hidden_names & parameters.keys()}
    database = f"--dbname={make_conninfo(**parameters)}"
    command = (program, database, "--no-owner", *options)
    with _service_of(secrets, parameters) as environment:
        run_command(None, *command, PGPASSWORD=password, **environment)


@contextmanager
def _service_of(
    secrets: Mapping[str, str], parameters: Mapping[str, str]
) -> Iterator[dict[str, str]]:
    """Write parameters that libpq reads from no variable into a service file; yield its variables.

    Raises:
        StackError: The connection has a service already, or a parameter cannot be in such a file.

    """
    if not secrets:
        yield {}
        return
    names = ", ".join(sorted(secrets))
    if "service" in parameters or "PGSERVICE" in os.environ:
        raise StackError(
            f"GYRE_DATABASE_URL: expected no {names} beside a service of PostgreSQL: "
            "write it into the file of the service"
        )
    for name, value in secrets.items():
        if value != value.strip() or "\n" in value:
            raise StackError(
                f"GYRE_DATABASE_URL: expected {name} without a blank at its ends and in one line"
            )
    with TemporaryDirectory() as folder:  # for its owner alone
        file = Path(folder) / "pg_service.conf"
        lines = [f"{name}={value}" for name, value in secrets.items()]
        file.write_text("\n".join(["[gyre]", *lines, ""]))
        yield {"PGSERVICEFILE": str(file), "PGSERVICE": "gyre"}


def run_command(folder: Path | None, *command: str, **environment: str) -> str:
    """Return the output of a command; a StackError has its errors in one line."""
    result = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"LC_ALL": "C"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        errors = " ".join((result.stdout + result.stderr).split())
        raise StackError(f"{command[0]}: {errors[-300:]}")
    return result.stdout
