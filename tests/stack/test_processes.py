"""Real supervisors and real processes, in temporary homes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from core.errors import SettingsError, StackError
from core.settings import Settings, load_settings
from stack.environment import (
    MARK,
    airflow_environment,
    make_secrets,
    process_environment,
)
from stack.processes import (
    Program,
    end_stack,
    members,
    start,
    start_supervisor,
    states,
    stop_older,
    usage,
    wait_ready,
)
from stack.programs import PROGRAMS
from stack.scheduler import end_leftover_workers
from tests.conftest import unused_port, wait_until

SLEEP = [
    sys.executable,
    "-c",
    "import time; print('awake', flush=True); time.sleep(6000)",
]


def new_home(folder: Path) -> Settings:
    settings = load_settings(home=folder / "a home")
    for name in ("run", "logs"):
        (settings.home / name).mkdir(parents=True)
    return settings


@pytest.fixture
def settings(tmp_path):
    settings = new_home(tmp_path)
    yield settings
    end_stack(settings)


def program(name: str, code: str, problem=lambda _: None) -> Program:
    """A program of Python code, which is given in its environment."""
    os.environ[f"CODE_{name.upper()}"] = code
    run = f"import os; exec(os.environ['CODE_{name.upper()}'])"
    return Program(name, f'python -c "{run}"', problem)


def sleeper(name: str, problem=lambda _: None) -> Program:
    return program(name, SLEEP[-1], problem)


def launch(settings: Settings, *programs: Program) -> None:
    start_supervisor(settings, programs, process_environment(settings))
    start(settings, programs)


def log_has(settings: Settings, name: str, text: str) -> bool:
    log = settings.home / "logs" / f"{name}.log"
    return log.exists() and text in log.read_text()


def spawn(**marks: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(SLEEP, env=os.environ | marks, stdout=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A supervisor of several programs."""
    settings = new_home(tmp_path_factory.mktemp("shared"))
    held = "x = bytearray(b'x' * 50_000_000); print('awake', flush=True)"
    child = f"import time; sum(range(5_000_000)); {held}; time.sleep(6000)"
    work = "subprocess.run([sys.executable, '-c', 'sum(range(20_000_000))'])"
    parent = f"import subprocess, sys; {work}; subprocess.run([sys.executable, '-c', {child!r}])"
    launch(settings, sleeper("asleep"), sleeper("reader"), program("two", parent))
    yield settings
    end_stack(settings)


def test_cpu_and_memory_of_a_program_are_those_of_all_its_processes(shared):
    wait_until("memory", lambda: usage(shared)["two"][1] > 50_000_000)
    used = usage(shared)
    assert set(used) == {"two", "asleep", "reader"}
    assert used["two"][1] < 200_000_000
    assert used["asleep"][1] < 50_000_000
    assert used["two"][0] > used["asleep"][0] + 0.1  # of one that has ended, too


def test_only_what_is_older_than_a_change_is_stopped_and_started_again(shared):
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


def test_one_that_ends_each_time_is_named_with_the_end_of_its_log(settings):
    broken = program("broken", "raise SystemExit('no such thing')")
    launch(settings, broken)
    expected = r"(?s)broken is not ready.*it ends each time.*no such thing"
    with pytest.raises(StackError, match=expected):
        wait_ready(settings, [broken], lambda _: None)


def test_one_that_is_not_ready_in_time_is_named_with_the_remedy_and_its_log(settings):
    lines = []
    hung = sleeper("hung", lambda _: "no answer")
    launch(settings, hung)
    wait_until("its line", lambda: log_has(settings, "hung", "awake"))
    expected = r"(?s)hung is not ready .*after \d+ s; to wait on: gyre up.*awake"
    with pytest.raises(StackError, match=expected):
        wait_ready(settings, [hung], lines.append, seconds=3, notice=1)
    assert re.fullmatch(r"  waiting for hung, \d+ s", lines[-1])
    wait_ready(settings, [sleeper("hung")], lines.append)
    assert re.fullmatch(r"  hung: ready in [\d.]+ s", lines[-1])


def test_down_leaves_nothing_also_after_the_supervisor_was_killed(settings):
    settings = settings.model_copy(update={"redis_port": unused_port()})
    (settings.home / "redis").mkdir()
    redis = next(program for program in PROGRAMS if program.name == "redis")
    launch(settings, redis, sleeper("sleeper"))
    wait_ready(settings, [redis, sleeper("sleeper")], lambda _: None)
    wait_until("its line", lambda: log_has(settings, "sleeper", "awake"))
    leader = int((settings.home / "run" / "supervisord.pid").read_text())
    os.kill(leader, signal.SIGKILL)
    wait_until("its end", lambda: states(settings) is None)
    lines = end_stack(settings)
    assert any("CODE_SLEEPER" in line for line in lines)
    assert any("redis-server" in line for line in lines)
    assert members(settings.home) == []
    assert usage(settings) == {}
    assert end_stack(settings) == []


def test_down_spares_other_stacks_and_shells_that_merely_talk_to_this_one(
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


def test_workers_that_outlived_their_scheduler_are_ended_and_others_stay(settings):
    title = (
        "import setproctitle, time; setproctitle.setproctitle({!r}); time.sleep(6000)"
    )
    env = os.environ | {MARK: str(settings.home), "SPT_NOENV": "1"}
    names = ("airflow worker -- LocalExecutor: x", "airflow api_server")
    worker, server = (
        subprocess.Popen([sys.executable, "-c", title.format(name)], env=env)
        for name in names
    )
    try:
        wait_until(
            "title", lambda: "airflow" in psutil.Process(worker.pid).cmdline()[0]
        )
        end_leftover_workers(settings.home)
        assert worker.wait(timeout=600) is not None
        assert server.poll() is None
    finally:
        for process in (worker, server):
            process.kill()
            process.wait()


def test_what_the_user_sets_for_airflow_wins_but_for_its_database(
    settings, monkeypatch
):
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


def test_sqlite_for_all_databases_in_one_is_refused_in_one_line(tmp_path):
    with pytest.raises(
        SettingsError, match=r"^GYRE_DATABASE_URL: .*postgresql://.*$"
    ) as refused:
        load_settings(home=tmp_path, database_url=f"sqlite:///{tmp_path}/all.db")
    assert "\n" not in str(refused.value)
    load_settings(home=tmp_path, database_url="postgresql+psycopg2://somewhere/gyre")
