"""MLflow's tracking: experiments, runs and what belongs to a run. Decides nothing.

Everything goes through a client of its own, never the fluent "active run", so that stages in
several processes and threads do not get into each other's runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
from mlflow.data.pandas_dataset import from_pandas
from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from mlflow_server.connection import client, translated

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.figure import Figure

    from stack.settings import Settings

KEY_TAG = "gyre.key"
BATCH = 100
"""Parameters, tags and metrics that MLflow takes in one request."""
DIGEST_LENGTH = 36
TRAINING = {"mlflow.experimentKind": "custom_model_development"}
"""Without it the UI greets an experiment as one about chat models, its runs a click away."""
DATA_FOLDER = "data"


@dataclass(frozen=True)
class Run:
    """One run as MLflow holds it; `key` is what it was started with, `started` is UTC."""

    run_id: str
    key: str | None
    status: str
    started: datetime
    params: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]


class Tracking:
    """Every method raises RegistryError, in one line, when MLflow does not answer or refuses."""

    def __init__(self, settings: Settings) -> None:
        self._client = client(settings)
        self._address = settings.mlflow_address

    def start_or_find_run(
        self, experiment: str, key: str, name: str, tags: Mapping[str, str]
    ) -> str:
        """Return the run of `key`, started if there is none; one that did not finish goes on."""
        run_id = self.find_run(experiment, key)
        with translated(f"run {name} of {experiment}"):
            if run_id is None:
                experiment_id = self._experiment(experiment)
                marked = {**tags, KEY_TAG: key}
                run = self._client.create_run(experiment_id, tags=marked, run_name=name)
                return str(run.info.run_id)
            if self._client.get_run(run_id).info.status != "FINISHED":
                self._client.update_run(run_id, status="RUNNING")
            return run_id

    def find_run(self, experiment: str, key: str) -> str | None:
        """Return the oldest run started with `key`."""
        found = self._search(experiment, f"tags.`{KEY_TAG}` = '{key}'")
        return found[-1].run_id if found else None

    def runs(self, experiment: str) -> list[Run]:
        """Every run, newest first; empty for an experiment that does not exist."""
        return self._search(experiment, "")

    def run(self, run_id: str) -> Run:
        with translated(f"run {run_id}"):
            return _run(self._client.get_run(run_id))

    def log_params(self, run_id: str, params: Mapping[str, object]) -> None:
        """Once written, a parameter keeps its value; the same value again is fine."""
        entities = [Param(name, str(value)) for name, value in params.items()]
        self._log(run_id, "params", entities)

    def log_metrics(
        self,
        run_id: str,
        metrics: Mapping[str, float],
        *,
        step: int = 0,
        time: datetime | None = None,
    ) -> None:
        millis = int((time or datetime.now(UTC)).timestamp() * 1000)
        entities = [Metric(name, float(value), millis, step) for name, value in metrics.items()]
        self._log(run_id, "metrics", entities)

    def log_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        self._log(run_id, "tags", [RunTag(name, value) for name, value in tags.items()])

    def log_figure(self, run_id: str, figure: Figure, path: str) -> None:
        """Store a matplotlib figure as the artifact `path` (its ending names the format)."""
        with translated(f"figure {path} of run {run_id}"):
            self._client.log_figure(run_id, figure, path)

    def log_json(self, run_id: str, content: Mapping[str, Any], path: str) -> None:
        with translated(f"artifact {path} of run {run_id}"):
            self._client.log_dict(run_id, dict(content), path)

    def log_artifact(self, run_id: str, file: Path, folder: str | None = None) -> None:
        with translated(f"artifact {file.name} of run {run_id}"):
            self._client.log_artifact(run_id, str(file), folder)

    def log_dataset(
        self, run_id: str, parquet: Path, *, name: str, context: str, digest: str, target: str
    ) -> None:
        """Store the file under `data/` and name it as the run's input.

        `digest` is the caller's hash of the content (MLflow keeps 36 characters of it): MLflow's
        own does not change for edits past row 10,000.
        """
        frame = pd.read_parquet(parquet)
        with translated(f"dataset {name} of run {run_id}"):
            self._client.log_artifact(run_id, str(parquet), DATA_FOLDER)
            # The address that the UI itself links to: proxied artifact URIs have no resolver.
            path = f"path={DATA_FOLDER}/{parquet.name}&run_uuid={run_id}"
            source = f"{self._address}/get-artifact?{path}"
            dataset = from_pandas(
                frame, source=source, targets=target, name=name, digest=digest[:DIGEST_LENGTH]
            )
            tags = [InputTag("mlflow.data.context", context)]
            entity = DatasetInput(dataset._to_mlflow_entity(), tags)  # noqa: SLF001  (client way)
            self._client.log_inputs(run_id, [entity])

    def download(self, run_id: str, path: str, folder: Path) -> Path:
        """Fetch the artifact (file or folder) `path` below `folder`; return where it is."""
        folder.mkdir(parents=True, exist_ok=True)
        with translated(f"artifact {path} of run {run_id}"):
            return Path(self._client.download_artifacts(run_id, path, str(folder)))

    def finish(self, run_id: str, status: Literal["FINISHED", "FAILED"]) -> None:
        with translated(f"end of run {run_id}"):
            self._client.set_terminated(run_id, status)

    def _log(self, run_id: str, kind: str, entities: Sequence[Any]) -> None:
        with translated(f"{kind} of run {run_id}"):
            for at in range(0, len(entities), BATCH):
                self._client.log_batch(run_id, **{kind: entities[at : at + BATCH]})

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name, tags=TRAINING))
            except MlflowException as exc:
                if exc.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise  # otherwise another process was first
                found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id)

    def _search(self, experiment: str, query: str) -> list[Run]:
        found: list[Run] = []
        with translated(f"runs of {experiment}"):
            known = self._client.get_experiment_by_name(experiment)
            if known is None:
                return found
            token: str | None = None
            while True:
                page = self._client.search_runs(
                    [known.experiment_id],
                    query,
                    order_by=["attributes.start_time DESC"],
                    page_token=token,
                )
                found += [_run(run) for run in page]
                token = page.token
                if not token:
                    return found


def _run(found: Any) -> Run:
    return Run(
        run_id=found.info.run_id,
        key=found.data.tags.get(KEY_TAG),
        status=found.info.status,
        started=datetime.fromtimestamp(found.info.start_time / 1000, UTC),
        params=dict(found.data.params),
        metrics=dict(found.data.metrics),
        tags=dict(found.data.tags),
    )
