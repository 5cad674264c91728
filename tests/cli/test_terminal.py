"""Tables, progress, logs and completion, on a terminal of a certain width and off one."""

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
from dataclasses import asdict, replace

import pytest
from rich.console import Console

from cli.status import shown
from core.settings import PROJECT
from mlflow_server.ledger import Ledger
from monitoring.console.checks import of_model
from monitoring.console.loop import card_of
from stack.environment import child_environment
from tests.conftest import new_settings
from tests.console.test_checks import DECISION, LEDGER, NOW, SILENT, rows
from tests.preloaded import commands_folder

MODEL = "customer_churn_model"
WHY = "because the \x1b[31mdrift\x1b[0m of\nits features " + "goes on and on " * 12
ESCAPE = "\x1b["
PROGRESS = """
import sys, time
from cli.terminal import tell, progress, ERR
with progress("train it"):
    tell("a fold is done", ERR)
    time.sleep(float(sys.argv[1]))
print("outcome")
"""


@pytest.fixture
def settings(tmp_path):
    return new_settings(tmp_path)


@pytest.fixture
def ledger(settings):
    with closing(Ledger(settings)) as ledger:
        ledger.insert(replace(LEDGER, why=WHY, to_version="1"))
    return settings


def environment(settings, **more: str) -> dict[str, str]:
    own = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("PROMETHEUS_", "NO_COLOR"))
    }
    return own | child_environment(settings) | {"TERM": "xterm-256color"} | more


def piped(settings, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=environment(settings, **more), cwd=PROJECT, capture_output=True, text=True,
        check=False, timeout=600,
    )  # fmt: skip


def on_terminal(settings, *command: str, columns: int = 80) -> str:
    """What a terminal so wide gets of the command; with "ledger" no warning that MLflow is away."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    env = environment(settings)
    env.pop("COLUMNS", None)
    process = subprocess.Popen(
        command, env=env, cwd=PROJECT, stdin=theirs, stdout=theirs,
        stderr=subprocess.DEVNULL if "ledger" in command else theirs,
    )  # fmt: skip
    os.close(theirs)
    text = b""
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # Linux's end of a terminal
            break
        if not chunk:
            break
        text += chunk
    os.close(ours)
    process.wait(600)
    return text.decode()


@pytest.fixture(scope="module")
def gyre():
    return str(commands_folder() / "gyre")


@pytest.fixture(scope="module")
def python():
    return str(commands_folder() / "python")


def test_a_row_of_a_table_is_one_plain_line_in_a_pipe(ledger, gyre):
    done = piped(ledger, gyre, "ledger", MODEL)
    head, line = done.stdout.splitlines()
    assert head.split() == ["time", "action", "role", "change", "by", "why"]
    assert re.fullmatch(
        r"1  \d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ  promote  production  none → 1  ann  because .* on and on",
        line,
    )
    assert "\x1b" not in done.stdout


def test_a_table_fits_the_terminal_and_has_colours_only_there(ledger, gyre):
    text = on_terminal(ledger, gyre, "ledger", MODEL, columns=90)
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "").splitlines()
    assert len(lines) > 3
    assert max(len(line) for line in lines) <= 90
    assert f"{ESCAPE}31m" not in text  # what a reason has of them is left out
    assert f"{ESCAPE}2m" in text


def test_json_is_as_before(ledger, gyre):
    (row,) = json.loads(piped(ledger, gyre, "ledger", MODEL, "--json").stdout)
    assert (row["to"], row["who"], row["why"]) == ("1", "ann", WHY)


def test_progress_says_how_long_it_goes_on_and_vanishes(settings, python):
    text = on_terminal(settings, python, "-c", PROGRESS, "1.2")
    assert re.search(r"train it 0:00:01", re.sub(rf"{ESCAPE}[0-9;]*m", "", text))
    assert "a fold is done\r\n" in text
    assert text.replace(f"{ESCAPE}?25h", "").rstrip().endswith("outcome")


def test_off_a_terminal_progress_is_its_lines_alone(settings, python):
    done = piped(settings, python, "-c", PROGRESS, "0.1")
    assert (done.stdout, done.stderr) == ("outcome\n", "a fold is done\n")


def test_logs_prints_the_newest_lines_and_names_the_programs_there_are(settings, gyre):
    folder = settings.home / "logs"
    folder.mkdir()
    (folder / "serving.log").write_text("".join(f"line {n}\n" for n in range(100)))
    (folder / "mlflow.log").touch()
    assert piped(settings, gyre, "logs", "serving").stdout.splitlines()[-1] == "line 99"
    unknown = piped(settings, gyre, "logs", "../secrets")
    assert unknown.returncode == 1
    assert "expected mlflow, serving" in unknown.stderr
    asked = {
        "_GYRE_COMPLETE": "complete_bash",
        "COMP_WORDS": "gyre lo",
        "COMP_CWORD": "1",
    }
    assert piped(settings, gyre, **asked).stdout.split() == ["logs"]


def test_logs_follows_what_is_written_then(settings, gyre):
    (settings.home / "logs").mkdir()
    file = settings.home / "logs" / "serving.log"
    file.write_text("before\n")
    with subprocess.Popen(
        [gyre, "logs", "serving", "-f"], env=environment(settings), stdout=subprocess.PIPE,
        text=True,
    ) as process:  # fmt: skip
        assert process.stdout.readline() == "before\n"
        with file.open("a") as more:
            more.write("after\n")
        assert process.stdout.readline() == "after\n"
        process.terminate()


def text_of(**changed: object) -> list[str]:
    status = {
        "models": {},
        "problems": [],
        "broken_specs": [],
        "processes": [],
        "pss_mib": 7,
    }
    console = Console(width=300, color_system=None)
    with console.capture() as found:
        console.print(shown(status | changed))
    return [line.rstrip() for line in found.get().splitlines()]


def test_status_has_the_cards_of_the_console_with_the_verdict_in_words():
    status = rows()
    card = card_of(status, [*of_model(status, NOW)], NOW)
    line = text_of(models={MODEL: asdict(card)})[1]
    assert line.split()[:3] == [MODEL, "ok", "2"]
    assert line.endswith(DECISION.words)
    silent = card_of(SILENT, [*of_model(SILENT, NOW)], NOW)
    line = text_of(models={MODEL: asdict(silent)})[1]
    assert line.split() == [MODEL, "unknown", *["-"] * 7]


def test_status_says_first_what_is_wrong_and_what_to_do():
    problem = {
        "state": "attention",
        "of": [MODEL, "other"],
        "words": "drift",
        "remedy": "wait",
    }
    lines = text_of(problems=[problem], broken_specs=["broken.toml: no label"])
    assert lines[1].split() == [
        "attention",
        "models",
        "left",
        "out",
        "broken.toml:",
        "no",
        "label",
    ]
    assert lines[2].split() == ["attention", f"{MODEL},", "other", "drift", "wait"]
    assert "no supervisor is running here: make up" in lines[5]
    assert lines[6].split() == ["all", "processes", "7", "MiB"]
