"""Real supervisors and real processes, in temporary homes."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from core.errors import SettingsError, StackError
from core.settings import PROJECT, Settings, load_settings
from feature_repo.feast_config import feast_config, write_feast_config
from stack.environment import (
    MARK,
    airflow_environment,
    child_environment,
    make_secrets,
    process_environment,
)
from stack.processes import (
    Program,
    end_stack,
    members,
    render,
    restart,
    socket_path,
    start,
    states,
    usage,
    wait_ready,
)
from stack.programs import redis
from stack.scheduler import end_leftover_workers
from tests.conftest import wait_until

SLEEP = [
    sys.executable,
    "-c",
    "import time; print('awake', flush=True); time.sleep(6000)",
]


@pytest.fixture
def settings(tmp_path):
    settings = load_settings(home=tmp_path / "a home")
    for name in ("run", "logs"):
        (settings.home / name).mkdir(parents=True)
    yield settings
    end_stack(settings)


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ready() -> None:
    return None


def launch(settings: Settings, *programs: Program) -> None:
    start(settings, render(settings, list(programs)))
    wait_ready(settings, list(programs), lambda _: None)


def children(settings: Settings) -> list[psutil.Process]:
    return [
        process
        for process in members(settings.home)
        if "awake" in str(process.cmdline())
    ]


def spawn(**marks: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(SLEEP, env=os.environ | marks, stdout=subprocess.DEVNULL)


ODD = "50% of it, 'so' \\ and;more=1"


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A supervisor of several programs."""
    settings = load_settings(home=tmp_path_factory.mktemp("shared") / "a home")
    for name in ("run", "logs"):
        (settings.home / name).mkdir(parents=True)
    show = (
        "import os, time; print(repr(os.environ['ODD']), flush=True); time.sleep(6000)"
    )
    held = "x = bytearray(b'x' * 50_000_000); print('awake', flush=True)"
    child = f"import time; sum(range(5_000_000)); {held}; time.sleep(6000)"
    work = "subprocess.run([sys.executable, '-c', 'sum(range(20_000_000))'])"
    parent = f"import subprocess, sys; {work}; subprocess.run([sys.executable, '-c', {child!r}])"
    programs = [Program(name, SLEEP, ready) for name in ("asleep", "reader")]
    programs += [
        Program("two", [sys.executable, "-c", parent], ready),
        Program("odd", [sys.executable, "-c", show], ready, {"ODD": ODD}),
    ]
    launch(settings, *programs)
    yield settings
    end_stack(settings)


def test_what_a_program_is_given_reaches_it_whole(shared):
    log = shared.home / "logs" / "odd.log"
    wait_until("its line", lambda: log.exists() and "\n" in log.read_text())
    assert repr(ODD) in log.read_text()


def test_cpu_and_memory_of_a_program_are_those_of_all_its_processes(shared):
    wait_until("memory", lambda: usage(shared)["two"][1] > 50_000_000)
    used = usage(shared)
    assert set(used) == {"two", "asleep", "reader", "odd"}
    assert used["two"][1] < 200_000_000
    assert used["asleep"][1] < 50_000_000
    assert used["two"][0] > used["asleep"][0] + 0.1  # of one that has ended, too


def test_of_those_that_read_what_changed_since_they_started_each_is_started_again(
    shared,
):
    before = {name: state["pid"] for name, state in states(shared).items()}
    assert restart(shared, ["reader"], time.time() - 6000) == []
    assert restart(shared, ["reader"], time.time() + 6000) == ["reader"]
    wait_until(
        "the reader",
        lambda: states(shared)["reader"]["pid"] not in {before["reader"], 0},
    )
    after = {name: state["pid"] for name, state in states(shared).items()}
    assert [name for name in after if after[name] != before[name]] == ["reader"]


def test_a_process_that_dies_is_started_again(shared):
    before = states(shared)["asleep"]["pid"]
    os.kill(before, signal.SIGKILL)
    wait_until("another", lambda: states(shared)["asleep"]["pid"] not in {before, 0})


def test_what_cannot_be_passed_on_is_refused_by_name(settings):
    with pytest.raises(StackError, match="ODD: a quote"):
        render(settings, [Program("odd", SLEEP, ready, {"ODD": 'a "b"'})])


def test_with_another_project_the_programs_are_others(settings, tmp_path):
    other = settings.model_copy(update={"project": tmp_path})
    assert render(settings, []) != render(other, [])
    assert child_environment(other)["GYRE_PROJECT"] == str(tmp_path)


def test_one_that_ends_each_time_is_named_with_the_end_of_its_log(settings):
    broken = Program(
        "broken", [sys.executable, "-c", "raise SystemExit('no such thing')"], ready
    )
    start(settings, render(settings, [broken]))
    with pytest.raises(
        StackError, match=r"(?s)broken is not ready.*: it ends .*no such thing"
    ):
        wait_ready(settings, [broken], lambda _: None)


def test_one_that_hangs_is_named_with_the_end_of_its_log(settings):
    hung = Program("hung", SLEEP, lambda: "no answer")
    start(settings, render(settings, [hung]))
    log = settings.home / "logs" / "hung.log"
    wait_until("its line", lambda: log.exists() and "awake" in log.read_text())
    message = r"(?s)hung is not ready .*: its log has had no new line for 1 s; .*awake"
    with pytest.raises(StackError, match=message):
        wait_ready(settings, [hung], lambda _: None, silence=1)


def test_one_whose_log_grows_is_waited_for_longer_than_a_hung_one_and_named(settings):
    log = settings.home / "logs" / "slow.log"
    asked = []

    def problem():
        asked.append(time.monotonic())
        with log.open("a") as file:
            file.write("still at it\n")
        return "not yet" if asked[-1] - asked[0] < 10 else None

    slow = Program("slow", SLEEP, problem)
    start(settings, render(settings, [slow]))
    lines = []
    wait_ready(settings, [slow], lines.append, silence=8, notice=1)
    assert any(
        re.fullmatch(r"  waiting for slow \(not yet\), \d+ s", line) for line in lines
    )
    assert re.fullmatch(r"  slow: ready in [\d.]+ s", lines[-1])


def test_down_leaves_nothing_also_after_the_supervisor_was_killed(settings):
    launch(settings, Program("sleeper", SLEEP, ready))
    leader = int((settings.home / "run" / "supervisord.pid").read_text())
    os.kill(leader, signal.SIGKILL)
    wait_until("its end", lambda: states(settings) is None)
    assert len(children(settings)) == 1
    assert any("awake" in line for line in end_stack(settings))
    assert members(settings.home) == []
    assert usage(settings) == {}
    assert end_stack(settings) == []


def test_redis_keeps_the_mark_that_down_knows_it_by(settings):
    settings = settings.model_copy(update={"redis_port": unused_port()})
    (settings.home / "redis").mkdir()
    launch(settings, redis(settings))
    pid = states(settings)["redis"]["pid"]
    os.kill(
        int((settings.home / "run" / "supervisord.pid").read_text()), signal.SIGKILL
    )
    assert pid in {process.pid for process in members(settings.home)}
    assert any("redis-server" in line for line in end_stack(settings))
    assert not psutil.pid_exists(pid)


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


def test_what_the_user_sets_for_airflow_wins_but_for_its_database(
    settings, monkeypatch
):
    make_secrets(settings)
    ours, database = (
        airflow_environment(settings),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN",
    )
    monkeypatch.setenv("AIRFLOW__CORE__PARALLELISM", "16")
    monkeypatch.setenv(
        database, "airflow-db-not-allowed:///"
    )  # as Airflow tells its tasks
    assert airflow_environment(settings) == ours | {"AIRFLOW__CORE__PARALLELISM": "16"}
    assert ours[database].startswith(f"sqlite:///{settings.home}")


def test_the_feature_store_is_pointed_at_this_stack_and_nothing_else_changes(settings):
    write_feast_config(settings)
    written = yaml.safe_load((settings.home / "feature_store.yaml").read_text())
    address = f"sqlite:///{settings.home}/feast/registry.db?timeout=30"
    assert written["registry"]["path"] == address
    address = written["online_store"]["connection_string"]
    assert address.startswith(f"127.0.0.1:{settings.redis_port},")
    shipped = yaml.safe_load((PROJECT / "feature_repo/feature_store.yaml").read_text())
    shipped["registry"]["path"] = written["registry"]["path"]
    shipped["offline_store"]["cache"] = f"{settings.home}/cache"
    shipped["online_store"]["connection_string"] = address
    assert written == shipped


def test_another_online_store_takes_the_place_of_redis_and_a_temporary_home_leaves_it_alone(
    settings, monkeypatch
):
    monkeypatch.setenv("GYRE_ONLINE_STORE__TYPE", "dynamodb")
    monkeypatch.setenv("GYRE_ONLINE_STORE__REGION", "us-east-1")
    monkeypatch.setenv("GYRE_ONLINE_STORE__CONSISTENT_READS", "true")
    named = load_settings(home=settings.home)
    store = {"type": "dynamodb", "region": "us-east-1", "consistent_reads": True}
    assert feast_config(named, 1)["online_store"] == store
    assert child_environment(named)["GYRE_ONLINE_STORE__TYPE"] == "dynamodb"
    beside = named.beside(settings.home / "beside")
    assert "connection_string" in feast_config(beside, 1)["online_store"]
    assert not [name for name in child_environment(beside) if "ONLINE_STORE" in name]


def test_sqlite_for_all_databases_in_one_is_refused_in_one_line(tmp_path):
    with pytest.raises(
        SettingsError, match=r"^GYRE_DATABASE_URL: .*postgresql://.*$"
    ) as refused:
        load_settings(home=tmp_path, database_url=f"sqlite:///{tmp_path}/all.db")
    assert "\n" not in str(refused.value)
    load_settings(home=tmp_path, database_url="postgresql+psycopg2://somewhere/gyre")
