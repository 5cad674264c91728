"""Programs in which constants of the product have other values, such as shorter intervals."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CODE = """
import json, runpy, sys
from pkgutil import resolve_name
module, constants = sys.argv.pop(1), json.loads(sys.argv.pop(1))
for path, value in constants.items():
    place, _, name = path.rpartition(".")
    setattr(resolve_name(place), name, value)
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def module_command(
    python: str | Path, module: str, constants: Mapping[str, Any]
) -> list[str]:
    """Return the command of `python -m MODULE`; constants: values by path, none of that module."""
    if not constants:
        return [str(python), "-m", module]
    return [str(python), "-c", CODE, module, json.dumps(constants)]
