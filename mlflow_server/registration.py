"""A trained model becomes a version: once per run, whatever was killed on the way."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow.onnx
import onnx
from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, Schema

from mlflow_server.connection import EXISTS, client, translated
from mlflow_server.registry import Registry
from mlflow_server.served_model import CONTRACT_FILE, ONNX_FILE, SCORE, digest_tags, wrong_files
from stack.errors import RegistryError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

    from mlflow_server.registry import Version
    from stack.settings import Settings

COLUMN_TYPES = {"int64": "long", "float64": "double", "object": "string"}
NAME = "model"
HOW: dict[str, Any] = {
    "onnx_execution_providers": ["CPUExecutionProvider"],
    "onnx_session_options": {"intra_op_num_threads": 1, "inter_op_num_threads": 1},
    "save_as_external_data": False,  # one file, so that it has one digest
}


def register(
    settings: Settings,
    *,
    model: str,
    run_id: str,
    onnx_model: onnx.ModelProto,
    extra_files: Path,
    input_example: pd.DataFrame,
    tags: Mapping[str, str],
    description: str,
    requirements: Sequence[str],
) -> Version:
    """Log the model into the run and make the run's one version of `model`, stage Staging.

    `extra_files` is a folder with `serving.json` and whatever else belongs to the version, such as
    `pipeline.skops`. The columns of `input_example`, in their types, are the signature. The
    version's tags are `tags` and the digests of the served files, taken here from the files and
    compared with what MLflow gives back.

    Raises:
        RegistryError: MLflow does not answer, refuses, or returns other bytes than it was given.

    """
    registry = Registry(settings)
    for done in registry.versions(model):
        if done.run_id == run_id:
            if done.version not in registry.aliases(model).values():
                registry.set_stage(model, done.version, "Staging")  # if a killed try did not
            return done
    with tempfile.TemporaryDirectory(prefix="gyre-register-") as name:
        folder = Path(name)
        onnx.save_model(onnx_model, folder / ONNX_FILE)
        shutil.copy(extra_files / CONTRACT_FILE, folder)
        digests = digest_tags(folder)
        logged = _logged(settings, run_id, digests)
        if logged.status != LoggedModelStatus.READY:
            _fill(
                settings,
                logged,
                onnx_model=onnx_model,
                signature=_signature(input_example),
                input_example=input_example,
                pip_requirements=list(requirements),
                extra_files=[str(path) for path in sorted(extra_files.iterdir())],
            )
        registry.download_from(logged.artifact_location, folder / "back", f"model of run {run_id}")
        if wrong := wrong_files(folder / "back", digests):
            raise RegistryError(f"{model}: run {run_id}: MLflow returned other bytes: {wrong}")
    version = _new_version(settings, model, logged, {**tags, **digests}, description)
    registry.set_stage(model, version, "Staging")
    return registry.version(model, version)


def _logged(settings: Settings, run_id: str, digests: dict[str, str]) -> Any:
    """Return the run's model with these digests, begun if no killed try has."""
    api = client(settings)
    with translated(f"model logged by run {run_id}"):
        run = api.get_run(run_id)
        place, source = run.info.experiment_id, f"source_run_id = '{run_id}'"
        for model in api.search_logged_models([place], source):
            if digests.items() <= model.tags.items():
                return model
        return api.create_logged_model(place, NAME, run_id, digests, run.data.params)


def _fill(settings: Settings, logged: Any, **model: Any) -> None:
    """Make of it an ordinary MLflow model of the ONNX flavour; what a killed try did is done.

    `mlflow.onnx.log_model` would begin another and leave the dead one on the run's page.
    """
    api, run_id = client(settings), logged.source_run_id
    with translated(f"log the model into run {run_id}"), tempfile.TemporaryDirectory() as name:
        run = api.get_run(run_id)
        if logged.model_id not in {output.model_id for output in run.outputs.model_outputs}:
            api.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
        measured = run.data._metric_objs  # noqa: SLF001  (with their times: again is the same)
        named = {"model_id": logged.model_id, "run_id": run_id}
        api.log_batch(run_id, [Metric(m.key, m.value, m.timestamp, 0, **named) for m in measured])
        made = Model(logged.artifact_location, model_uuid=logged.model_id, **named)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about type hints of MLflow's own modules
            mlflow.onnx.save_model(path=f"{name}/{NAME}", mlflow_model=made, **HOW, **model)
        api.log_model_artifacts(logged.model_id, f"{name}/{NAME}")
        api.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)


def _signature(example: pd.DataFrame) -> ModelSignature:
    columns = [ColSpec(COLUMN_TYPES[str(example[name].dtype)], name) for name in example]
    return ModelSignature(Schema(columns), Schema([ColSpec("float", SCORE)]))


def _new_version(
    settings: Settings, model: str, logged: Any, tags: dict[str, str], description: str
) -> str:
    api = client(settings)
    with translated(f"new model {model}", unless=EXISTS):
        api.create_registered_model(model)
    with translated(f"new version of {model}"):
        made = api.create_model_version(
            model,
            source=f"models:/{logged.model_id}",
            run_id=logged.source_run_id,
            model_id=logged.model_id,
            tags=tags,
            description=description,
            await_creation_for=0,  # the SQL store has made it by the time it answers
        )
    return str(made.version)
