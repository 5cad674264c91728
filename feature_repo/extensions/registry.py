"""Registry store: Feast's registry file, which keeps what versions in a role are served.

Feast writes the file in place, so a reader could find half of it; here it is replaced in one step.
"""

from __future__ import annotations

import copy
import os
from typing import TYPE_CHECKING

from feast.infra.registry.file import FileRegistryStore

from feature_repo.contract import contract
from stack.settings import load_settings

if TYPE_CHECKING:
    from pathlib import Path

    from feast.protos.feast.core.Registry_pb2 import Registry


class GuardedRegistryStore(FileRegistryStore):  # type: ignore[misc]
    """`registry_store_type` in feature_store.yaml.

    Feast hands over every new registry whole before anything of it is written, and with
    `full_scan_for_deletion: false` nothing was done to the online store by then.
    """

    _filepath: Path

    def update_registry_proto(self, registry_proto: Registry) -> None:
        """Write the registry.

        Raises:
            DefinitionChangedError: a version in a role would be served other values; nothing was
                written.
            RegistryError: definitions changed, and MLflow does not say what is in a role.

        """
        if self._filepath.exists():
            standing = self.get_registry_proto()
            services = [each.spec.name for each in standing.feature_services]
            changed = {
                name for name in services
                if contract(standing, name) != contract(registry_proto, name)
            }  # fmt: skip
            if changed:
                from feature_repo.definition_check import check_definitions  # noqa: PLC0415

                settings = load_settings(home=self._filepath.parents[1])
                check_definitions(settings, "feast apply", services=changed)
        super().update_registry_proto(registry_proto)

    def _write_registry(self, registry_proto: Registry) -> None:
        part = self._filepath.with_name(f"{self._filepath.name}.{os.getpid()}.part")
        beside = copy.copy(self)  # other threads may be reading through this one
        beside._filepath = part  # noqa: SLF001
        super(GuardedRegistryStore, beside)._write_registry(registry_proto)
        part.replace(self._filepath)
