"""Problems that `gyre up` reports before it starts anything."""

import os
import shutil
import socket
import time

import pytest

from core.errors import SettingsError
from core.project import CLONE, ENV_FILE
from core.settings import LAYOUT, LOOPBACK, load_settings
from stack.environment import process_environment
from stack.machine import LAYOUT_FILE, disk_problems, layout_problems
from tests.conftest import BIN, at_most, new_settings, unused_port
from tests.support.tools.clone import finished


def failed_start(home, **changes):
    """Return the errors of `gyre up`, which come at once; it leaves nothing."""
    env = process_environment(new_settings(home)) | changes
    files = {*home.iterdir()}
    start = time.monotonic()
    done = finished(f"{BIN}/gyre up", CLONE, env, 1)
    assert time.monotonic() - start < at_most(5)
    assert {*home.iterdir()} == files
    return done.stderr


@pytest.mark.timed
def test_a_taken_port_is_named_with_the_remedy_within_five_seconds(tmp_path):
    with socket.create_server((LOOPBACK, 0)) as other:
        port = str(other.getsockname()[1])
        problem = failed_start(tmp_path, GYRE_MLFLOW_PORT=port)
    assert f"port {port} (mlflow) is taken: stop the program" in problem
    assert "set GYRE_MLFLOW_PORT to a free port" in problem


@pytest.mark.timed
def test_a_database_that_refuses_is_named_without_its_password(tmp_path):
    address = f"postgresql://gyre:secret@{LOOPBACK}:{unused_port()}/loop"
    problem = failed_start(tmp_path, GYRE_DATABASE_URL=address)
    shown = address.replace("secret", "***").replace("sql:", "sql+psycopg:")
    assert f"GYRE_DATABASE_URL {shown}: the database refused: " in problem
    assert "secret" not in problem


@pytest.mark.parametrize(
    ("host", "guard", "value"),
    [
        ("host", "serving_tokens_file", "/tokens"),
        ("mlflow_host", "behind_proxy", "true"),
        ("console_host", "behind_proxy", "true"),
    ],
)
def test_a_program_without_credentials_is_not_opened_to_other_hosts(
    tmp_path, host, guard, value
):
    def load(address, **more):
        return load_settings(home=tmp_path, **{host: address}, **more)

    expected = rf"^GYRE_{host.upper()}: .* set GYRE_{guard.upper()} too"
    with pytest.raises(SettingsError, match=expected):
        load("0.0.0.0")
    assert load("127.0.0.2")
    opened = load("0.0.0.0", **{guard: value})
    assert opened.serving_address == f"http://{LOOPBACK}:8000", (
        "where our own processes ask"
    )
    with pytest.raises(SettingsError, match=f"^GYRE_{host.upper()}: .*'somewhere'"):
        load("somewhere")


@pytest.mark.parametrize("users", ["ann", "ann:root", "ann:user bob:op"])
def test_a_user_of_airflow_without_a_known_role_is_refused_by_name(tmp_path, users):
    with pytest.raises(SettingsError, match=r"^GYRE_AIRFLOW_USERS: .*NAME:ROLE"):
        load_settings(home=tmp_path, airflow_users=users)


def test_settings_in_the_home_count_where_the_environment_has_none(
    tmp_path, monkeypatch
):
    (tmp_path / ENV_FILE).write_text("GYRE_MLFLOW_PORT=7\nGYRE_REDIS_PORT=7\n")
    monkeypatch.setenv("GYRE_HOME", str(tmp_path))
    monkeypatch.setenv("GYRE_REDIS_PORT", "8")
    settings = load_settings()
    assert (settings.mlflow_port, settings.redis_port) == (7, 8)
    (tmp_path / ENV_FILE).write_text("GYRE_MLFLOW_PORT=many\n")
    with pytest.raises(SettingsError, match=r"GYRE_MLFLOW_PORT: .*'many'"):
        load_settings()


@pytest.mark.parametrize(
    ("version", "is_good"),
    [((3, 10, 13), False), ((3, 14, 0), False), ((3, 13, 9), True)],
)
def test_a_python_that_is_too_old_or_too_new_is_named(tmp_path, version, is_good):
    shutil.copy(CLONE / "Makefile", tmp_path)
    python = tmp_path / "python"
    text = ".".join(map(str, version))
    version_code = f"import sys; sys.version_info, sys.version = {version}, '{text}'"
    python.write_text(f'#!/bin/sh\nexec {BIN}/python -c "{version_code}\n$2"\n')
    python.chmod(0o755)
    code = 0 if is_good else 2
    done = finished(f"make python PYTHON={python}", tmp_path, os.environ, code)
    message = f"Python 3.11 to 3.13 is needed, this is {text}: make up PYTHON=/path/to/python3.11"
    assert (message in done.stderr) != is_good


def test_a_full_disk_and_an_unwritable_folder_are_named(tmp_path):
    (line,) = disk_problems(tmp_path / "not" / "yet", 10**18)
    assert "GB free" in line
    (tmp_path / "file").touch()
    assert "cannot be written: set GYRE_HOME" in disk_problems(tmp_path / "file", 0)[0]


@pytest.mark.timed
def test_a_home_of_another_layout_is_refused_with_the_remedy_and_untouched(tmp_path):
    (tmp_path / "airflow").mkdir()
    assert layout_problems(tmp_path) == []
    (tmp_path / "airflow" / "secrets.json").write_text("{}")
    (problem,) = layout_problems(tmp_path)
    needed = f"has layout 1, this release needs layout {LAYOUT}: set GYRE_HOME to a new folder"
    assert needed in problem
    (tmp_path / LAYOUT_FILE).write_text("4\n")
    (problem,) = layout_problems(tmp_path)
    assert "has layout 4, this release" in problem
    assert problem in failed_start(tmp_path)
    (tmp_path / LAYOUT_FILE).write_text(LAYOUT)
    assert layout_problems(tmp_path) == []
