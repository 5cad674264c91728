"""Runs that a person wants to look at, and the addresses of their pages in MLflow's UI.

Over MLflow's REST API: the console, whose process this is for, does without 150 MB of MLflow.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import httpx

from core.errors import RegistryError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from core.settings import Settings

SECONDS = 5
KEY_TAG = "gyre.key"
"""What a run was started with (mlflow_server/tracking.py)."""
CARD = "model_card.html"


@dataclass(frozen=True)
class RunPage:
    """One run; `address` of its page. started, ended: UTC, None: not yet."""

    run_id: str
    address: str
    status: str
    started: datetime
    ended: datetime | None
    tags: dict[str, str]


@dataclass(frozen=True)
class ModelRuns:
    """The newest training, the run of the version in production, and that of its monitor.

    card: address of the model card. reports: of Evidently's, by their time (`%Y-%m-%dT%H%M%S`).
    """

    training: RunPage | None
    production: RunPage | None = None
    card: str | None = None
    monitoring: RunPage | None = None
    reports: Mapping[str, str] = field(default_factory=dict)


class Pages:
    """Every method raises RegistryError, in one line, when MLflow does not answer or refuses."""

    def __init__(self, settings: Settings) -> None:
        self._address, self._link = settings.mlflow_address, settings.link("mlflow")

    def aliases(self, model: str) -> dict[str, str]:
        """Versions by alias; empty for a model that does not exist."""
        found = self._ask("registered-models/get", name=model)
        aliases = found.get("registered_model", {}).get("aliases", ())
        return {alias["alias"]: str(alias["version"]) for alias in aliases}

    def experiment(self, name: str) -> str:
        """Address of the experiment's runs, in the columns of experiment_tags.json."""
        found = self._ask("experiments/get-by-name", experiment_name=name)
        where = f"{found['experiment']['experiment_id']}/runs" if found else ""
        view = "viewStateShareKey=gyre&workflowType=machine_learning"
        return f"{self._link}/#/experiments/{where}?{view}"

    def run(self, run_id: str) -> str:
        return self._page(self._ask("runs/get", run_id=run_id)["run"]).address

    def runs(self, model: str, experiment: str) -> ModelRuns:
        training = self._newest(experiment, "tags.as_of LIKE '%'")
        version = self.aliases(model).get("production")
        if version is None:
            return ModelRuns(training)
        found = self._ask("model-versions/get", name=model, version=version)
        run_id = found.get("model_version", {}).get("run_id")
        found = self._ask("runs/get", run_id=run_id) if run_id else {}
        production = self._page(found["run"]) if found else None
        card = self._artifacts(production).get(CARD)
        key = f"{model} version {version}"
        monitoring = self._newest(f"{experiment}_monitoring", f"tags.`{KEY_TAG}` = '{key}'")
        folders = self._artifacts(monitoring, "reports")
        reports = {stamp: f"{address}/report.html" for stamp, address in folders.items()}
        return ModelRuns(training, production, card, monitoring, reports)

    def _newest(self, experiment: str, where: str) -> RunPage | None:
        """Return the run started last of those that MLflow's filter `where` lets through."""
        found = self._ask("experiments/get-by-name", experiment_name=experiment)
        if not found:
            return None
        query = {"experiment_ids": [found["experiment"]["experiment_id"]], "filter": where}
        newest = {"max_results": 1, "order_by": ["attributes.start_time DESC"]}
        runs = self._ask("runs/search", query | newest).get("runs")
        return self._page(runs[0]) if runs else None

    def _artifacts(self, run: RunPage | None, folder: str = "") -> dict[str, str]:
        """Return the addresses of what lies in the run's artifact folder, by name."""
        found = self._ask("artifacts/list", run_id=run.run_id, path=folder) if run else {}
        paths = [file["path"] for file in found.get("files", ())]
        return {p.rpartition("/")[2]: f"{run.address}/artifacts/{p}" for p in paths if run}

    def _page(self, run: dict[str, Any]) -> RunPage:
        info = run["info"]
        return RunPage(
            info["run_id"],
            f"{self._link}/#/experiments/{info['experiment_id']}/runs/{info['run_id']}",
            info["status"],
            _time(info["start_time"]),
            _time(info["end_time"]) if info.get("end_time") else None,
            {tag["key"]: tag["value"] for tag in run["data"].get("tags", ())},
        )

    def _ask(self, call: str, body: dict[str, Any] | None = None, **query: str) -> dict[str, Any]:
        """Return the answer, to a POST if there is a body; empty of what does not exist."""
        url, method = f"{self._address}/api/2.0/mlflow/{call}", "POST" if body else "GET"
        try:
            answer = httpx.request(method, url, json=body, params=query, timeout=SECONDS)
            if answer.status_code == HTTPStatus.NOT_FOUND and "error_code" in answer.json():
                return {}
            found: dict[str, Any] = answer.raise_for_status().json()
        except (httpx.HTTPError, ValueError) as exc:
            line = str(exc).partition("\n")[0]
            raise RegistryError(f"MLflow does not answer (is it up?): {call}: {line}") from exc
        return found


def _time(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(int(milliseconds) / 1000, UTC)
