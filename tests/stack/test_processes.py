"""Real supervisors and real processes, in temporary homes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from stack.ending import end_leftover_workers, end_stack, members
from stack.environment import child_environment, process_environment, write_feast_config
from stack.errors import StackError
from stack.marks import MARK
from stack.processes import Program, render, running, socket_path, start, states, wait_ready
from stack.settings import Settings, load_settings

SLEEP = [sys.executable, "-c", "import time; print('awake', flush=True); time.sleep(600)"]


@pytest.fixture
def settings(tmp_path):
    settings = load_settings(home=tmp_path / "a home")
    for name in ("run", "logs"):
        (settings.home / name).mkdir(parents=True)
    yield settings
    end_stack(settings)


def ready() -> None:
    return None


def launch(settings: Settings, *programs: Program) -> None:
    start(settings, render(settings, list(programs)))
    wait_ready(settings, list(programs), lambda _: None, limit=20)


def children(settings: Settings) -> list[psutil.Process]:
    return [process for process in members(settings.home) if "awake" in str(process.cmdline())]


def spawn(**marks: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(SLEEP, env=os.environ | marks, stdout=subprocess.DEVNULL)


def test_what_a_program_is_given_reaches_it_whole(settings):
    odd = "50% of it, 'so' \\ and;more=1"
    show = "import os, time; print(repr(os.environ['ODD']), flush=True); time.sleep(60)"
    launch(settings, Program("odd", [sys.executable, "-c", show], ready, {"ODD": odd}))
    assert repr(odd) in (settings.home / "logs" / "odd.log").read_text()


def test_what_cannot_be_passed_on_is_refused_by_name(settings):
    with pytest.raises(StackError, match="ODD: a quote"):
        render(settings, [Program("odd", SLEEP, ready, {"ODD": 'a "b"'})])


def test_a_process_that_dies_is_started_again(settings):
    launch(settings, Program("sleeper", SLEEP, ready))
    before = states(settings)["sleeper"]["pid"]
    os.kill(before, signal.SIGKILL)
    until = time.monotonic() + 10
    while states(settings)["sleeper"]["pid"] in {before, 0}:
        assert time.monotonic() < until
        time.sleep(0.1)


def test_one_that_never_gets_ready_is_named_with_the_end_of_its_log(settings):
    broken = Program("broken", [sys.executable, "-c", "raise SystemExit('no such thing')"], ready)
    start(settings, render(settings, [broken]))
    with pytest.raises(StackError, match=r"(?s)broken is not ready.*no such thing"):
        wait_ready(settings, [broken], lambda _: None, limit=2)


def test_down_leaves_nothing_also_after_the_supervisor_was_killed(settings):
    launch(settings, Program("sleeper", SLEEP, ready))
    leader = int((settings.home / "run" / "supervisord.pid").read_text())
    os.kill(leader, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(leader)], timeout=5)
    assert not running(settings)
    assert len(children(settings)) == 1
    assert any("awake" in line for line in end_stack(settings))
    assert members(settings.home) == []
    assert end_stack(settings) == []


def test_a_process_that_forgot_its_environment_is_known_by_its_session(settings):
    forget = ["env", "-i", *SLEEP]
    launch(settings, Program("forgetful", forget, ready))
    assert len(children(settings)) == 1
    end_stack(settings)
    assert children(settings) == []


def test_down_spares_other_stacks_and_shells_that_merely_talk_to_this_one(settings, tmp_path):
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
    title = "import setproctitle, time; setproctitle.setproctitle({!r}); time.sleep(600)"
    env = os.environ | {MARK: str(settings.home), "SPT_NOENV": "1"}
    names = ("airflow worker -- LocalExecutor: x", "airflow api_server")
    worker, server = (
        subprocess.Popen([sys.executable, "-c", title.format(name)], env=env) for name in names
    )
    try:
        until = time.monotonic() + 5
        while "airflow" not in psutil.Process(worker.pid).cmdline()[0]:
            assert time.monotonic() < until
            time.sleep(0.05)
        end_leftover_workers(settings.home)
        assert worker.wait(timeout=5) is not None
        assert server.poll() is None
    finally:
        for process in (worker, server):
            process.kill()
            process.wait()


def test_a_long_home_gets_a_short_socket(tmp_path):
    long = load_settings(home=tmp_path / ("x" * 120))
    assert len(os.fsencode(socket_path(long))) < 107
    assert socket_path(long) != socket_path(load_settings(home=tmp_path / ("y" * 120)))


def test_children_find_the_stack_and_no_hindrance(settings):
    env = child_environment(settings)
    assert env["GYRE_HOME"] == str(settings.home)
    assert Path(env["FEAST_FS_YAML_FILE_PATH"]).parent == settings.home
    assert "PYTHONDONTWRITEBYTECODE" not in process_environment(settings)
    assert MARK not in env


def test_the_feature_store_is_pointed_at_this_stack_and_nothing_else_changes(settings):
    write_feast_config(settings)
    config = (settings.home / "feature_store.yaml").read_text()
    assert f'path: "{settings.home}/feast/registry.db"' in config
    assert f"127.0.0.1:{settings.redis_port}" in config
    shipped = (Path(__file__).parents[2] / "feature_repo/feature_store.yaml").read_text()
    changed = set(config.splitlines()) ^ set(shipped.splitlines())
    assert {line.split(":")[0].strip() for line in changed} == {"path", "connection_string"}
