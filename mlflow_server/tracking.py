"""MLflow's tracking: experiments, runs and what belongs to a run. Decides nothing.

Everything goes through a client of its own, never the fluent "active run", so that stages in
several processes and threads do not get into each other's runs.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import pandas as pd
from mlflow.data.pandas_dataset import from_pandas
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    Metric,
    Param,
    RunTag,
    ViewType,
)
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from core.errors import RegistryError
from core.settings import Settings
from core.user_code import in_one_line
from mlflow_server.connection import EXISTS, client, translated
from mlflow_server.pages import KEY_TAG

PARENT_TAG = "mlflow.parentRunId"
"""MLflow's own: its UI shows the run below that one."""
DIGEST_LENGTH = 36
# The second is the description in MLflow's UI.
OUTCOME = (
    "outcome",
    "mlflow.note.content",
)
EXPERIMENT = json.loads(
    Path(__file__).with_name("experiment_tags.json").read_text("utf-8")
)
"""Tags: its kind, else the UI takes it for one about chat models; description; columns of runs."""
DATA_FOLDER = "data"
LONGEST, MOST = 5_000, 50_000
"""MLflow's own bounds: characters of a tag, runs asked for at once."""


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
        """Return the id of the run of `key`, started (below the run `parent`) if there is none.

        One that did not finish goes on.
        """
        runs = [run for run in self.runs(experiment, parent) if run.key == key]
        with translated(f"run {name} of {experiment}"):
            if not runs:
                own = {KEY_TAG: key} | ({PARENT_TAG: parent} if parent else {})
                place = self._experiment(experiment)
                run = self._client.create_run(
                    place, tags={**tags, **own}, run_name=name
                )
                return str(run.info.run_id)
            oldest = runs[-1]
            if oldest.status != "FINISHED":
                self._client.update_run(oldest.run_id, status="RUNNING")
            return oldest.run_id

    def runs(self, experiment: str, parent: str | None = None) -> list[Run]:
        """Every run under `parent` (default: under none), newest first; no experiment, no runs."""
        # Not "IS NULL", which older servers do not know.
        under = f"tags.`{PARENT_TAG}` = '{parent}'" if parent else ""
        with translated(f"runs of {experiment}"):
            known = self._client.get_experiment_by_name(experiment)
            if known is None:
                return []
            order = ["attributes.start_time DESC"]
            found = self._client.search_runs(
                [known.experiment_id], under, 1, MOST, order
            )
        return [_run(run) for run in found if run.data.tags.get(PARENT_TAG) == parent]

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
        """Write values, metrics as of `at` (default: now); a parameter keeps its first value."""
        now = int((at.timestamp() if at else time.time()) * 1000)
        points = [
            Metric(name, float(value), now, 0)
            for name, value in (metrics or {}).items()
        ]
        texts = [Param(name, str(value)) for name, value in (params or {}).items()]
        labels = [RunTag(name, value) for name, value in (tags or {}).items()]
        with translated(f"values of run {run_id}"):
            self._client.log_batch(run_id, points, texts, labels)

    def log_json(self, run_id: str, content: Mapping[str, Any], path: str) -> None:
        with translated(f"artifact {path} of run {run_id}"):
            self._client.log_dict(run_id, dict(content), path)

    def log_text(self, run_id: str, text: str, path: str) -> None:
        with translated(f"artifact {path} of run {run_id}"):
            self._client.log_text(run_id, text, path)

    def log_artifact(self, run_id: str, file: Path, folder: str) -> None:
        with translated(f"artifact {file.name} of run {run_id}"):
            self._client.log_artifact(run_id, str(file), folder)

    def log_artifacts(self, run_id: str, files: Path, folder: str) -> None:
        """Store everything in the local folder `files` in the run's folder `folder`."""
        with translated(f"artifacts {folder} of run {run_id}"):
            self._client.log_artifacts(run_id, str(files), folder)

    def log_dataset(
        self, run_id: str, parquet: Path, *, name: str, digest: str, target: str
    ) -> None:
        """Store the file under `data/` and name it as what the run was trained on.

        digest: the caller's hash of the content: MLflow's own covers the first 10,000 rows.
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
        context = [InputTag("mlflow.data.context", "training")]
        with translated(f"dataset {name} of run {run_id}"):
            self._client.log_inputs(
                run_id, [DatasetInput(Dataset(**dataset.to_dict()), context)]
            )

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
        """Delete the artifact (file or folder) `path`, if it is there."""
        with translated(f"artifact {path} of run {run_id}"):
            place = self._client.get_run(run_id).info.artifact_uri
            get_artifact_repository(place, self._address).delete_artifacts(path)

    def rewrite(
        self,
        experiment: str,
        pattern: str,
        change: Callable[[str, Path], int],
        *,
        store: bool,
    ) -> int:
        """Let `change` (run, file) edit copies of files of all runs.

        pattern: of their paths. store: put back those it answers more than 0 for. Returns the sum.
        """
        folder, changed = pattern.rpartition("/")[0], 0
        with (
            translated(f"files of {experiment}"),
            TemporaryDirectory(prefix="gyre-") as name,
        ):
            for run_id, address in self._places(experiment):
                files = get_artifact_repository(address, self._address)
                for path in (each.path for each in files.list_artifacts(folder)):
                    if fnmatch(path, pattern):
                        file = Path(files.download_artifacts(path, name))
                        changed += (rows := change(run_id, file))
                        if rows and store:
                            files.log_artifact(str(file), folder)
        return changed

    def _places(self, experiment: str) -> Iterator[tuple[str, str]]:
        """Run, and address of files, of each run, also of deleted ones."""
        if known := self._client.get_experiment_by_name(experiment):
            ids = [known.experiment_id]
            for run in self._client.search_runs(ids, "", ViewType.ALL, MOST):
                yield run.info.run_id, run.info.artifact_uri

    def finish(self, run_id: str, status: Literal["FINISHED", "FAILED"]) -> None:
        with translated(f"end of run {run_id}"):
            self._client.set_terminated(run_id, status)

    def end(self, run_id: str, outcome: str) -> None:
        self.log(run_id, tags=dict.fromkeys(OUTCOME, outcome[:LONGEST]))
        self.finish(run_id, "FINISHED")

    def fail(self, run_id: str, why: str) -> None:
        self.log(run_id, tags=dict.fromkeys(OUTCOME, why[:LONGEST]))
        self.finish(run_id, "FAILED")

    @contextmanager
    def on_record(self, run_id: str) -> Iterator[None]:
        """Whatever the block raises ends the run as failed, with the reason as its outcome."""
        try:
            yield
        except BaseException as exc:
            # That MLflow does not answer may be the reason itself.
            with suppress(RegistryError):
                self.fail(run_id, in_one_line(exc))
            raise

    def _experiment(self, name: str) -> str:
        with translated(f"experiment {name}", unless=EXISTS):
            self._client.create_experiment(name, tags=EXPERIMENT)
        return str(self._client.get_experiment_by_name(name).experiment_id)


def _run(found: Any) -> Run:
    data = found.data
    values = dict(data.params), dict(data.metrics), dict(data.tags)
    return Run(found.info.run_id, data.tags.get(KEY_TAG), found.info.status, *values)
