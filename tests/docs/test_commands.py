"""Each command that a page names is one that there is, with options that it has."""

import re
import shlex
from importlib.util import find_spec

import pytest
from typer.main import get_command

from cli.main import typer_app
from core.project import CLONE

PAGES = [
    *CLONE.glob("*.md"),
    *CLONE.glob("docs/*.md"),
    *CLONE.glob("docs/how-to/*.md"),
]
BLOCK = re.compile(r"```(?:sh)?\n(.*?)```", re.DOTALL)
COMMAND = re.compile(r"(?:gyre|make|pytest|python) .*")
TARGETS = re.findall(r"^([a-z]+):.*## ", (CLONE / "Makefile").read_text(), re.MULTILINE)


def command_lines():
    for page in PAGES:
        for block in BLOCK.findall(page.read_text()):
            lines = block.replace("\\\n", " ").splitlines()
            yield from filter(COMMAND.fullmatch, lines)


@pytest.mark.parametrize("line", sorted({*command_lines()}))
def test_a_command_of_a_page_can_be_called(line):
    without_shell = re.sub(r"\$\(.*?\)", "value", line)
    program, *arguments = shlex.split(without_shell, comments=True)
    if program == "make":
        targets = {word for word in arguments if word.isalpha()}
        assert targets <= {*TARGETS}
    elif program == "gyre":
        command = get_command(typer_app)
        while hasattr(command, "commands"):
            command = command.commands[arguments.pop(0)]
        command.make_context(program, arguments)
    elif arguments[0] == "-m":
        assert find_spec(arguments[1])
    else:
        paths = [word.partition("::")[0] for word in arguments if "/" in word]
        assert all((CLONE / path).exists() for path in paths)
