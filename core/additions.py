"""Additions: packages that the loop does without, and the things that each of them brings.

This table alone names them for the loop. One whose folder is gone is left out: its programs do not
start, its routes are not served, and its verbs are not in `gyre --help`.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple


def is_present(package: str) -> bool:
    """Whether a package is there, by its dotted name; nothing is imported, parents neither."""
    root, *folders = package.split(".")
    spec = find_spec(root)
    if spec is None or spec.origin is None:  # no origin: a folder without __init__.py
        return False
    return Path(spec.origin).parent.joinpath(*folders, "__init__.py").exists()


class Addition(NamedTuple):
    """A package that the loop does without, and the things that it brings.

    Attributes:
        package: Dotted name of the package.
        programs: `module:name` of each program of a stack (`stack.supervisor.Program`).
        routes: Modules of routes that serving adds.
        verbs: Verbs of the `gyre` command that need the package.
        engine: Module that computes features and labels (`feature_repo.engine`); empty: none.

    """

    package: str
    programs: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()
    verbs: tuple[str, ...] = ()
    engine: str = ""


ADDITIONS = (
    Addition(
        "feature_engine",
        programs=("feature_engine.events.program:CONSUMER",),
        verbs=("ingest", "consume", "parity", "quarantine", "new", "init"),
        engine="feature_engine.loop",
    ),
    Addition("operations", verbs=("forget", "maintain", "backup", "restore")),
    Addition("monitoring.console", programs=("monitoring.console.program:CONSOLE",)),
    Addition("monitoring.trials", verbs=("compare",)),
    Addition(
        "serving.additions",
        routes=(
            "serving.additions.explanation",
            "serving.additions.kserve_v1",
            "serving.additions.open_inference",
            "serving.additions.mlflow_scoring",
            "serving.additions.metadata",
            "serving.additions.events",
        ),
    ),
)


def present() -> list[Addition]:
    """Return the additions whose packages are there."""
    return [addition for addition in ADDITIONS if is_present(addition.package)]


def absent() -> list[Addition]:
    """Return the additions whose packages are not there."""
    return [addition for addition in ADDITIONS if not is_present(addition.package)]


def missing_verbs() -> set[str]:
    """Return the verbs of the additions that are not there."""
    return {verb for addition in absent() for verb in addition.verbs}


def engine_module() -> str | None:
    """Return the module of the feature engine; None: no addition that is here has one."""
    engines = [addition.engine for addition in present() if addition.engine]
    return engines[0] if engines else None
