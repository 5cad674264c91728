"""Tables and logs, on a terminal of a certain width and off one."""

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

from mlflow_server.ledger import Ledger
from tests.cli.clone import gyre, stack_environment
from tests.conftest import new_settings
from tests.console.test_checks import LEDGER
from tests.preloaded import commands_folder

MODEL = "customer_churn_model"
REASON = "because the \x1b[31mdrift\x1b[0m of\nits features " + "goes on and on " * 12
WIDTH = 90


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """Settings of a home; its commands take the width and the colours of their terminal."""
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    return new_settings(tmp_path)


def ledger_on_terminal(settings):
    """What a terminal of WIDTH columns gets, without warnings."""
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 50, WIDTH, 0, 0))
    process = subprocess.Popen(
        [commands_folder() / "gyre", "ledger", MODEL], env=stack_environment(settings),
        stdin=writer, stdout=writer, stderr=subprocess.DEVNULL,
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


def test_a_table_is_plain_lines_in_a_pipe_and_fits_a_terminal(settings):
    with closing(Ledger(settings)) as ledger:
        ledger.insert(replace(LEDGER, why=REASON, to_version="1"))
    output = gyre(settings, f"ledger {MODEL}").stdout
    head, line = output.splitlines()
    assert head.split() == ["time", "action", "role", "change", "by", "why"]
    columns = r"promote  production  none → 1  ann  because .* on and on"
    assert re.fullmatch(rf"1  \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\dZ  {columns}", line)
    assert "\x1b" not in output
    text = ledger_on_terminal(settings)
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "").splitlines()
    assert len(lines) > 3
    assert max(len(line) for line in lines) <= WIDTH
    assert "\x1b[31m" not in text  # the colours of a reason are left out
    assert "\x1b[2m" in text
    (row,) = json.loads(gyre(settings, f"ledger {MODEL} --json").stdout)
    assert (row["to"], row["who"], row["why"]) == ("1", "ann", REASON)


def test_logs_prints_the_newest_lines_follows_them_and_names_the_programs(settings):
    folder = settings.home / "logs"
    folder.mkdir()
    file = folder / "serving.log"
    file.write_text("".join(f"line {number}\n" for number in range(100)))
    (folder / "mlflow.log").touch()
    assert gyre(settings, "logs serving").stdout.splitlines()[-1] == "line 99"
    unknown_program = gyre(settings, "logs ../secrets", 1)
    assert "expected mlflow, serving" in unknown_program.stderr
    file.write_text("before\n")
    with subprocess.Popen(
        [commands_folder() / "gyre", "logs", "serving", "-f"], text=True,
        env=stack_environment(settings), stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout.readline() == "before\n"
        with file.open("a") as more:
            more.write("after\n")
        assert process.stdout.readline() == "after\n"
        process.terminate()
