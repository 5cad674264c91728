"""Feast's store of an installation, and how the definitions of datasets are published there."""

import copy
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import uuid4

import feast
from feast.infra.registry.caching_registry import CachingRegistry
from feast.repo_config import RepoConfig
from sqlalchemy import NullPool

from core.errors import DataError
from core.project import OFFLINE_STORE, PROJECT, STORE
from core.settings import Settings
from core.user_code import DATASETS, dataset_modules
from feature_repo.definition import Dataset
from feature_repo.published.config import feast_config, registry_path, view_address

# After its import, Feast shows the deprecations of all libraries, which no user can mend.
warnings.simplefilter("ignore", DeprecationWarning)
KINDS = ("Entity", "FeatureView", "OnDemandFeatureView", "FeatureService")
"""Classes of Feast's objects that a dataset module defines."""
FILE_STORES = ("dask", "file", "duckdb")
"""Feast's offline stores of files, by their type in feature_store.yaml."""
WRITE_DEADLINE = 10.0
"""Seconds that Redis may take for a write."""


def open_store(
    settings: Settings, deadline: float = WRITE_DEADLINE
) -> feast.FeatureStore:
    """Open Feast as `feature_store.yaml` says, with this installation's paths and addresses.

    Args:
        settings: Settings of the installation.
        deadline: Seconds that Redis may take for a command.

    Raises:
        DataError: No definitions were published here.

    """
    if settings.feast_repo:
        store = _team_store(settings, settings.feast_repo, deadline)
    else:
        store = _own_store(settings, deadline)
    if isinstance(store.registry, CachingRegistry):
        # Feast keeps lists of objects by this id and the registry's address in memory. A closed store
        # may have had the same address, and Feast gives each the same id.
        store.registry.cached_registry_proto.version_id = uuid4().hex
    return store


def _own_store(settings: Settings, deadline: float) -> feast.FeatureStore:
    """Open Gyre's own repository.

    Raises:
        DataError: No definitions were published here.

    """
    if not settings.database_url and not registry_path(settings).exists():
        raise DataError(
            "the definitions are not published: cd feature_repo && feast apply; "
            "`gyre up` does it, too"
        )
    config = RepoConfig(**feast_config(settings, deadline))
    config.registry.schema_mode = "skip"  # `feast apply` alone creates tables
    if settings.database_url:
        # Feast has no way to close a pool: a connection that is not kept is closed after its use.
        config.registry.sqlalchemy_config_kwargs["poolclass"] = NullPool
    config.repo_path = PROJECT / STORE.parent
    return feast.FeatureStore(config=config)


def _team_store(
    settings: Settings, repository: Path, deadline: float
) -> feast.FeatureStore:
    """Open a team's repository as its file says.

    Views of parquet files are joined by the ASOF join: it gives what Feast's stores of files give
    (tests/feature_repo/test_team_store.py), and takes less time and memory.
    """
    config = RepoConfig(**feast_config(settings, deadline))
    config.repo_path = repository
    options = config.offline_config
    options = {"type": options} if isinstance(options, str) else dict(options)
    if options["type"] in FILE_STORES:
        if options["type"] != "duckdb":
            options = {}
        config.offline_config = options | {"type": OFFLINE_STORE}
    return feast.FeatureStore(repo_path=str(repository), config=config)


def defined(dataset: str, kind: str) -> list[Any]:
    """Return Feast's objects of one of KINDS in a module of the folder of datasets."""
    module = import_module(f"feature_repo.datasets.{dataset}")
    feast_class = getattr(feast, kind)
    return [value for value in vars(module).values() if isinstance(value, feast_class)]


def publish_beside(settings: Settings, *datasets: Dataset) -> None:
    """Publish datasets and the modules that they import, as `feast apply` does."""
    names = [dataset.name for dataset in datasets]
    for module in dataset_modules(*names):
        path = module.relative_to(DATASETS).with_suffix("")
        names.append(".".join(path.parts).removesuffix(".__init__"))
    objects_by_name = {
        (kind, value.name): value
        for name in names
        for kind in KINDS
        for value in defined(name, kind)
    }
    objects = copy.deepcopy(list(objects_by_name.values()))
    for value in objects:
        if isinstance(value, feast.FeatureView):
            value.batch_source.file_options.uri = view_address(settings, value.name)
    registry_path(settings).parent.mkdir(parents=True, exist_ok=True)
    config = RepoConfig(**feast_config(settings, WRITE_DEADLINE))
    config.repo_path = PROJECT / STORE.parent
    store = feast.FeatureStore(config=config)
    with warnings.catch_warnings():
        # Feast warns that on-demand views are experimental.
        warnings.simplefilter("ignore", RuntimeWarning)
        store.apply(objects)
