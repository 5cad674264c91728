"""Real supervisors and real processes, in temporary homes."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from core.errors import StackError
from core.settings import load_settings
from stack.environment import MARK, process_environment
from stack.scheduler import end_leftover_workers
from stack.supervisor import (
    Program,
    end_stack,
    make_socket_folder,
    socket_path,
    start,
    start_supervisor,
    states,
    stop_older,
    usage,
    wait_ready,
)
from tests.conftest import BIN, running, wait_until

SLEEP = "import time; print('awake', flush=True); time.sleep(6000)"
PASSWORD = "100%:sure %(ENV_HOME)s %%"
WORK = "sum(range(20_000_000))"
CHILD = "import time; memory = bytearray(b'x' * 50_000_000); time.sleep(6000)"
RUN = "subprocess.run([sys.executable, '-c', {!r}])"
CODES = {
    "reader": "import os; print(os.environ['MLFLOW_TRACKING_PASSWORD'], flush=True); "
    + SLEEP,
    "asleep": SLEEP,
    "changed": SLEEP,
    "parent": f"import subprocess, sys; {RUN.format(WORK)}; {RUN.format(CHILD)}",
    "broken": "raise SystemExit('no such thing')",
}
"""Programs of Python code by name."""


def new_settings(folder):
    settings = load_settings(home=folder / "a home")
    for name in ("run", "logs"):
        (settings.home / name).mkdir(parents=True)
    return settings


@pytest.fixture
def settings(tmp_path):
    """Settings of a home without a supervisor."""
    settings = new_settings(tmp_path)
    yield settings
    end_stack(settings)


@pytest.fixture(scope="module")
def programs():
    """Each has its code in its environment."""
    run = "import os; exec(os.environ['CODE_{}'])"
    return {
        name: Program(name, f'python -c "{run.format(name)}"', lambda _: None)
        for name in CODES
    }


@pytest.fixture(scope="module")
def stack(programs, tmp_path_factory):
    """Settings of a stack that runs all programs: supervisord takes 15 s to give one up."""
    settings = new_settings(tmp_path_factory.mktemp("stack"))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
        for name, code in CODES.items():
            environment.setenv(f"CODE_{name}", code)
        variables = process_environment(settings)
    start_supervisor(settings, programs.values(), variables)
    start(settings, programs.values())
    yield settings
    end_stack(settings)


def spawned(folder, code=SLEEP, **variables):
    return running([sys.executable, "-c", code], folder / "log", **variables)


def test_a_login_reaches_a_program_by_the_environment_alone(stack):
    """No file, no argument, and a % is what it is."""
    log = stack.home / "logs" / "reader.log"
    wait_until("its line", lambda: log.exists() and "awake" in log.read_text())
    assert log.read_text().startswith(f"{PASSWORD}\n")
    assert PASSWORD not in (stack.home / "run" / "supervisord.conf").read_text()
    process = psutil.Process(states(stack)["reader"]["pid"])
    lines = [*process.cmdline(), *process.parent().cmdline()]
    assert not [line for line in lines if "sure" in line]


@pytest.mark.journey
def test_only_processes_that_died_or_are_older_than_a_change_are_started_again(
    stack, programs
):
    changed = programs["changed"]

    def pids():
        names = ("reader", "asleep", "changed")
        return {name: states(stack)[name]["pid"] for name in names}

    def is_running():
        return states(stack)["changed"]["statename"] == "RUNNING"

    wait_until("it", is_running)
    before = pids()
    stop_older(stack, [changed], time.time() - 6000)
    assert pids() == before
    stop_older(stack, [changed], time.time() + 6000)
    start(stack, [changed])
    wait_until("it", is_running)
    after = pids()
    assert [name for name in after if after[name] != before[name]] == ["changed"]
    os.kill(after["asleep"], signal.SIGKILL)
    wait_until("another", lambda: pids()["asleep"] not in {after["asleep"], 0})


def test_cpu_and_memory_of_a_program_are_those_of_all_its_processes(stack):
    wait_until("memory", lambda: usage(stack)["parent"].memory_bytes > 50_000_000)
    usages = usage(stack)
    assert usages["parent"].memory_bytes < 200_000_000
    assert usages["reader"].memory_bytes < 50_000_000
    # Of a process that has ended, too.
    assert usages["parent"].cpu_seconds > usages["reader"].cpu_seconds + 0.1
    stop = [BIN / "supervisorctl", "--serverurl", f"unix://{socket_path(stack.home)}"]
    subprocess.run([*stop, "stop", "parent"], check=True, stdout=subprocess.DEVNULL)
    usages = usage(stack)
    assert "reader" in usages
    assert "parent" not in usages


@pytest.mark.journey
def test_a_program_that_always_ends_is_named_with_the_end_of_its_log(stack, programs):
    expected = r"(?s)broken is not ready.*it ends each time.*no such thing"
    with pytest.raises(StackError, match=expected):
        wait_ready(stack, [programs["broken"]], lambda _: None)


def test_down_ends_only_processes_of_its_own_stack_and_no_shell(settings, tmp_path):
    home = str(settings.home)
    with (
        spawned(tmp_path, GYRE_HOME=home) as shell,
        spawned(tmp_path, **{MARK: str(tmp_path / "other")}) as other,
        spawned(tmp_path, **{MARK: home}) as ours,
    ):
        assert [line.split()[0] for line in end_stack(settings)] == [str(ours.pid)]
        assert shell.poll() is None
        assert other.poll() is None


def test_airflows_workers_without_their_scheduler_are_ended(settings, tmp_path):
    code = "import setproctitle as s, time; s.setproctitle({!r}); time.sleep(6000)"
    worker_code = code.format("airflow worker -- LocalExecutor: x")
    server_code = code.format("airflow api_server")
    variables = {MARK: str(settings.home), "SPT_NOENV": "1"}
    with (
        spawned(tmp_path, worker_code, **variables) as worker,
        spawned(tmp_path, server_code, **variables) as server,
    ):
        worker_process = psutil.Process(worker.pid)
        wait_until("title", lambda: "airflow" in "".join(worker_process.cmdline()[:1]))
        end_leftover_workers(settings.home)
        assert worker.wait(timeout=600) is not None
        assert server.poll() is None


@pytest.fixture
def far_settings(tmp_path):
    """Settings of a home whose path is too long for a socket."""
    settings = new_settings(tmp_path / ("a" * 120))
    yield settings
    end_stack(settings)


def test_the_socket_of_a_long_home_is_in_a_folder_that_only_its_owner_enters(
    far_settings,
):
    home = far_settings.home
    assert states(far_settings) is None
    folders = []
    for _ in range(2):
        start_supervisor(far_settings, [], process_environment(far_settings))
        assert states(far_settings) == {}
        socket = socket_path(home)
        assert socket.is_socket()
        assert socket.parent.stat().st_mode & 0o777 == 0o700
        folders.append(socket.parent)
        end_stack(far_settings)
        assert not socket.parent.exists()
    assert folders[0] != folders[1]
    assert [*(home / "run").glob("*.folder")] == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_a_folder_that_another_user_has_taken_is_not_used(far_settings):
    home = far_settings.home
    make_socket_folder(home)
    taken_folder = socket_path(home).parent
    os.chown(taken_folder, 65534, 65534)
    assert socket_path(home).parent != taken_folder
    make_socket_folder(home)
    assert socket_path(home).parent.stat().st_uid == os.geteuid()
    assert socket_path(home).parent != taken_folder
    taken_folder.rmdir()
