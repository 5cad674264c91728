"""Code of the project: its modules are found, imported and read here, and its errors named."""

import ast
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from threading import Lock
from traceback import TracebackException
from typing import Any

from core.errors import GyreError, SettingsError
from core.packages import with_extra
from core.project import CLONE, PROJECT

DATASETS = PROJECT / "feature_repo" / "datasets"
FOLDER = "feature_repo.datasets."
LONGEST_MESSAGE = 400
LIBRARIES = ("sklearn", "xgboost", "lightgbm")
"""Libraries whose classes a spec may name."""
FORMER_MODULES = {
    "feature_repo.windows": "DECIMAL, Window, Windows, feature_view",
    "training.estimators": "columns",
}
"""Modules that files of teams imported once, and the names that `gyre` has of each."""
PARSING = Lock()
"""Python 3.11 counts the depth of a tree for all threads together: one parses at a time."""


def load_object(path: str) -> Any:
    """Return the object `package.module:name` of the project or of one of LIBRARIES.

    Lineage would not see a change of another package.

    Raises:
        SettingsError: The module is of another package, or cannot be imported.

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
        line = " ".join(f"{path}: {type(exc).__name__}: {exc}{_remedy(exc)}".split())
        extra = f"; {with_extra('boosters')}" if library in LIBRARIES[1:] else ""
        raise SettingsError(line + extra) from exc


def user_modules(path: str) -> list[Path]:
    """Return the files of the project's package, or module, that `package.module:name` lies in."""
    package = path.partition(":")[0].partition(".")[0]
    return sorted([*PROJECT.glob(f"{package}.py"), *(PROJECT / package).rglob("*.py")])


def dataset_modules(*names: str) -> list[Path]:
    """Return the files of datasets, and of modules of the folder that these import, in any order."""
    modules: list[Path] = []
    remaining = [DATASETS / name for name in names]
    while remaining:
        path = remaining.pop()
        for module in (path.with_name(f"{path.name}.py"), path / "__init__.py"):
            if module.exists() and module not in modules:
                modules.append(module)
                _, origins = _read(module)
                for name in origins.values():
                    imported = PROJECT.joinpath(*name.split("."))
                    # The last parts may be names in a module.
                    remaining += [imported, *imported.parents]
        remaining = [path for path in remaining if DATASETS in path.parents]
    return modules


def dataset_names(*names: str) -> list[str]:
    """Return datasets and the datasets that they import: services may read views of all of them.

    The modules are read, not imported, as they would import Feast.
    """
    modules = filter(makes_dataset, dataset_modules(*names))
    return sorted({*names, *(module.stem for module in modules)})


def makes_dataset(module: Path) -> bool:
    """Whether a file of the folder makes a dataset; other files only help.

    It calls Dataset, or calls a function of the folder or of dataclasses with its own name.
    """
    tree, origins = _read(module)
    definitions = (ast.FunctionDef, ast.ClassDef)
    tree.body = [part for part in tree.body if not isinstance(part, definitions)]
    for call in ast.walk(tree):
        if isinstance(call, ast.Call):
            root, _, rest = ast.unparse(call.func).partition(".")
            function = f"{origins.get(root, root)}.{rest}".strip(".")
            if function in {"gyre.Dataset", "feature_repo.definition.Dataset"}:
                return True
            arguments = [*call.args, *(option.value for option in call.keywords)]
            is_named = repr(module.stem) in map(ast.unparse, arguments)
            if is_named and function.startswith(("dataclasses.", FOLDER)):
                return True
    return False


def parse(text: str) -> ast.Module:
    """Parse a module, in any thread."""
    with PARSING:
        return ast.parse(text)


def _parsed(text: str) -> ast.Module:
    """Parse a module; with an error it counts as a dataset, and is read above the error."""
    try:
        return parse(text)
    except (SyntaxError, ValueError) as exc:  # ValueError: a null byte
        lines = text.splitlines()
        number = min(getattr(exc, "lineno", None) or 1, len(lines))
        tree = _parsed("\n".join(lines[: number - 1]))
        tree.body += parse("feature_repo.definition.Dataset()").body
        return tree


def _read(module: Path) -> tuple[ast.Module, dict[str, str]]:
    """Parse a module.

    Returns:
        Its tree, and by local name the dotted names of its imports and of its functions.

    """
    tree = _parsed(module.read_text("utf-8", "replace"))
    package = module.relative_to(PROJECT).parts
    origins = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            origins[node.name] = f"{FOLDER}{module.stem}.{node.name}"
        if isinstance(node, ast.Import):
            origins |= {alias.asname or alias.name: alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            folder = package[: -node.level] if node.level else ()
            for alias in node.names:
                parts = filter(None, [*folder, node.module, alias.name])
                origins[alias.asname or alias.name] = ".".join(parts)
    return tree, origins


def change_times() -> dict[Path, int]:
    """Return the time of change, in nanoseconds, of each file that programs read of the project."""
    folder = DATASETS.parent
    files = [
        *DATASETS.rglob("*.py"),
        *folder.glob("expectations/*.json"),
        *PROJECT.glob("*.py"),
        *PROJECT.glob("*/*.py"),
    ]
    times = {}
    for file in files:
        with suppress(OSError):  # an editor has just replaced it
            times[file] = file.stat().st_mtime_ns
    return times


def in_one_line(exc: BaseException) -> str:
    """Return the message of an error; if it passed a dataset module, after its file and line."""
    if isinstance(exc, GyreError):
        return str(exc)
    traceback = TracebackException.from_exception(exc)
    messages = list(traceback.format_exception_only())
    places = [(Path(frame.filename), frame.lineno) for frame in traceback.stack]
    if isinstance(exc, SyntaxError):  # its first lines have the place
        messages = messages[-1:]
        places.append((Path(exc.filename or ""), exc.lineno))
    prefix = ""
    for file, line in places:
        if DATASETS in file.parents and file != DATASETS / "__init__.py":
            prefix = f"{file.relative_to(PROJECT)}:{line}: "  # the innermost one
    message = " ".join(messages[0].split())[:LONGEST_MESSAGE]
    return prefix + message + _remedy(exc)


def _remedy(exc: BaseException) -> str:
    """Return the remedy for an import that failed for a reason of Gyre's; else no text."""
    name = exc.name if isinstance(exc, ImportError) else None
    if name in FORMER_MODULES and isinstance(exc, ModuleNotFoundError):
        return f": from gyre import {FORMER_MODULES[name]}"
    package = str(name).partition(".")[0]
    is_of_gyre = PROJECT != CLONE and (CLONE / package / "__init__.py").exists()
    if is_of_gyre and (PROJECT / package).is_dir():
        return (
            f": Python finds {CLONE / package}, not {PROJECT / package}: give the "
            "folder of the project another name"
        )
    return ""
