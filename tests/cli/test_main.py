"""The frame of the `gyre` command: help, version, pages, errors and JSON."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
from rich.console import Console
from typer.testing import CliRunner

from cli.main import app, typer_app
from cli.terminal import table
from cli.use_case import new
from cli.verbs import say
from core.errors import SettingsError
from tests.conftest import wait_until
from tests.preloaded import commands_folder

PANELS = ("Every day", "Models", "Data", "Operate", "Write your own")
NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("GYRE_HOME", str(tmp_path))
    return tmp_path


def exit_code(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["gyre", *arguments])
    with pytest.raises(SystemExit) as end:
        app()
    return end.value.code


def test_help_has_the_verbs_in_groups():
    runner = CliRunner()
    text = runner.invoke(typer_app, ["--help"], terminal_width=200).output
    places = [text.index(f"─ {panel} ─") for panel in PANELS]
    assert places == sorted(places)
    assert places[0] < text.index("│ status") < places[1]
    version = runner.invoke(typer_app, ["--version"]).output.strip()
    assert re.fullmatch(r"gyre \d+\.\d+\.\d+", version)


def test_pages_are_opened_where_people_reach_them(tmp_path):
    browser = tmp_path / "xdg-open"
    browser.write_text(f'#!/bin/sh\necho "$1" >> {tmp_path}/opened\n')
    browser.chmod(0o755)
    environment = os.environ | {
        "GYRE_HOME": str(tmp_path),
        "GYRE_LINKS__CONSOLE": "https://gyre.example",
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
    }
    command = [commands_folder() / "gyre", "open", "console"]
    subprocess.run(command, env=environment, check=True)
    opened = tmp_path / "opened"
    address = "https://gyre.example/\n"
    wait_until("a page", lambda: opened.exists() and opened.read_text() == address)


def test_an_error_is_one_line_even_inside_settings(home, monkeypatch, capsys):
    monkeypatch.setenv("GYRE_SOURCES", "no JSON")
    assert exit_code(monkeypatch, "logs", "serving") == 2
    line = r"gyre: .*gyre\.env .* \"sources\" .*\n"
    assert re.fullmatch(line, capsys.readouterr().err)


def test_the_traceback_of_another_error_is_in_a_log(home, monkeypatch, capsys):
    (home / "logs").mkdir()
    (home / "logs" / "torn.log").touch()
    monkeypatch.setenv("PATH", "")
    assert exit_code(monkeypatch, "logs", "torn") == 1
    log = home / "logs" / "errors.log"
    assert capsys.readouterr().err.endswith(f"traceback: {log}\n")
    assert "FileNotFoundError" in log.read_text()


def test_json_is_strict_json(capsys):
    @dataclass
    class Report:
        psi: float
        as_of: datetime

    say("", Report(psi=math.nan, as_of=NOW), as_json=True)
    document = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert document == {"psi": None, "as_of": "2026-11-20T12:00:00Z"}


def test_a_table_has_no_value_as_python_prints_it():
    values = (None, True, ["a", "b"], {"x": None}, NOW, "\x1b[31mred")
    console = Console(width=200, color_system=None)
    with console.capture() as capture:
        console.print(table([""] * len(values), [values]))
    line = capture.get().splitlines()[-1]
    expected = r'-  true  a, b +{"x": null}  2026-11-20 12:00:00Z  \[31mred'
    assert re.match(expected, line.strip())


def test_new_asks_nobody_off_a_terminal_and_writes_nothing(home, tmp_path):
    source = tmp_path / "rows.csv"
    source.write_text("id,who,at\n1,a,2026-01-02\n2,a,2026-01-03\n")
    with pytest.raises(SettingsError, match=r"--label: expected a .*: silence, event"):
        new("new_use_case", str(source))
    assert not (home / "gyre.env").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../x", "expected up to 30 small letters"),
        ("customer", "orders has a view customer_features"),
    ],
)
def test_new_refuses_a_name_that_files_or_views_cannot_have(home, name, message):
    with pytest.raises(SettingsError, match=message):
        new(name)
