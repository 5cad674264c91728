"""A hash of the code that makes a model: Gyre's files, found by their imports, and a user's."""

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from core.project import CLONE, PROJECT
from core.spec import ModelSpec
from core.user_code import dataset_modules, parse, user_modules
from training.stages import STAGES

PACKAGES = ("core", "feature_engine", "feature_repo", "mlflow_server", "training")
"""Packages of Gyre that a stage can import; in an installed release all others lie beside them."""
NAMED_MODULES = (
    "feature_repo.extensions.offline",  # by feature_store.yaml
    "feature_engine.offline.labels",  # by feature_engine.loop
    "feature_engine.offline.views",
)
"""Modules that make frames and are imported by their name."""
WITHOUT_EFFECT = (
    # Where files, tables and settings are, and the words of errors.
    "core.errors",
    "core.files",
    "core.project",
    "core.settings",
    "core.tables",
    "core.timestamps",
    "core.user_code",
    "feature_engine.engines.job_errors",
    "training.artifacts",
    "training.data.lineage",
    # Keys of a spec that operate a model, and the schedule of its training.
    "core.schedule",
    "core.spec.monitoring",
    # Clients of MLflow: they carry files and change none.
    "mlflow_server.api",
    # Feature definitions count by hashes of their own; registry and online values hold the same.
    "feature_repo.datasets",
    "feature_repo.definition_hash",
    "feature_repo.published.config",
    "feature_repo.published.definition_check",
    "feature_repo.published.redis_names",
    "feature_repo.published.store",
)
"""Modules, or packages, that change no model although the stages import them."""


def code_hash(spec: ModelSpec) -> str:
    """Return the SHA-256 of Gyre's files and of the user's modules that make the model.

    Of a project beside the clone all packages and modules count: a dataset may use any.
    """
    files = {*product_files(CLONE), *dataset_modules(*spec.datasets)}
    if PROJECT != CLONE:
        files.update(PROJECT.glob("*.py"))
        for package in PROJECT.glob("*/__init__.py"):
            files.update(package.parent.rglob("*.py"))
    factories = [estimator.type for estimator in spec.estimators]
    if spec.training:
        factories.append(spec.training.function)
    for factory in factories:
        files.update(user_modules(factory))
    contents = {}
    for path in files:
        # The environment of an installed Gyre may lie in the project.
        roots = [root for root in (PROJECT, CLONE) if path.is_relative_to(root)]
        root = max(roots, key=lambda folder: len(folder.parts))
        # Both may have a file of this name: `feast init` writes feature_repo/__init__.py.
        place = "project" if root != CLONE else "gyre"
        contents[f"{place}/{path.relative_to(root).as_posix()}"] = path.read_bytes()
    digest = hashlib.sha256()
    for name in sorted(contents):
        digest.update(name.encode() + b"\0" + contents[name])
    return digest.hexdigest()


@cache
def product_files(root: Path) -> frozenset[Path]:
    """Return the files below `root` that build a frame or write the files of a model.

    They are the modules of the stages that make a model, and all that these import in turn, but for
    WITHOUT_EFFECT.
    """
    files = set()
    functions = [stage.function for stage in STAGES if stage.makes_model]
    remaining = [*NAMED_MODULES, *(path.partition(":")[0] for path in functions)]
    while remaining:
        module = remaining.pop()
        path = _file_of(root, module)
        if path and path not in files and not module.startswith(WITHOUT_EFFECT):
            files.add(path)
            remaining += imported_modules(path)
    return frozenset(files)


def imported_modules(file: Path) -> Iterator[str]:
    """Yield the names that a file imports, as modules and as members of modules."""
    for node in ast.walk(parse(file.read_text("utf-8"))):
        prefix = ""
        if isinstance(node, ast.ImportFrom):
            yield str(node.module)
            prefix = f"{node.module}."
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from [prefix + alias.name for alias in node.names]


def _file_of(root: Path, module: str) -> Path | None:
    """Return the file of a module of Gyre; None for any other name."""
    parts = module.split(".")
    if parts[0] not in PACKAGES:
        return None
    for path in (
        root.joinpath(*parts, "__init__.py"),
        root.joinpath(f"{'/'.join(parts)}.py"),
    ):
        if path.is_file():
            return path
    return None
