"""Real supervisors and real processes, in temporary homes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest

from core.errors import SettingsError, StackError
from core.settings import load_settings
from stack.environment import (
    MARK,
    airflow_environment,
    make_secrets,
    process_environment,
)
from stack.processes import (
    Program,
    end_stack,
    start,
    start_supervisor,
    states,
    stop_older,
    wait_ready,
)
from stack.scheduler import end_leftover_workers
from tests.conftest import wait_until

SLEEP = "import time; print('awake', flush=True); time.sleep(6000)"


def new_home(folder):
    settings = load_settings(home=folder / "a home")
    for name in ("run", "logs"):
        (settings.home / name).mkdir(parents=True)
    return settings


@pytest.fixture
def settings(tmp_path):
    settings = new_home(tmp_path)
    yield settings
    end_stack(settings)


def program(name, code, problem=lambda _: None):
    """A program of Python code, which is given in its environment."""
    os.environ[f"CODE_{name.upper()}"] = code
    run = f"import os; exec(os.environ['CODE_{name.upper()}'])"
    return Program(name, f'python -c "{run}"', problem)


def sleeper(name, problem=lambda _: None):
    return program(name, SLEEP, problem)


def launch(settings, *programs):
    start_supervisor(settings, programs, process_environment(settings))
    start(settings, programs)


def spawn(**marks):
    command = [sys.executable, "-c", SLEEP]
    return subprocess.Popen(command, env=os.environ | marks, stdout=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A supervisor of several programs."""
    settings = new_home(tmp_path_factory.mktemp("shared"))
    launch(settings, sleeper("asleep"), sleeper("reader"))
    yield settings
    end_stack(settings)


def test_only_processes_older_than_a_change_are_restarted(shared):
    reader = sleeper("reader")
    wait_until("it", lambda: states(shared)["reader"]["statename"] == "RUNNING")
    before = {name: row["pid"] for name, row in states(shared).items()}
    stop_older(shared, [reader], time.time() - 6000)
    assert states(shared)["reader"]["pid"] == before["reader"]
    stop_older(shared, [reader], time.time() + 6000)
    start(shared, [reader])
    wait_until("it", lambda: states(shared)["reader"]["statename"] == "RUNNING")
    after = {name: row["pid"] for name, row in states(shared).items()}
    assert [name for name in after if after[name] != before[name]] == ["reader"]


def test_a_process_that_dies_is_started_again(shared):
    before = states(shared)["asleep"]["pid"]
    os.kill(before, signal.SIGKILL)
    wait_until("another", lambda: states(shared)["asleep"]["pid"] not in {before, 0})


def test_a_program_that_always_ends_is_named_with_the_end_of_its_log(settings):
    broken = program("broken", "raise SystemExit('no such thing')")
    launch(settings, broken)
    expected = r"(?s)broken is not ready.*it ends each time.*no such thing"
    with pytest.raises(StackError, match=expected):
        wait_ready(settings, [broken], lambda _: None)


def test_a_program_that_is_not_ready_in_time_is_named_with_the_remedy_and_its_log(
    settings,
):
    lines = []
    hung = sleeper("hung", lambda _: "no answer")
    launch(settings, hung)
    log = settings.home / "logs" / "hung.log"
    wait_until("its line", lambda: log.exists() and "awake" in log.read_text())
    expected = r"(?s)hung is not ready .*after \d+ s; to wait on: gyre up.*awake"
    with pytest.raises(StackError, match=expected):
        wait_ready(settings, [hung], lines.append, seconds=3, notice=1)
    assert re.fullmatch(r"  waiting for hung, \d+ s", lines[-1])
    wait_ready(settings, [sleeper("hung")], lines.append)
    assert re.fullmatch(r"  hung: ready in [\d.]+ s", lines[-1])


def test_down_ends_its_own_processes_and_neither_other_stacks_nor_shells(
    settings, tmp_path
):
    shell = spawn(GYRE_HOME=str(settings.home))
    other = spawn(**{MARK: str(tmp_path / "other")})
    ours = spawn(**{MARK: str(settings.home)})
    try:
        assert [line.split()[0] for line in end_stack(settings)] == [str(ours.pid)]
        assert shell.poll() is None
        assert other.poll() is None
    finally:
        for process in (shell, other, ours):
            process.kill()
            process.wait()


def test_airflows_workers_without_their_scheduler_are_ended(settings):
    title = "import setproctitle as s, time; s.setproctitle({!r}); time.sleep(6000)"
    processes = []
    try:
        for name in ("airflow worker -- LocalExecutor: x", "airflow api_server"):
            command = [sys.executable, "-c", title.format(name)]
            env = os.environ | {MARK: str(settings.home), "SPT_NOENV": "1"}
            processes.append(subprocess.Popen(command, env=env))
        worker, server = processes
        worker_title = psutil.Process(worker.pid)
        wait_until("title", lambda: "airflow" in worker_title.cmdline()[0])
        end_leftover_workers(settings.home)
        assert worker.wait(timeout=600) is not None
        assert server.poll() is None
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_a_users_settings_of_airflow_count_but_for_its_database(settings, monkeypatch):
    make_secrets(settings)
    shipped = airflow_environment(settings)
    assert shipped["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"].startswith(
        f"sqlite:///{settings.home}"
    )
    for name, value in {
        "CORE__PARALLELISM": "16",
        "CORE__FERNET_KEY_CMD": "cat key",
        # As Airflow tells its tasks.
        "DATABASE__SQL_ALCHEMY_CONN": "airflow-db-not-allowed:///",
        "DATABASE__SQL_ALCHEMY_CONN_CMD": "cat address",
    }.items():
        monkeypatch.setenv(f"AIRFLOW__{name}", value)
    del shipped["AIRFLOW__CORE__FERNET_KEY"]  # Airflow would prefer it to the command
    assert airflow_environment(settings) == shipped | {
        "AIRFLOW__CORE__PARALLELISM": "16"
    }


def test_one_sqlite_file_for_all_databases_is_refused(tmp_path):
    with pytest.raises(SettingsError, match=r"^GYRE_DATABASE_URL: .*postgresql://"):
        load_settings(home=tmp_path, database_url=f"sqlite:///{tmp_path}/all.db")
