"""Runs that a person wants to look at, and the addresses of their pages in MLflow's UI.

Over MLflow's REST API: the console, whose process this is for, does without 150 MB of MLflow.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import httpx

from stack.errors import RegistryError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stack.settings import Settings

SECONDS = 5
KEY_TAG = "gyre.key"
"""What a run was started with (mlflow_server/tracking.py)."""
MISSING = "RESOURCE_DOES_NOT_EXIST"
REPORTS, REPORT, CARD = "reports", "report.html", "model_card.html"


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


@dataclass(frozen=True)
class ModelRuns:
    """The newest training, the run of the version in production, and that of its monitor.

    card: address of the model card. reports: of Evidently's pages, by their time
    (`%Y-%m-%dT%H%M%S`).
    """

    training: RunPage | None
    production: RunPage | None = None
    card: str | None = None
    monitoring: RunPage | None = None
    reports: Mapping[str, str] = field(default_factory=dict)


class Pages:
    """Every method raises RegistryError, in one line, when MLflow does not answer or refuses."""

    def __init__(self, settings: Settings) -> None:
        self._address = settings.mlflow_address

    def aliases(self, model: str) -> dict[str, str]:
        """Versions by alias; empty for a model that does not exist."""
        found = self._ask("GET", "registered-models/get", name=model)
        aliases = found.get("registered_model", {}).get("aliases", ())
        return {alias["alias"]: str(alias["version"]) for alias in aliases}

    def runs(self, model: str, experiment: str) -> ModelRuns:
        training = self._newest(experiment, "tags.as_of LIKE '%'")
        version = self.aliases(model).get("production")
        if version is None:
            return ModelRuns(training)
        found = self._ask("GET", "model-versions/get", name=model, version=version)
        run_id = found.get("model_version", {}).get("run_id")
        production = self._run(run_id) if run_id else None
        has_card = production is not None and CARD in self._folder(production.run_id)
        card = production.artifact(CARD) if production and has_card else None
        key = f"{model} version {version}"
        monitoring = self._newest(f"{experiment}_monitoring", f"tags.`{KEY_TAG}` = '{key}'")
        if monitoring is None:
            return ModelRuns(training, production, card)
        stamps = self._folder(monitoring.run_id, REPORTS)
        reports = {stamp: monitoring.artifact(f"{REPORTS}/{stamp}/{REPORT}") for stamp in stamps}
        return ModelRuns(training, production, card, monitoring, reports)

    def _newest(self, experiment: str, where: str) -> RunPage | None:
        """Return the run started last of those that MLflow's filter `where` lets through."""
        found = self._ask("GET", "experiments/get-by-name", experiment_name=experiment)
        if not found:
            return None
        runs = self._ask(
            "POST", "runs/search", experiment_ids=[found["experiment"]["experiment_id"]],
            filter=where, max_results=1, order_by=["attributes.start_time DESC"],
        ).get("runs")  # fmt: skip
        return self._page(runs[0]) if runs else None

    def _run(self, run_id: str) -> RunPage | None:
        found = self._ask("GET", "runs/get", run_id=run_id)
        return self._page(found["run"]) if found else None

    def _folder(self, run_id: str, path: str = "") -> list[str]:
        """Names of what lies in the run's artifact folder `path`; empty if there is none."""
        found = self._ask("GET", "artifacts/list", run_id=run_id, path=path)
        return sorted(file["path"].rpartition("/")[2] for file in found.get("files", ()))

    def _page(self, run: dict[str, Any]) -> RunPage:
        info = run["info"]
        return RunPage(
            info["run_id"],
            f"{self._address}/#/experiments/{info['experiment_id']}/runs/{info['run_id']}",
            info["status"],
            _time(info["start_time"]),
            _time(info["end_time"]) if info.get("end_time") else None,
            {tag["key"]: tag["value"] for tag in run["data"].get("tags", ())},
        )

    def _ask(self, method: str, call: str, **values: Any) -> dict[str, Any]:
        """Return the answer; empty of what does not exist."""
        sent: dict[str, Any] = {"params": values} if method == "GET" else {"json": values}
        url = f"{self._address}/api/2.0/mlflow/{call}"
        try:
            answer = httpx.request(method, url, timeout=SECONDS, **sent)
            found: dict[str, Any] = answer.json()
        except httpx.HTTPError as exc:
            raise RegistryError(f"MLflow does not answer (is it up?): {call}: {exc}") from exc
        except ValueError as exc:
            raise RegistryError(f"MLflow: {call}: status {answer.status_code}, no JSON") from exc
        if answer.is_success or found.get("error_code") == MISSING:
            return found if answer.is_success else {}
        raise RegistryError(f"MLflow: {call}: {found.get('message', answer.status_code)}")


def _time(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(int(milliseconds) / 1000, UTC)
