"""The frame of the `gyre` command: version, pages and JSON."""

import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
from typer.testing import CliRunner

from cli.main import PANELS, typer_app
from cli.use_case import new
from cli.verbs import LOGGING_PACKAGES, say
from core.errors import SettingsError
from core.project import CLONE
from tests.conftest import wait_until
from tests.support.tools.clone import outer_environment, run
from tests.support.tools.preloaded import commands_folder

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("GYRE_HOME", str(tmp_path))
    return tmp_path


def test_verbs_print_the_log_of_every_package_that_they_call():
    packages = [path.parent for path in CLONE.glob("*/__init__.py")]
    logging_packages = {
        package.name
        for package in packages
        if any(
            "getLogger(__name__)" in file.read_text() for file in package.rglob("*.py")
        )
    }
    assert {*LOGGING_PACKAGES} == logging_packages - {"serving"}


def test_every_command_describes_itself_by_h_too():
    names = [name for verbs in PANELS.values() for name in verbs]
    for name in [*names, "alerts list", "quarantine release"]:
        by_letter, by_word = [
            CliRunner().invoke(typer_app, [*name.split(), option]).output
            for option in ("-h", "--help")
        ]
        assert f"Usage: root {name} " in by_letter.replace("\n", " "), name
        assert by_letter == by_word


def test_the_open_command_uses_the_configured_link(tmp_path):
    browser = tmp_path / "xdg-open"
    browser.write_text(f'#!/bin/sh\necho "$1" >> {tmp_path}/opened\n')
    browser.chmod(0o755)
    outer = outer_environment()
    environment = outer | {
        "GYRE_HOME": str(tmp_path),
        "GYRE_LINKS__CONSOLE": "https://gyre.example",
        "PATH": f"{tmp_path}:{outer['PATH']}",
    }
    run("gyre open console", tmp_path, environment)
    opened = tmp_path / "opened"
    address = "https://gyre.example/\n"
    wait_until("a page", lambda: opened.exists() and opened.read_text() == address)


def test_the_traceback_of_an_unexpected_error_is_logged(tmp_path):
    folder = tmp_path / "logs"
    folder.mkdir()
    (folder / "torn.log").touch()
    environment = outer_environment() | {"GYRE_HOME": str(tmp_path)}
    command = f"PATH= {commands_folder()}/gyre logs torn"
    output = run(command, tmp_path, environment, 1)
    log = folder / "errors.log"
    assert output.endswith(f"traceback: {log}\n")
    assert "FileNotFoundError" in log.read_text()


def test_json_output_is_strict_json(capsys):
    @dataclass
    class Report:
        psi: float
        as_of: datetime

    say("", Report(psi=math.nan, as_of=NOW), as_json=True)
    document = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert document == {"psi": None, "as_of": "2026-11-20T12:00:00Z"}


def test_new_without_a_terminal_asks_no_question_and_writes_nothing(home, tmp_path):
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
