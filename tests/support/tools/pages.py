"""A page of the docs with a project inside: its commands, and the files that it shows."""

import re
from dataclasses import dataclass

from core.project import PROJECT

BLOCK = re.compile(
    r"^```(sh|python|json|toml|sql|yaml)\n(.*?)^```", re.MULTILINE | re.DOTALL
)
FILE_NAME = re.compile(r"^`(\S+)`: ", re.MULTILINE)


@dataclass(frozen=True)
class Page:
    """What a reader copies from a page.

    Attributes:
        commands: Blocks of shell, in their order.
        files: Name and content of each file, in their order.

    """

    commands: list[str]
    files: dict[str, str]


def read_page(name: str) -> Page:
    """Read a page of docs/."""
    text = (PROJECT / "docs" / name).read_text()
    blocks = BLOCK.findall(text)
    commands = [body for kind, body in blocks if kind == "sh"]
    contents = [body for kind, body in blocks if kind != "sh"]
    names = FILE_NAME.findall(text)
    return Page(commands=commands, files=dict(zip(names, contents, strict=True)))
