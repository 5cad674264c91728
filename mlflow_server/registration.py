"""A trained model becomes a version: once per run, whatever was killed on the way."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import mlflow.onnx
import onnx
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, Schema

from mlflow_server.connection import client, translated
from mlflow_server.registry import Registry
from mlflow_server.served_model import CONTRACT_FILE, ONNX_FILE, SCORE, digest_tags, wrong_files
from stack.errors import RegistryError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from mlflow import MlflowClient

    from mlflow_server.registry import Version
    from stack.settings import Settings

LOGGED_NAME = "model"
THREADS = {"intra_op_num_threads": 1, "inter_op_num_threads": 1}
COLUMN_TYPES = {"int64": "long", "float64": "double", "object": "string"}
PROVIDERS = ["CPUExecutionProvider"]


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
    registry, api = Registry(settings), client(settings)
    if done := registry.versions_of_run(model, run_id):
        return done[0]
    with tempfile.TemporaryDirectory(prefix="gyre-register-") as name:
        folder = Path(name)
        onnx.save_model(onnx_model, folder / ONNX_FILE)
        shutil.copy(extra_files / CONTRACT_FILE, folder)
        digests = digest_tags(folder)
        found = _logged(registry, api, run_id, digests, folder / "found")
        if found is None:
            _log(
                settings,
                run_id,
                onnx_model=onnx_model,
                extra_files=extra_files,
                input_example=input_example,
                requirements=requirements,
            )
            found = _logged(registry, api, run_id, digests, folder / "logged")
    if found is None:
        raise RegistryError(f"{model}: run {run_id}: MLflow returned other bytes than it was given")
    with translated(f"new version of {model}"):
        _make_model(api, model)
        version = api.create_model_version(
            model,
            source=f"models:/{found}",
            run_id=run_id,
            model_id=found,
            tags={**tags, **digests},
            description=description,
            await_creation_for=0,  # the SQL store has made it by the time it answers
        ).version
    registry.set_stage(model, str(version), "Staging")
    return registry.version(model, str(version))


def _log(
    settings: Settings,
    run_id: str,
    *,
    onnx_model: onnx.ModelProto,
    extra_files: Path,
    input_example: pd.DataFrame,
    requirements: Sequence[str],
) -> None:
    """Log an ordinary MLflow model of the ONNX flavour, as `mlflow.onnx.log_model` does.

    That function knows only the "active run"; `Model.log` below it takes the run by its id.
    """
    mlflow.set_tracking_uri(settings.mlflow_address)
    with warnings.catch_warnings(), translated(f"log the model into run {run_id}"):
        warnings.simplefilter("ignore", UserWarning)  # about type hints of MLflow's own modules
        # Without an active run MLflow puts the model into the default experiment.
        mlflow.set_experiment(experiment_id=client(settings).get_run(run_id).info.experiment_id)
        Model.log(
            artifact_path=None,
            flavor=mlflow.onnx,
            name=LOGGED_NAME,
            run_id=run_id,
            onnx_model=onnx_model,
            signature=_signature(input_example),
            input_example=input_example,
            pip_requirements=list(requirements),
            onnx_execution_providers=PROVIDERS,
            onnx_session_options=THREADS,
            save_as_external_data=False,
            extra_files=[str(path) for path in sorted(extra_files.iterdir())],
        )


def _signature(example: pd.DataFrame) -> ModelSignature:
    columns = [ColSpec(COLUMN_TYPES[str(example[name].dtype)], name) for name in example]
    return ModelSignature(Schema(columns), Schema([ColSpec("float", SCORE)]))


def _logged(
    registry: Registry, api: MlflowClient, run_id: str, digests: dict[str, str], folder: Path
) -> str | None:
    """Return the id of the run's logged model with these digests, None if it was never whole."""
    with translated(f"models logged by run {run_id}"):
        experiment = api.get_run(run_id).info.experiment_id
        models: list[Any] = api.search_logged_models(
            [experiment], filter_string=f"source_run_id = '{run_id}'"
        )
    for model in models:
        try:
            target = folder / model.model_id
            registry.download_from(model.artifact_location, target, f"model {model.model_id}")
        except RegistryError:
            continue  # killed while it was being uploaded
        if not wrong_files(target, digests):
            return str(model.model_id)
    return None


def _make_model(api: MlflowClient, model: str) -> None:
    try:
        api.create_registered_model(model)
    except MlflowException as exc:
        if exc.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
