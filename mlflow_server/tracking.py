"""MLflow's tracking: experiments, runs and what belongs to a run. Decides nothing.

Everything goes through a client of its own, never the fluent "active run", so that stages in
several processes and threads do not get into each other's runs.
"""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
from mlflow.data.pandas_dataset import from_pandas
from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from mlflow_server.connection import EXISTS, client, translated
from mlflow_server.pages import KEY_TAG
from stack.errors import RegistryError
from stack.user_code import in_one_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from matplotlib.figure import Figure

    from stack.settings import Settings

PARENT_TAG = "mlflow.parentRunId"
"""MLflow's own: its UI shows the run below that one."""
DIGEST_LENGTH = 36
TRAINING = {"mlflow.experimentKind": "custom_model_development"}
"""Without it the UI greets an experiment as one about chat models, its runs a click away."""
DATA_FOLDER = "data"
LONGEST = 5_000
"""Characters of a tag: MLflow's own bound."""
MOST = 50_000
"""Runs asked for at once: MLflow's own bound."""


@dataclass(frozen=True)
class Run:
    """One run as MLflow holds it; `key` is what it was started with."""

    run_id: str
    key: str | None
    status: str
    params: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]


class Tracking:
    """Every method raises RegistryError, in one line, when MLflow does not answer or refuses."""

    def __init__(self, settings: Settings) -> None:
        self._client = client(settings)
        self._address = settings.mlflow_address

    def start_or_find_run(
        self,
        experiment: str,
        key: str,
        name: str,
        tags: Mapping[str, str],
        parent: str | None = None,
    ) -> str:
        """Return the run of `key`, started if there is none; one that did not finish goes on.

        parent: id of the run that this one lies under.
        """
        found = [run for run in self.runs(experiment, parent) if run.key == key]
        with translated(f"run {name} of {experiment}"):
            if not found:
                marked, place = {**tags, KEY_TAG: key}, self._experiment(experiment)
                marked |= {PARENT_TAG: parent} if parent else {}
                run = self._client.create_run(place, tags=marked, run_name=name)
                return str(run.info.run_id)
            oldest = found[-1]
            if oldest.status != "FINISHED":
                self._client.update_run(oldest.run_id, status="RUNNING")
            return oldest.run_id

    def runs(self, experiment: str, parent: str | None = None) -> list[Run]:
        """Every run under `parent` (default: under none), newest first.

        Empty for an experiment that does not exist.
        """
        # Not "IS NULL", which older servers do not know.
        under = None if parent is None else f"tags.`{PARENT_TAG}` = '{parent}'"
        with translated(f"runs of {experiment}"):
            known = self._client.get_experiment_by_name(experiment)
            if known is None:
                return []
            order = ["attributes.start_time DESC"]
            found = self._client.search_runs([known.experiment_id], under or "", 1, MOST, order)
        return [_run(run) for run in found if run.data.tags.get(PARENT_TAG) == parent]

    def page(self, run_id: str, path: str) -> str:
        """Address of the run's artifact `path` in MLflow's UI."""
        with translated(f"run {run_id}"):
            place = self._client.get_run(run_id).info.experiment_id
        return f"{self._address}/#/experiments/{place}/runs/{run_id}/artifacts/{path}"

    def run(self, run_id: str) -> Run:
        with translated(f"run {run_id}"):
            return _run(self._client.get_run(run_id))

    def log(
        self,
        run_id: str,
        *,
        params: Mapping[str, object] | None = None,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
        at: datetime | None = None,
    ) -> None:
        """Write values; a parameter, once written, keeps its own (the same again is fine).

        at: the moment that the metrics are of, now if absent.
        """
        now = int((at.timestamp() if at else time.time()) * 1000)
        with translated(f"values of run {run_id}"):
            self._client.log_batch(
                run_id,
                [Metric(name, float(value), now, 0) for name, value in (metrics or {}).items()],
                [Param(name, str(value)) for name, value in (params or {}).items()],
                [RunTag(name, value) for name, value in (tags or {}).items()],
            )

    def log_figure(self, run_id: str, figure: Figure, path: str) -> None:
        """Store a matplotlib figure as the artifact `path` (its ending names the format)."""
        with translated(f"figure {path} of run {run_id}"):
            self._client.log_figure(run_id, figure, path)

    def log_json(self, run_id: str, content: Mapping[str, Any], path: str) -> None:
        with translated(f"artifact {path} of run {run_id}"):
            self._client.log_dict(run_id, dict(content), path)

    def log_text(self, run_id: str, text: str, path: str) -> None:
        with translated(f"artifact {path} of run {run_id}"):
            self._client.log_text(run_id, text, path)

    def log_artifact(self, run_id: str, file: Path, folder: str) -> None:
        with translated(f"artifact {file.name} of run {run_id}"):
            self._client.log_artifact(run_id, str(file), folder)

    def log_dataset(
        self, run_id: str, parquet: Path, *, name: str, digest: str, target: str
    ) -> None:
        """Store the file under `data/` and name it as what the run was trained on.

        `digest` is the caller's hash of the content (MLflow keeps 36 characters of it): MLflow's
        own does not change for edits past row 10,000.
        """
        self.log_artifact(run_id, parquet, DATA_FOLDER)
        # The address that the UI itself links to: proxied artifact URIs have no resolver.
        path = f"path={DATA_FOLDER}/{parquet.name}&run_uuid={run_id}"
        dataset = from_pandas(
            pd.read_parquet(parquet),
            source=f"{self._address}/get-artifact?{path}",
            targets=target,
            name=name,
            digest=digest[:DIGEST_LENGTH],
        )
        tags = [InputTag("mlflow.data.context", "training")]
        entity = DatasetInput(dataset._to_mlflow_entity(), tags)  # noqa: SLF001  (client way)
        with translated(f"dataset {name} of run {run_id}"):
            self._client.log_inputs(run_id, [entity])

    def download(self, run_id: str, path: str, folder: Path) -> Path:
        """Fetch the artifact (file or folder) `path` below `folder`; return where it is."""
        folder.mkdir(parents=True, exist_ok=True)
        with translated(f"artifact {path} of run {run_id}"):
            return Path(self._client.download_artifacts(run_id, path, str(folder)))

    def artifacts(self, run_id: str, folder: str) -> dict[str, int]:
        """Paths of what lies in the artifact folder, with sizes in bytes (0 for a folder)."""
        with translated(f"artifacts of run {run_id}"):
            found = self._client.list_artifacts(run_id, folder)
        return {each.path: each.file_size or 0 for each in found}

    def delete_artifacts(self, run_id: str, path: str) -> None:
        """Delete the artifact (file or folder) `path`; of one that is gone nothing is said."""
        with translated(f"artifact {path} of run {run_id}"):
            place = self._client.get_run(run_id).info.artifact_uri
            get_artifact_repository(place, self._address).delete_artifacts(path)

    def finish(self, run_id: str, status: Literal["FINISHED", "FAILED"]) -> None:
        with translated(f"end of run {run_id}"):
            self._client.set_terminated(run_id, status)

    @contextmanager
    def on_record(self, run_id: str) -> Iterator[None]:
        """Whatever the block raises ends the run as failed, with the reason as its outcome."""
        try:
            yield
        except BaseException as exc:
            with suppress(RegistryError):  # that MLflow does not answer may be the reason itself
                self.fail(run_id, in_one_line(exc))
            raise

    def fail(self, run_id: str, why: str) -> None:
        self.log(run_id, tags={"outcome": why[:LONGEST]})
        self.finish(run_id, "FAILED")

    def _experiment(self, name: str) -> str:
        if self._client.get_experiment_by_name(name) is None:
            with translated(f"experiment {name}", unless=EXISTS):  # another process was first
                self._client.create_experiment(name, tags=TRAINING)
        return str(self._client.get_experiment_by_name(name).experiment_id)


def _run(found: Any) -> Run:
    return Run(
        run_id=found.info.run_id,
        key=found.data.tags.get(KEY_TAG),
        status=found.info.status,
        params=dict(found.data.params),
        metrics=dict(found.data.metrics),
        tags=dict(found.data.tags),
    )
