"""Registry store: Feast's registry file, replaced in one step; Feast writes it in place."""

import os
from pathlib import Path

from feast.infra.registry.file import FileRegistryStore
from feast.protos.feast.core.Registry_pb2 import Registry
from feast.repo_config import RegistryConfig


class AtomicRegistryStore(FileRegistryStore):  # type: ignore[misc]
    """`registry_store_type` in feature_store.yaml."""

    def __init__(self, registry_config: RegistryConfig, repo_path: Path) -> None:
        super().__init__(registry_config, repo_path)
        self._path = repo_path / registry_config.path

    def update_registry_proto(self, registry_proto: Registry) -> None:
        part = self._path.with_name(f"{self._path.name}.{os.getpid()}.part")
        stock = FileRegistryStore(RegistryConfig(path=str(part)), part.parent)
        stock.update_registry_proto(registry_proto)
        part.replace(self._path)
