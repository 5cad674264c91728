"""Runs that a person wants to look at, and the addresses of their pages in MLflow's UI.

Over MLflow's REST API: the console, whose process this is for, does without 150 MB of MLflow.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

from core.settings import Settings
from mlflow_server.rest import call_mlflow

KEY_TAG = "gyre.key"
"""What a run was started with (mlflow_server/tracking.py)."""
CARD = "model_card.html"
NEWEST = 5
"""Versions that are shown beside those in a role, and monitoring runs whose reports are."""


@dataclass(frozen=True)
class RunPage:
    """One run; `address` of its page. started, ended: UTC, None: not yet."""

    run_id: str
    address: str
    status: str
    started: datetime
    ended: datetime | None
    tags: dict[str, str]
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelPages:
    """The newest versions and those in a role, with the run of each, None where it is deleted.

    card: address of the model card of production. monitoring: the newest run of the monitor.
    reports: addresses of Evidently's, by their time (UTC, whole seconds).
    """

    versions: Mapping[str, RunPage | None] = field(default_factory=dict)
    card: str | None = None
    monitoring: RunPage | None = None
    reports: Mapping[datetime, str] = field(default_factory=dict)


class Pages:
    """Every method raises RegistryError, in one line, when MLflow does not answer or refuses."""

    def __init__(self, settings: Settings) -> None:
        self._link = settings.link("mlflow")
        self._ask = partial(call_mlflow, settings)

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

    def training(self, experiment: str) -> RunPage | None:
        """Return the newest training, None without any."""
        return next(iter(self._newest(experiment, "tags.as_of LIKE '%'", 1)), None)

    def pages(self, model: str, experiment: str) -> ModelPages:
        aliases = self.aliases(model)
        newest = {"filter": f"name='{model}'", "order_by": "version_number DESC"}
        listed = self._ask(
            "model-versions/search", None, max_results=f"{NEWEST}", **newest
        )
        run_ids = {
            each["version"]: each.get("run_id")
            for each in listed.get("model_versions", ())
        }
        for version in {*aliases.values()} - {*run_ids}:
            found = self._ask("model-versions/get", name=model, version=version)
            run_ids[version] = found.get("model_version", {}).get("run_id")
        newest_first = sorted(run_ids, key=int, reverse=True)
        versions = {version: self._run(run_ids[version]) for version in newest_first}
        card = self._artifacts(versions.get(aliases.get("production", ""))).get(CARD)
        where = f"tags.`{KEY_TAG}` LIKE '{model} version %'"
        looks = self._newest(f"{experiment}_monitoring", where, NEWEST)
        folders = {
            at: to
            for run in looks
            for at, to in self._artifacts(run, "reports").items()
        }
        moments = {datetime.fromisoformat(f"{at}Z"): to for at, to in folders.items()}
        reports = {at: f"{to}/report.html" for at, to in moments.items()}
        return ModelPages(versions, card, looks[0] if looks else None, reports)

    def _run(self, run_id: str | None) -> RunPage | None:
        found = self._ask("runs/get", run_id=run_id) if run_id else {}
        return self._page(found["run"]) if found else None

    def _newest(self, experiment: str, where: str, count: int) -> list[RunPage]:
        """Return the runs started last of those that MLflow's filter `where` lets through."""
        found = self._ask("experiments/get-by-name", experiment_name=experiment)
        if not found:
            return []
        query = {
            "experiment_ids": [found["experiment"]["experiment_id"]],
            "filter": where,
        }
        newest = {"max_results": count, "order_by": ["attributes.start_time DESC"]}
        runs = self._ask("runs/search", query | newest).get("runs", ())
        return [self._page(run) for run in runs]

    def _artifacts(self, run: RunPage | None, folder: str = "") -> dict[str, str]:
        """Return the addresses of what lies in the run's artifact folder, by name."""
        found = (
            self._ask("artifacts/list", run_id=run.run_id, path=folder) if run else {}
        )
        paths = [file["path"] for file in found.get("files", ())]
        return {
            p.rpartition("/")[2]: f"{run.address}/artifacts/{p}" for p in paths if run
        }

    def _page(self, run: dict[str, Any]) -> RunPage:
        info = run["info"]
        return RunPage(
            info["run_id"],
            f"{self._link}/#/experiments/{info['experiment_id']}/runs/{info['run_id']}",
            info["status"],
            _time(info["start_time"]),
            _time(info["end_time"]) if info.get("end_time") else None,
            {tag["key"]: tag["value"] for tag in run["data"].get("tags", ())},
            {each["key"]: each["value"] for each in run["data"].get("metrics", ())},
        )


def _time(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(int(milliseconds) / 1000, UTC)
