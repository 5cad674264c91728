"""The page of `import gyre`, from the docstrings of its functions."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any

import gyre

if TYPE_CHECKING:
    from collections.abc import Iterator

SECTION = re.compile(r"^(Args|Attributes|Returns|Raises):$", re.MULTILINE)
HEAD = """# `import gyre`

Each function reads the settings anew at each call: those of the installation that `GYRE_HOME`
names, or of a team's stack by the addresses in [settings](settings.md).
[Notebooks](../how-to/notebooks.md) shows how they go together.

"""
DEFINITIONS_HEAD = """## Names for definitions

The files of a team import them: [your own rows](../how-to/own-data.md),
[your own model](../how-to/own-model.md).

| name | meaning |
|---|---|
"""
VALUES = {
    "DECIMAL": "type of an exact amount, for `Dataset(schema=…)`",
    "PROJECT": "folder of the project",
}
"""Meaning of names that have no docstring."""


def python() -> str:
    """Return a section for each name for notebooks, and a table of all others."""
    page = HEAD
    table = DEFINITIONS_HEAD
    for name in gyre.__all__:
        value = getattr(gyre, name)
        if name not in gyre.MODULES:
            page += f"## {name}\n\n{_signature(name, value)}\n\n"
            page += "\n\n".join(_sections(inspect.getdoc(value) or "")) + "\n\n"
        else:
            table += f"| `{name}` | {_meaning(name, value)} |\n"
    return page + table


def _signature(name: str, value: Any) -> str:
    """Return the arguments of a function, and of a class its name."""
    code = name
    if inspect.isfunction(value):
        arguments = [
            str(argument)
            for argument in inspect.signature(value, eval_str=True).parameters.values()
        ]
        joined = ", ".join(arguments).replace("pandas.core.frame.", "pd.")
        code = f"gyre.{name}({joined})".replace("datetime.datetime", "datetime")
    return f"```python\n{code}\n```"


def _sections(text: str) -> Iterator[str]:
    """Yield the description, then each section of a docstring in Markdown."""
    description, *parts = SECTION.split(text)
    yield description.strip()
    for title, content in zip(parts[::2], parts[1::2], strict=True):
        body = inspect.cleandoc(content)
        yield f"**{title}**"
        yield body if title == "Returns" else "\n".join(_items(body))


def _items(body: str) -> Iterator[str]:
    """Yield lines in which each name of a section is an item of a list."""
    for line in body.splitlines():
        is_item = re.match(r"[A-Za-z_]+: ", line)
        if is_item:
            name, _, words = line.partition(": ")
            yield f"- `{name}`: {words}"
        else:
            yield f"  {line.strip()}" if not line.lstrip().startswith("-") else line


def _meaning(name: str, value: Any) -> str:
    """Return the first sentence of a name's docstring; of a value, what it is."""
    if inspect.isclass(value) or inspect.isfunction(value):
        first_lines = (inspect.getdoc(value) or "").partition("\n\n")[0]
        return " ".join(first_lines.split()).replace("|", "\\|")
    return VALUES[name]
