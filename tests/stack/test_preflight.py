"""What `make up` says before it starts anything."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stack.errors import SettingsError
from stack.preflight import (
    ENV_FILE,
    LAYOUT,
    LAYOUT_FILE,
    PORTS,
    disk_problems,
    layout_problems,
    port_problems,
    problems,
    python_problems,
)
from stack.settings import load_settings
from tests.conftest import BIN

PROJECT = Path(__file__).resolve().parents[2]


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def environment(home: Path) -> dict[str, str]:
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    return {"GYRE_HOME": str(home)} | {f"GYRE_{n}_PORT": str(p) for n, p in ports.items()}


def test_nothing_stands_in_the_way_here(tmp_path):
    assert problems(environment(tmp_path), sys.version_info[:2]) == []


def test_a_taken_port_is_named_with_its_holder_and_the_remedy_within_five_seconds(tmp_path):
    env = environment(tmp_path)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        env["GYRE_MLFLOW_PORT"] = str(other.getsockname()[1])
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "stack.bootstrap", "--start"],
            cwd=PROJECT, env=env, capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert time.monotonic() - began < 5
    assert done.returncode == 1
    for word in (env["GYRE_MLFLOW_PORT"], "mlflow", "set GYRE_MLFLOW_PORT"):
        assert word in done.stderr
    assert not any(tmp_path.iterdir()), "nothing half-started stays"


def test_a_part_that_is_somebody_elses_needs_no_port(tmp_path):
    env = environment(tmp_path)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        env["GYRE_REDIS_PORT"] = str(other.getsockname()[1])
        assert len(port_problems(env, tmp_path)) == 1
        assert port_problems(env | {"REDIS_URL": "redis://elsewhere"}, tmp_path) == []


def test_one_port_given_twice_or_not_a_port_is_refused(tmp_path):
    env = environment(tmp_path)
    twice = env | {"GYRE_REDIS_PORT": env["GYRE_SERVING_PORT"]}
    assert "both" in port_problems(twice, tmp_path)[0]
    assert "expected a port" in port_problems(env | {"GYRE_REDIS_PORT": "x"}, tmp_path)[0]


def test_what_a_home_keeps_holds_wherever_its_variables_are_not_given(tmp_path, monkeypatch):
    given = environment(tmp_path)
    for name in given:
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        (tmp_path / ENV_FILE).write_text(f"GYRE_MLFLOW_PORT={taken}\nGYRE_REDIS_PORT=7\n")
        kept = {n: v for n, v in given.items() if n not in {"GYRE_MLFLOW_PORT", "GYRE_REDIS_PORT"}}
        assert f"port {taken} (mlflow) is taken" in problems(kept, sys.version_info[:2])[0]
        assert problems(given | {"GYRE_REDIS_PORT": "8"}, sys.version_info[:2]) == []
    monkeypatch.setenv("GYRE_REDIS_PORT", "8")
    settings = load_settings(home=tmp_path)
    assert (settings.mlflow_port, settings.redis_port, settings.home) == (taken, 8, tmp_path)
    (tmp_path / ENV_FILE).write_text("GYRE_MLFLOW_PORT=many\n")
    with pytest.raises(SettingsError, match=r"GYRE_MLFLOW_PORT: .*'many'"):
        load_settings(home=tmp_path)


def test_an_old_and_a_too_new_python_are_named():
    assert "this is 3.10" in python_problems((3, 10))[0]
    assert "3.11 to 3.13" in python_problems((3, 14))[0]
    assert all(not python_problems((3, minor)) for minor in (11, 12, 13))


def test_a_full_disk_and_a_place_that_cannot_be_written_are_named(tmp_path):
    lines = disk_problems(tmp_path / "not" / "yet", tmp_path, room=10**18)
    assert len(lines) == 2
    assert "GB free" in lines[0]
    (tmp_path / "file").touch()
    assert "cannot be written: set GYRE_HOME" in disk_problems(tmp_path / "file", tmp_path, 0)[0]


def test_the_first_lock_pins_the_same_uv_as_the_whole_lock():
    whole = (PROJECT / "requirements.lock").read_text()
    pins = (PROJECT / "bootstrap.lock").read_text().splitlines()[1:]
    assert pins[0].startswith("uv==")
    assert "\n".join(pins) in whole
    assert "://" not in (PROJECT / "bootstrap.lock").read_text()


def test_make_without_a_target_lists_the_targets():
    make = shutil.which("make")
    assert make
    done = subprocess.run([make], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert {line.split()[0] for line in done.stdout.splitlines()} >= {"up", "down", "check", "test"}


def test_a_home_of_another_layout_is_refused_with_the_remedy_and_untouched(tmp_path):
    (tmp_path / "airflow").mkdir()
    assert layout_problems(tmp_path) == []
    (tmp_path / "airflow" / "secrets.json").write_text("{}")
    (problem,) = layout_problems(tmp_path)
    assert "has layout 1, this release needs layout 2: set GYRE_HOME to a new folder" in problem
    done = subprocess.run(
        [BIN / "gyre", "up"],
        env=os.environ | environment(tmp_path),
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, problem in done.stderr) == (1, True), done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["airflow"]
    (tmp_path / LAYOUT_FILE).write_text(LAYOUT)
    assert layout_problems(tmp_path) == []
