"""`gyre status`: what the processes say of themselves, and the ledger's word on since when."""

from __future__ import annotations

from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

from mlflow_server.alerts import FAILED
from mlflow_server.ledger import Ledger
from mlflow_server.records import Records
from stack.errors import RegistryError
from stack.spec import broken_specs, load_specs
from stack.status import UNKNOWN, report

if TYPE_CHECKING:
    from stack.settings import Settings


def status(settings: Settings) -> dict[str, Any]:
    """Return the whole status as JSON-ready values."""
    specs = load_specs()
    now = report(settings, [spec.name for spec in specs])
    for name, facts in now["models"].items():
        facts["since"] = _since(settings, name, facts["production"])
        late = (row for row in _alerts(settings, name) if not row["delivered"])
        facts["undelivered_alerts"] = [row["message"] for row in late]
    now["broken_specs"] = broken_specs()
    subjects = {*now["models"], *(spec.dataset for spec in specs), "maintain"}
    rows = [row for subject in sorted(subjects) for row in _alerts(settings, subject)]
    failing = [row for row in rows if FAILED in row["cause"] and row["over"] is None]
    now["failing"] = [row["message"] for row in failing]
    return now


def _alerts(settings: Settings, subject: str) -> list[dict[str, Any]]:
    if not settings.home.exists():
        return []
    with suppress(RegistryError), closing(Records(settings)) as records:
        return records.alerts(subject)
    return []


def _since(settings: Settings, model: str, version: str | None) -> str | None:
    """Return when `version` became production (ISO 8601, UTC), as far as the ledger knows."""
    if version in {None, UNKNOWN} or not settings.home.exists():
        return None
    with closing(Ledger(settings)) as ledger, suppress(RegistryError):
        for row in reversed(ledger.rows(model)):
            if row.role == "production" and row.applied_at:
                return row.time.isoformat() if row.to_version == version else None
    return None
