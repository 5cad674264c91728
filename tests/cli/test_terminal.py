"""Tables and logs, on a terminal of a certain width and off one."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import termios
from contextlib import closing
from dataclasses import replace

import pytest

from core.settings import PROJECT
from mlflow_server.ledger import Ledger
from stack.environment import child_environment
from tests.conftest import new_settings
from tests.console.test_checks import LEDGER
from tests.preloaded import commands_folder

MODEL = "customer_churn_model"
REASON = "because the \x1b[31mdrift\x1b[0m of\nits features " + "goes on and on " * 12
ESCAPE = "\x1b["


@pytest.fixture
def settings(tmp_path):
    return new_settings(tmp_path)


@pytest.fixture
def ledger(settings):
    with closing(Ledger(settings)) as ledger:
        ledger.insert(replace(LEDGER, why=REASON, to_version="1"))
    return settings


def environment(settings) -> dict[str, str]:
    hindering = ("PROMETHEUS_", "NO_COLOR", "COLUMNS")
    outer = {k: v for k, v in os.environ.items() if not k.startswith(hindering)}
    return outer | child_environment(settings) | {"TERM": "xterm-256color"}


def piped(settings, *arguments: str):
    return subprocess.run(
        [commands_folder() / "gyre", *arguments], env=environment(settings), cwd=PROJECT,
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip


def on_terminal(settings, *arguments: str, columns: int = 80):
    """What a terminal so wide gets from the command; with "ledger" no warnings."""
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    errors = subprocess.DEVNULL if "ledger" in arguments else writer
    process = subprocess.Popen(
        [commands_folder() / "gyre", *arguments], env=environment(settings), cwd=PROJECT,
        stdin=writer, stdout=writer, stderr=errors,
    )  # fmt: skip
    os.close(writer)
    text = b""
    try:
        chunk = os.read(reader, 65536)
        while chunk:
            text += chunk
            chunk = os.read(reader, 65536)
    except OSError:  # Linux's end of a terminal
        pass
    os.close(reader)
    process.wait(600)
    return text.decode()


def test_a_table_is_plain_lines_in_a_pipe_and_fits_a_terminal(ledger):
    output = piped(ledger, "ledger", MODEL).stdout
    head, line = output.splitlines()
    assert head.split() == ["time", "action", "role", "change", "by", "why"]
    columns = r"promote  production  none → 1  ann  because .* on and on"
    assert re.fullmatch(rf"1  \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\dZ  {columns}", line)
    assert "\x1b" not in output
    text = on_terminal(ledger, "ledger", MODEL, columns=90)
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "").splitlines()
    assert len(lines) > 3
    assert max(len(line) for line in lines) <= 90
    assert f"{ESCAPE}31m" not in text  # the colours of a reason are left out
    assert f"{ESCAPE}2m" in text
    (row,) = json.loads(piped(ledger, "ledger", MODEL, "--json").stdout)
    assert (row["to"], row["who"], row["why"]) == ("1", "ann", REASON)


def test_logs_prints_the_newest_lines_follows_them_and_names_the_programs(settings):
    folder = settings.home / "logs"
    folder.mkdir()
    file = folder / "serving.log"
    file.write_text("".join(f"line {number}\n" for number in range(100)))
    (folder / "mlflow.log").touch()
    assert piped(settings, "logs", "serving").stdout.splitlines()[-1] == "line 99"
    unknown = piped(settings, "logs", "../secrets")
    assert unknown.returncode == 1
    assert "expected mlflow, serving" in unknown.stderr
    file.write_text("before\n")
    with subprocess.Popen(
        [commands_folder() / "gyre", "logs", "serving", "-f"], env=environment(settings),
        stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout.readline() == "before\n"
        with file.open("a") as more:
            more.write("after\n")
        assert process.stdout.readline() == "after\n"
        process.terminate()
