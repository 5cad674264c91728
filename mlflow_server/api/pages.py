"""Runs that people look at, and the addresses of their pages in MLflow's UI.

It uses MLflow's REST API, so that the console does without 150 MB of MLflow.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from core.errors import ArtifactError, RegistryError
from core.settings import Settings
from mlflow_server.api.registry import Registry, Version
from mlflow_server.api.rest import call_mlflow, read_artifact
from mlflow_server.tags import KEY_TAG, OF_TRAININGS

CARD = "model_card.html"
REPORT = "report.html"
DISTRIBUTIONS = "distributions.json"
"""What the drift of each column is computed from, beside each report."""
TRAINING_VIEW = "workflowType=machine_learning"
"""Part of an address that opens MLflow's view of trainings; the other view is of chat models."""
NEWEST = 5
"""Number of versions shown beside the versions in a role, and of monitoring runs with reports."""


@dataclass(frozen=True)
class RunPage:
    """One run; `address` is that of its page. started, ended: UTC; None: it has not ended."""

    run_id: str
    address: str
    status: str
    started: datetime
    ended: datetime | None
    tags: dict[str, str]
    params: dict[str, str]
    metrics: Mapping[str, float]
    artifacts: str
    """Address of its artifacts in MLflow."""

    @property
    def outcome(self) -> str:
        """The outcome of a training, in words."""
        return self.tags.get("outcome") or self.tags.get("gate") or "no outcome yet"


@dataclass(frozen=True)
class DeletedExperiment:
    """An experiment that somebody deleted in MLflow; its name stays taken there."""

    name: str
    number: str

    @property
    def words(self) -> str:
        return f"the experiment {self.name} was deleted in MLflow"

    @property
    def remedy(self) -> str:
        return (
            f"to restore it: mlflow experiments restore --experiment-id {self.number}; "
            f"to begin anew: mlflow gc --experiment-ids {self.number}"
        )


@dataclass(frozen=True)
class Document:
    """A page among the artifacts of a run.

    Attributes:
        version: Version of the model that the page is about.
        run: The run.
        place: Path below the run's artifacts.

    """

    version: str
    run: RunPage
    place: str

    @property
    def address(self) -> str:
        """Address of the page in MLflow's UI."""
        return f"{self.run.address}/artifacts/{self.place}?{TRAINING_VIEW}"


@dataclass(frozen=True)
class ModelPages:
    """Pages about a model.

    Attributes:
        versions: Runs of the newest versions and of versions in a role, the newest first; None: the
            run is deleted.
        monitoring: The newest monitoring run.
        cards: Model cards by version, the oldest first.
        reports: Evidently's reports by the end of their window, such as 2026-11-01T10:00:00 (UTC),
            the oldest first.
        distributions: By column what is beside the newest report: see
            `training.evaluation.psi.BinShares`. Empty if an older release stored the report.

    """

    versions: Mapping[str, RunPage | None]
    monitoring: RunPage | None
    cards: Mapping[str, Document]
    reports: Mapping[str, Document]
    distributions: Mapping[str, Any]


class Pages:
    """Pages of MLflow's UI.

    Every method raises RegistryError, in one line, if MLflow does not answer or refuses.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._link = settings.link("mlflow")

    def experiment(self, name: str) -> str:
        """Return the address of the experiment's runs; if there is none yet, of all experiments."""
        answer = self._experiment(name)
        place = f"{answer['experiment']['experiment_id']}/runs" if answer else ""
        return f"{self._link}/#/experiments/{place}?{TRAINING_VIEW}"

    def run(self, run_id: str) -> str:
        """Return the address of the run's page."""
        return self._page(self._ask("runs/get", run_id=run_id)["run"]).address

    def version(self, model: str, number: str) -> RunPage:
        """Return the run of a version."""
        page = self._run_of(Registry(self._settings).version(model, number))
        if page is None:
            raise RegistryError(f"{model}: MLflow has no run of version {number}")
        return page

    def training(self, experiment: str) -> RunPage | DeletedExperiment | None:
        """Return the newest training; None if there is none."""
        entity = self._experiment(experiment).get("experiment", {})
        if entity.get("lifecycle_stage") == "deleted":
            return DeletedExperiment(entity["name"], entity["experiment_id"])
        runs = self._newest(experiment, OF_TRAININGS, 1)
        return runs[0] if runs else None

    def pages(self, model: str, experiment: str) -> ModelPages:
        """Return the newest versions, the versions in a role, and the reports of monitoring."""
        versions = self._versions(model)
        cards = {}
        for number, run in reversed(versions.items()):
            if run:
                cards[number] = Document(number, run, CARD)
        key = f"tags.`{KEY_TAG}` LIKE '{model} version %'"
        monitorings = self._newest(f"{experiment}_monitoring", key, NEWEST)
        reports = {}
        for run in monitorings:
            answer = self._ask("artifacts/list", run_id=run.run_id, path="reports")
            for file in answer.get("files", []):
                folder = file["path"].rpartition("/")[2]
                moment = datetime.fromisoformat(folder).isoformat()
                version = run.tags.get("version", "")
                place = f"reports/{folder}/{REPORT}"
                reports[moment] = Document(version, run, place)
        distributions = b"{}"
        if reports:
            newest = reports[max(reports)]
            place = newest.place.replace(REPORT, DISTRIBUTIONS)
            with suppress(ArtifactError):
                distributions = read_artifact(
                    self._settings, newest.run.artifacts, place
                )
        return ModelPages(
            versions=versions,
            monitoring=monitorings[0] if monitorings else None,
            cards=cards,
            reports=dict(sorted(reports.items())),
            distributions=json.loads(distributions),
        )

    def _versions(self, model: str) -> dict[str, RunPage | None]:
        """Return the run of each shown version, the newest version first."""
        registry = Registry(self._settings)
        versions = registry.versions(model)
        shown_numbers = {*registry.aliases(model).values()}
        shown_numbers.update(version.version for version in versions[-NEWEST:])
        pages: dict[str, RunPage | None] = {}
        for version in reversed(versions):
            if version.version in shown_numbers:
                pages[version.version] = self._run_of(version)
        return pages

    def _run_of(self, version: Version) -> RunPage | None:
        answer = {}
        if version.run_id:
            answer = self._ask("runs/get", run_id=version.run_id)
        return self._page(answer["run"]) if answer else None

    def _newest(self, experiment: str, condition: str, count: int) -> list[RunPage]:
        """Return the newest runs that pass a filter of MLflow."""
        answer = self._experiment(experiment)
        if not answer:
            return []
        query = {
            "experiment_ids": [answer["experiment"]["experiment_id"]],
            "filter": condition,
            "max_results": count,
            "order_by": ["attributes.start_time DESC"],
        }
        answer = self._ask("runs/search", query)
        return [self._page(run) for run in answer.get("runs", [])]

    def _experiment(self, name: str) -> dict[str, Any]:
        mlflow_name = self._settings.mlflow_name(name)
        return self._ask("experiments/get-by-name", experiment_name=mlflow_name)

    def _ask(
        self, call: str, body: dict[str, Any] | None = None, **query: str
    ) -> dict[str, Any]:
        """Return MLflow's answer; empty if there is no such thing."""
        return call_mlflow(self._settings, call, body, **query) or {}

    def _page(self, run: dict[str, Any]) -> RunPage:
        info = run["info"]
        experiment = f"{self._link}/#/experiments/{info['experiment_id']}"
        data = run["data"]
        return RunPage(
            run_id=info["run_id"],
            address=f"{experiment}/runs/{info['run_id']}",
            status=info["status"],
            started=_time(info["start_time"]),
            ended=_time(info["end_time"]) if info.get("end_time") else None,
            tags={tag["key"]: tag["value"] for tag in data.get("tags", [])},
            params={param["key"]: param["value"] for param in data.get("params", [])},
            metrics={
                metric["key"]: metric["value"] for metric in data.get("metrics", [])
            },
            artifacts=info["artifact_uri"],
        )


def _time(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(int(milliseconds) / 1000, UTC)
