"""`gyre status`: what the processes say of themselves, and the ledger's word on since when."""

from __future__ import annotations

from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

from mlflow_server.ledger import Ledger
from mlflow_server.records import Records
from stack.errors import RegistryError
from stack.spec import load_specs
from stack.status import UNKNOWN, report

if TYPE_CHECKING:
    from stack.settings import Settings


def status(settings: Settings) -> dict[str, Any]:
    """Return the whole status as JSON-ready values."""
    now = report(settings, [spec.name for spec in load_specs()])
    for name, facts in now["models"].items():
        facts["since"] = _since(settings, name, facts["production"])
        facts["undelivered_alerts"] = _undelivered(settings, name)
    return now


def _undelivered(settings: Settings, model: str) -> list[str]:
    """Return the messages of alerts that no address has taken yet."""
    if not settings.home.exists():
        return []
    with suppress(RegistryError), closing(Records(settings)) as records:
        return [row["message"] for row in records.undelivered(model)]
    return []


def _since(settings: Settings, model: str, version: str | None) -> str | None:
    """Return when `version` became production (ISO 8601, UTC), as far as the ledger knows."""
    if version in {None, UNKNOWN} or not settings.home.exists():
        return None
    with closing(Ledger(settings)) as ledger, suppress(RegistryError):
        for row in reversed(ledger.rows(model)):
            if row.role == "production" and row.state == "applied":
                return row.time.isoformat() if row.to_version == version else None
    return None
