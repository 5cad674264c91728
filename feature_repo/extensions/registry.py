"""Registry store: Feast's registry file, which keeps what live models read as it is.

Feast writes the file in place, so a reader could find half of it; here it is replaced in one step.
"""

from __future__ import annotations

import copy
import os
from typing import TYPE_CHECKING

from click import ClickException
from feast.infra.registry.file import FileRegistryStore

from feature_repo.contract import contract, differences
from stack.errors import DataError
from stack.live import FOLDER, read_live
from stack.settings import load_settings

if TYPE_CHECKING:
    from pathlib import Path

    from feast.protos.feast.core.Registry_pb2 import Registry

SHOWN = 5


class DefinitionInUseError(DataError, ClickException):
    """`feast apply` would change what a live model reads. Feast's command prints it as it is."""


class GuardedRegistryStore(FileRegistryStore):  # type: ignore[misc]
    """`registry_store_type` in feature_store.yaml.

    Feast hands over every new registry whole before anything of it is written, and with
    `full_scan_for_deletion: false` nothing was done to the online store by then.
    """

    _filepath: Path

    def update_registry_proto(self, registry_proto: Registry) -> None:
        """Write the registry.

        Raises:
            DefinitionInUseError: a version in a role reads what would change; nothing was written.

        """
        if self._filepath.exists() and not load_settings().change_live_features:
            self._refuse_changes(registry_proto)
        super().update_registry_proto(registry_proto)

    def _refuse_changes(self, wanted: Registry) -> None:
        standing = self.get_registry_proto()
        for each in read_live(self._filepath.parent / FOLDER):
            before = contract(standing, each.service)
            if not before:
                continue  # never published here: nothing can be lost
            found = differences(before, contract(wanted, each.service))
            if found:
                more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
                raise DefinitionInUseError(
                    f"refused, nothing was changed: version {each.version} of {each.model} "
                    f"({each.role}) reads {each.service}, and this would change "
                    f"{'; '.join(found[:SHOWN])}{more}. Publish it under a new name, such as the "
                    "next number, and train with that; or take the version out of its role first. "
                    "If the model is to see the change: GYRE_CHANGE_LIVE_FEATURES=true feast apply"
                )

    def _write_registry(self, registry_proto: Registry) -> None:
        part = self._filepath.with_name(f"{self._filepath.name}.{os.getpid()}.part")
        beside = copy.copy(self)  # other threads may be reading through this one
        beside._filepath = part  # noqa: SLF001
        super(GuardedRegistryStore, beside)._write_registry(registry_proto)
        part.replace(self._filepath)
