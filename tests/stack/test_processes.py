"""Real supervisors and real processes, in temporary homes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from core.errors import StackError
from core.settings import load_settings
from stack.environment import (
    MARK,
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
