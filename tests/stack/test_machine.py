"""What `make up` says before it starts anything."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

from core.errors import SettingsError
from core.settings import ENV_FILE, LOOPBACK, free_ports, load_settings
from stack.machine import (
    LAYOUT,
    LAYOUT_FILE,
    disk_problems,
    layout_problems,
    port_problems,
    problems,
)
from tests.conftest import BIN, at_most, new_settings, unused_port

PROJECT = Path(__file__).resolve().parents[2]


def environment(home: Path) -> dict[str, str]:
    ports = {f"GYRE_{name.upper()}": str(port) for name, port in free_ports().items()}
    return {"GYRE_HOME": str(home)} | ports


def test_nothing_stands_in_the_way_here(tmp_path):
    assert problems(new_settings(tmp_path)) == []


@pytest.mark.timed
def test_a_taken_port_is_named_with_its_holder_and_the_remedy_within_five_seconds(
    tmp_path,
):
    env = os.environ | environment(tmp_path)
    with socket.create_server((LOOPBACK, 0)) as other:
        env["GYRE_MLFLOW_PORT"] = str(other.getsockname()[1])
        began = time.monotonic()
        done = subprocess.run(
            [BIN / "gyre", "up"],
            cwd=PROJECT, env=env, capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert time.monotonic() - began < at_most(5)
    assert done.returncode == 1
    for word in (
        env["GYRE_MLFLOW_PORT"],
        "mlflow",
        f"{os.getpid()} (",
        "set GYRE_MLFLOW_PORT",
    ):
        assert word in done.stderr
    assert not any(tmp_path.iterdir()), "nothing half-started stays"


@pytest.mark.timed
def test_a_database_that_refuses_is_named_within_ten_seconds_and_nothing_is_left(
    tmp_path,
):
    address = f"postgresql://gyre:secret@{LOOPBACK}:{unused_port()}/loop"
    env = os.environ | environment(tmp_path) | {"GYRE_DATABASE_URL": address}
    began = time.monotonic()
    done = subprocess.run(
        [BIN / "gyre", "up"],
        cwd=PROJECT, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert time.monotonic() - began < at_most(10)
    assert done.returncode == 1
    shown = address.replace("secret", "***").replace("sql:", "sql+psycopg:")
    assert (
        f"GYRE_DATABASE_URL {shown}: the database refused: connection failed"
        in done.stderr
    )
    assert "secret" not in done.stderr
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("host", "guard"),
    [
        ("host", {"serving_tokens_file": "/tokens"}),
        ("mlflow_host", {"behind_proxy": True}),
        ("console_host", {"behind_proxy": True}),
        ("airflow_host", {}),
    ],
)
def test_a_program_that_asks_nobody_who_they_are_is_not_opened_to_others(
    tmp_path, host, guard
):
    if guard:
        expected = rf"^GYRE_{host.upper()}: .* set GYRE_{next(iter(guard)).upper()} too"
        with pytest.raises(SettingsError, match=expected):
            load_settings(home=tmp_path, **{host: "0.0.0.0"})
    assert load_settings(home=tmp_path, **{host: "127.0.0.2"})
    opened = load_settings(home=tmp_path, **{host: "0.0.0.0"}, **guard)
    assert opened.serving_address == f"http://{LOOPBACK}:8000", (
        "where our own processes ask"
    )
    with pytest.raises(SettingsError, match=f"^GYRE_{host.upper()}: .*'somewhere'"):
        load_settings(home=tmp_path, **{host: "somewhere"})


def test_an_address_of_another_machine_is_named(tmp_path):
    settings = new_settings(tmp_path, airflow_host="192.0.2.1")
    expected = "192.0.2.1 is no address of this machine: airflow cannot listen on it"
    assert port_problems(settings) == [expected]
    assert port_problems(new_settings(tmp_path, airflow_host="0.0.0.0")) == []


def test_a_part_that_is_somebody_elses_needs_no_port(tmp_path):
    with socket.create_server((LOOPBACK, 0)) as other:
        settings = new_settings(tmp_path, redis_port=other.getsockname()[1])
        assert len(port_problems(settings)) == 1
        elsewhere = settings.model_copy(update={"redis_url": "redis://elsewhere"})
        assert port_problems(elsewhere) == []


def test_one_port_given_twice_or_not_a_port_is_refused(tmp_path, monkeypatch):
    settings = new_settings(tmp_path)
    twice = settings.model_copy(update={"redis_port": settings.serving_port})
    assert "both" in port_problems(twice)[0]
    monkeypatch.setenv("GYRE_REDIS_PORT", "x")
    with pytest.raises(SettingsError, match="GYRE_REDIS_PORT"):
        load_settings(home=tmp_path)


def test_what_a_home_keeps_holds_wherever_its_variables_are_not_given(
    tmp_path, monkeypatch
):
    for name, port in environment(tmp_path).items():
        monkeypatch.setenv(name, port)
    monkeypatch.delenv("GYRE_MLFLOW_PORT")
    with socket.create_server((LOOPBACK, 0)) as other:
        taken = other.getsockname()[1]
        (tmp_path / ENV_FILE).write_text(
            f"GYRE_MLFLOW_PORT={taken}\nGYRE_REDIS_PORT=7\n"
        )
        settings = load_settings()
        assert f"port {taken} (mlflow) is taken" in problems(settings)[0]
    monkeypatch.setenv("GYRE_REDIS_PORT", "8")
    settings = load_settings(home=tmp_path)
    assert (settings.mlflow_port, settings.redis_port, settings.home) == (
        taken,
        8,
        tmp_path,
    )
    (tmp_path / ENV_FILE).write_text("GYRE_MLFLOW_PORT=many\n")
    with pytest.raises(SettingsError, match=r"GYRE_MLFLOW_PORT: .*'many'"):
        load_settings(home=tmp_path)


@pytest.mark.parametrize(
    ("version", "is_good"),
    [((3, 10, 13), False), ((3, 14, 0), False), ((3, 11, 2), True), ((3, 13, 9), True)],
)
def test_an_old_and_a_too_new_python_are_named(tmp_path, version, is_good):
    shutil.copy(PROJECT / "Makefile", tmp_path)
    python = tmp_path / "python"
    text = ".".join(map(str, version))
    pretend = f"import sys; sys.version_info, sys.version = {version}, '{text}'"
    python.write_text(f'#!/bin/sh\nexec {BIN}/python -c "{pretend}\n$2"\n')
    python.chmod(0o755)
    done = subprocess.run(
        ["make", "python", f"PYTHON={python}"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode == 0) == is_good, done.stderr
    said = f"Python 3.11 to 3.13 is needed, this is {text}: make up PYTHON=/path/to/python3.11"
    assert (said in done.stderr) != is_good


def test_a_full_disk_and_a_place_that_cannot_be_written_are_named(tmp_path):
    (line,) = disk_problems(tmp_path / "not" / "yet", 10**18)
    assert "GB free" in line
    (tmp_path / "file").touch()
    assert "cannot be written: set GYRE_HOME" in disk_problems(tmp_path / "file", 0)[0]


def test_the_locks_hold_hashes_and_no_addresses():
    for name in ("requirements.lock", "spark.lock"):
        text = (PROJECT / name).read_text()
        assert "--hash=sha256:" in text
        assert "://" not in text


def test_make_without_a_target_lists_the_targets():
    make = shutil.which("make")
    assert make
    done = subprocess.run(
        [make], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert {line.split()[0] for line in done.stdout.splitlines()} >= {
        "up",
        "down",
        "check",
        "test",
    }


def test_a_home_of_another_layout_is_refused_with_the_remedy_and_untouched(tmp_path):
    (tmp_path / "airflow").mkdir()
    assert layout_problems(tmp_path) == []
    (tmp_path / "airflow" / "secrets.json").write_text("{}")
    (problem,) = layout_problems(tmp_path)
    needed = f"has layout 1, this release needs layout {LAYOUT}: set GYRE_HOME to a new folder"
    assert needed in problem
    done = subprocess.run(
        [BIN / "gyre", "up"],
        env=os.environ | environment(tmp_path),
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert (done.returncode, problem in done.stderr) == (1, True), done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["airflow"]
    (tmp_path / LAYOUT_FILE).write_text(LAYOUT)
    assert layout_problems(tmp_path) == []
