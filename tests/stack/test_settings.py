"""The table of settings in the docs is that of the code."""

from __future__ import annotations

import re

from pydantic_core import PydanticUndefined

from stack.settings import PROJECT, Settings

REFERENCE = (PROJECT / "docs" / "use-case-reference.md").read_text()


def test_every_setting_is_in_the_reference_with_its_default():
    rows = re.findall(r"^\| `GYRE_(\w+)` \| (.*?) \|", REFERENCE, re.MULTILINE)
    told = {name.lower(): text.strip("`") for name, text in rows}
    assert list(told) == list(Settings.model_fields)
    for name, field in Settings.model_fields.items():
        if isinstance(field.default, int | str) and field.default is not PydanticUndefined:
            assert told[name].lower() == (str(field.default).lower() or "none"), name
