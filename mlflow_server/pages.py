"""Runs that a person wants to look at, and the addresses of their pages in MLflow's UI."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from mlflow_server.connection import client, translated
from mlflow_server.tracking import KEY_TAG

if TYPE_CHECKING:
    from stack.settings import Settings


@dataclass(frozen=True)
class RunPage:
    """One run; `address` of its page. started, ended: UTC, None: not yet."""

    run_id: str
    address: str
    status: str
    started: datetime
    ended: datetime | None
    tags: dict[str, str]

    def artifact(self, path: str) -> str:
        return f"{self.address}/artifacts/{path}"


class Pages:
    """Every method raises RegistryError, in one line, when MLflow does not answer or refuses."""

    def __init__(self, settings: Settings) -> None:
        self._client, self._address = client(settings), settings.mlflow_address

    def run(self, run_id: str) -> RunPage:
        with translated(f"run {run_id}"):
            return self._page(self._client.get_run(run_id))

    def newest(self, experiment: str, where: str) -> RunPage | None:
        """Return the run started last of those that MLflow's filter `where` lets through."""
        with translated(f"runs of {experiment}"):
            known = self._client.get_experiment_by_name(experiment)
            if known is None:
                return None
            order = ["attributes.start_time DESC"]
            found = self._client.search_runs([known.experiment_id], where, 1, 1, order)
        return self._page(found[0]) if found else None

    def of_key(self, experiment: str, key: str) -> RunPage | None:
        """Return the run that was started with `key`."""
        return self.newest(experiment, f"tags.`{KEY_TAG}` = '{key}'")

    def folder(self, run_id: str, path: str | None = None) -> list[str]:
        """Names of what lies in the run's artifact folder `path`; empty if there is none."""
        with translated(f"artifacts of run {run_id}"):
            found = self._client.list_artifacts(run_id, path)
        return sorted(each.path.rpartition("/")[2] for each in found)

    def _page(self, found: Any) -> RunPage:
        info = found.info
        return RunPage(
            info.run_id,
            f"{self._address}/#/experiments/{info.experiment_id}/runs/{info.run_id}",
            info.status,
            _moment(info.start_time),
            _moment(info.end_time) if info.end_time else None,
            dict(found.data.tags),
        )


def _moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
