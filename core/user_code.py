"""What a user wrote: how it is imported, and where its errors are."""

import re
from importlib import import_module
from pathlib import Path
from traceback import TracebackException
from typing import Any

from core.errors import GyreError, SettingsError
from core.settings import PROJECT

DATASETS = PROJECT / "feature_repo" / "datasets"
IMPORT = re.compile(
    r"(?:from|import) (?:feature_repo\.datasets|\.)\S*(?: import (?:\([^)]*\)|.*))?"
)
"""An import of a dataset by another one."""
LONGEST_MESSAGE = 400
LIBRARIES = ("sklearn", "xgboost", "lightgbm")
"""Whose classes a spec may name."""


def load_object(path: str) -> Any:
    """Return what `package.module:name` names, in the project's folder or in one of LIBRARIES.

    Elsewhere lineage would not see a change.

    Raises:
        SettingsError: It is elsewhere, or cannot be imported.

    """
    module, _, name = path.partition(":")
    library = module.partition(".")[0]
    if library not in LIBRARIES and not user_modules(path):
        expected = f"expected a module of {PROJECT} or of {', '.join(LIBRARIES)}"
        raise SettingsError(
            f"{path}: {expected}, found no {library}/ and no {library}.py there"
        )
    try:
        return getattr(import_module(module), name)
    except Exception as exc:  # whatever a person's module raises
        line = " ".join(f"{path}: {type(exc).__name__}: {exc}".split())
        extra = "; it comes with: make extras" if library in LIBRARIES[1:] else ""
        raise SettingsError(line + extra) from exc


def user_modules(path: str) -> list[Path]:
    """Return the files of the project's package, or module, that `package.module:name` lies in."""
    package = path.partition(":")[0].partition(".")[0]
    return sorted([*PROJECT.glob(f"{package}.py"), *(PROJECT / package).rglob("*.py")])


def dataset_modules(*names: str) -> list[Path]:
    """Files of these datasets, and of those of the folder that they import, in any order."""
    modules: list[Path] = []
    remaining = list(names)
    while remaining:
        module = DATASETS / f"{remaining.pop()}.py"
        if module.exists() and module not in modules:
            modules.append(module)
            imports = " ".join(IMPORT.findall(module.read_text("utf-8")))
            remaining += re.findall(r"\w+", imports)
    return modules


def dataset_names(*names: str) -> list[str]:
    """These datasets and those they import: all whose views their services can read; no Feast."""
    dataset_names = set(names)
    for module in dataset_modules(*names):
        # A module that only helps others does not say its own name.
        if re.search(f"[\"']{module.stem}[\"']", module.read_text("utf-8")):
            dataset_names.add(module.stem)
    return sorted(dataset_names)


def in_one_line(exc: BaseException) -> str:
    """Return what `exc` says; of one that passed a dataset module, after its file and line."""
    if isinstance(exc, GyreError):
        return str(exc)
    traceback = TracebackException.from_exception(exc)
    messages = list(traceback.format_exception_only())
    places = [(Path(frame.filename), frame.lineno) for frame in traceback.stack]
    if isinstance(exc, SyntaxError):  # its first lines say the place
        messages = messages[-1:]
        places.append((Path(exc.filename or ""), exc.lineno))
    prefix = ""
    for file, line in places:
        if file.parent == DATASETS and file.stem != "__init__":
            prefix = f"{file.relative_to(PROJECT)}:{line}: "  # the innermost one
    return prefix + " ".join(messages[0].split())[:LONGEST_MESSAGE]
