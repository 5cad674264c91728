"""MLflow's tracking: experiments, runs, and the files of a run, without any decision.

Everything goes through a client, never through MLflow's "active run", so that stages in several
processes and threads do not write into each other's runs.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import pyarrow as pa
from mlflow.data.pandas_dataset import from_pandas
from mlflow.entities import (
    Dataset,
    DatasetInput,
    FileInfo,
    InputTag,
    LifecycleStage,
    Metric,
    Param,
    RunTag,
    ViewType,
)
from mlflow.entities import Run as MlflowRun
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from core.errors import RegistryError
from core.settings import Settings
from core.text_limits import RUN_NAME, RUN_TAG, cut
from core.user_code import in_one_line
from mlflow_server.api.connection import mlflow_client, translated
from mlflow_server.api.pages import DeletedExperiment
from mlflow_server.api.store import may_open
from mlflow_server.tags import (
    DESCRIPTION_TAG,
    KEY_TAG,
    OUTCOME_TAGS,
    PARENT_TAG,
    tag_equals,
)

EXPERIMENT_KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Tag of an experiment: without it MLflow's UI takes it for one about chat models."""
DATA_FOLDER = "data"
"""Folder of a run's artifacts with tables of rows."""
DIGEST_LENGTH = 36
"""Characters of a dataset's digest that MLflow stores."""
SCHEMA_ROWS = 1_000
"""MLflow infers the schema of a dataset from these rows, value by value."""
PAGE_SIZE = 100
"""Runs in one answer of MLflow: a run has about 20 kB, and an answer must come within 5 s."""


@dataclass(frozen=True)
class Run:
    """One run in MLflow. key: See KEY_TAG. started: UTC."""

    run_id: str
    key: str | None
    status: str
    started: datetime
    params: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]


class Tracking:
    """Runs of MLflow, which are found by a key, and their files.

    A method with a name of MLflow's client does the same as the client's. Every method raises
    RegistryError, in one line, if MLflow does not answer or refuses.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client = mlflow_client(settings)
        self._mlflow_name = settings.mlflow_name

    @translated("start run")
    def start_or_find_run(
        self,
        experiment: str,
        key: str,
        name: str,
        tags: Mapping[str, str],
        parent: str | None = None,
        about: str = "",
    ) -> str:
        """Return the id of the run of `key`, started if there is none.

        A run that did not finish goes on.

        Args:
            experiment: Name of the experiment, which is made if there is none.
            key: Key of the run.
            name: Name that people see.
            tags: Tags of a new run.
            parent: Id of the run that a new run stands below.
            about: Description of a new experiment, in Markdown.

        Raises:
            RegistryError: Somebody deleted the experiment in MLflow.

        """
        runs = self.runs(experiment, tag_equals(KEY_TAG, key))
        if not runs:
            run_tags = {**tags, KEY_TAG: key}
            if parent:
                run_tags[PARENT_TAG] = parent
            mlflow_name = self._mlflow_name(experiment)
            with suppress(RegistryError), translated("create experiment"):
                about_tags = EXPERIMENT_KIND | {DESCRIPTION_TAG: about}
                self._client.create_experiment(mlflow_name, tags=about_tags)
            entity = self._client.get_experiment_by_name(mlflow_name)
            if entity.lifecycle_stage == LifecycleStage.DELETED:
                deleted = DeletedExperiment(mlflow_name, entity.experiment_id)
                raise RegistryError(f"{deleted.words}; {deleted.remedy}")
            run = self._client.create_run(
                entity.experiment_id,
                tags={name: cut(text, RUN_TAG) for name, text in run_tags.items()},
                run_name=cut(name, RUN_NAME),
            )
            return str(run.info.run_id)
        oldest = runs[-1]
        if oldest.status != "FINISHED":
            self._client.update_run(oldest.run_id, status="RUNNING")
        return oldest.run_id

    @translated("search runs")
    def runs(
        self, experiment: str, where: str = "", *, deleted: bool = False
    ) -> list[Run]:
        """Return runs of an experiment, newest first; none if there is no such experiment.

        Args:
            experiment: Name of the experiment.
            where: Filter of MLflow, such as `tag_equals` returns.
            deleted: Whether runs that somebody deleted in MLflow are among them.

        """
        entity = self._client.get_experiment_by_name(self._mlflow_name(experiment))
        if entity is None:
            return []
        query = {
            "experiment_ids": [entity.experiment_id],
            "filter_string": where,
            "run_view_type": ViewType.ALL if deleted else ViewType.ACTIVE_ONLY,
            "max_results": PAGE_SIZE,
            "order_by": ["attributes.start_time DESC"],
        }
        page = self._client.search_runs(**query)
        runs = [_run(run) for run in page]
        while page.token:
            page = self._client.search_runs(**query, page_token=page.token)
            runs.extend(_run(run) for run in page)
        return runs

    @translated("get run")
    def run(self, run_id: str) -> Run:
        """Return the run with this id."""
        return _run(self._client.get_run(run_id))

    @translated("log batch")
    def log(
        self,
        run_id: str,
        *,
        params: Mapping[str, object] | None = None,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
        at: datetime | None = None,
        step: int = 0,
    ) -> None:
        """Write values into a run; metrics are as of `at` (default: now).

        MLflow refuses another value of a parameter.
        """
        time = at or datetime.now(UTC)
        milliseconds = int(time.timestamp() * 1000)
        points = [
            Metric(name, float(value), milliseconds, step)
            for name, value in (metrics or {}).items()
        ]
        texts = [Param(name, str(value)) for name, value in (params or {}).items()]
        labels = [
            RunTag(name, cut(text, RUN_TAG)) for name, text in (tags or {}).items()
        ]
        self._client.log_batch(run_id, points, texts, labels)

    @translated("log inputs")
    def log_dataset(
        self, run_id: str, file: str, table: pa.Table, *, name: str, digest: str
    ) -> None:
        """Record a table with a column `label` as the dataset that the run is trained on.

        Args:
            run_id: Id of the run.
            file: Name of the file in DATA_FOLDER that has the table.
            table: The table.
            name: Name that people see.
            digest: Hash of the whole content; MLflow's own covers the first 10,000 rows.

        """
        # The address that the UI itself links to: proxied artifact URIs have no resolver.
        path = f"path={DATA_FOLDER}/{file}&run_uuid={run_id}"
        dataset = from_pandas(
            table.slice(0, SCHEMA_ROWS).to_pandas(),
            source=f"{self._client.tracking_uri}/get-artifact?{path}",
            targets="label",
            name=name,
            digest=digest[:DIGEST_LENGTH],
        )
        context = [InputTag("mlflow.data.context", "training")]
        value_count = table.num_rows * table.num_columns
        profile = {"num_rows": table.num_rows, "num_elements": value_count}
        entity = Dataset(**dataset.to_dict() | {"profile": json.dumps(profile)})
        self._client.log_inputs(run_id, [DatasetInput(entity, context)])

    @translated("log text")
    def log_text(self, run_id: str, text: str, artifact_file: str) -> None:
        """Store a text as an artifact."""
        self._require_store(run_id)
        self._client.log_text(run_id, text, artifact_file)

    @translated("log dict")
    def log_dict(self, run_id: str, dictionary: Any, artifact_file: str) -> None:
        """Store a value as an artifact: JSON, or YAML where the file's name says it."""
        self._require_store(run_id)
        self._client.log_dict(run_id, dictionary, artifact_file)

    @translated("log artifact")
    def log_artifact(self, run_id: str, local_path: str, artifact_path: str) -> None:
        """Store a file in the folder `artifact_path` of the run's artifacts."""
        self._require_store(run_id)
        self._client.log_artifact(run_id, local_path, artifact_path)

    @translated("log artifacts")
    def log_artifacts(
        self, run_id: str, local_dir: str, artifact_path: str | None = None
    ) -> None:
        """Store the files of a folder in `artifact_path`, by default beside all others."""
        self._require_store(run_id)
        self._client.log_artifacts(run_id, local_dir, artifact_path)

    @translated("list artifacts")
    def list_artifacts(self, run_id: str, path: str) -> list[FileInfo]:
        """Return the artifacts in a folder; none where there is no such folder."""
        self._require_store(run_id)
        return list(self._client.list_artifacts(run_id, path))

    @translated("download artifacts")
    def download_artifacts(self, run_id: str, path: str, dst_path: str) -> str:
        """Copy the artifact (file or folder) `path` into a folder; return its place there."""
        self._require_store(run_id)
        return str(self._client.download_artifacts(run_id, path, dst_path))

    @translated("delete artifacts")
    def delete_artifacts(self, run_id: str, path: str) -> None:
        """Delete the artifact (file or folder) `path`, if it is there."""
        address = self._require_store(run_id)
        repository = get_artifact_repository(address, self._client.tracking_uri)
        repository.delete_artifacts(path)

    def _require_store(self, run_id: str) -> str:
        """Return the location of a run's artifacts.

        Raises:
            RegistryError: It is outside the store of Gyre's own MLflow.

        """
        location = str(self._client.get_run(run_id).info.artifact_uri)
        if not may_open(self._settings, location):
            text = f"{location!r} is not in the store of this installation's MLflow"
            raise RegistryError(f"run {run_id}: its files are not opened: {text}")
        return location

    @translated("set terminated")
    def end(
        self,
        run_id: str,
        outcome: str = "",
        status: Literal["FINISHED", "FAILED"] = "FINISHED",
    ) -> None:
        """End the run; an outcome becomes a tag, and the description in MLflow's UI."""
        if outcome:
            self.log(run_id, tags=dict.fromkeys(OUTCOME_TAGS, outcome))
        self._client.set_terminated(run_id, status)

    @contextmanager
    def on_record(self, run_id: str) -> Iterator[None]:
        """End the run as failed if the block raises an error, whose text becomes the outcome."""
        try:
            yield
        except BaseException as exc:
            # The error may be that MLflow does not answer.
            with suppress(RegistryError):
                self.end(run_id, in_one_line(exc), "FAILED")
            raise


def _run(run: MlflowRun) -> Run:
    return Run(
        run_id=run.info.run_id,
        key=run.data.tags.get(KEY_TAG),
        status=run.info.status,
        started=datetime.fromtimestamp(run.info.start_time / 1000, UTC),
        params=run.data.params,
        metrics=run.data.metrics,
        tags=run.data.tags,
    )
