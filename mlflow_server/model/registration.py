"""Registration: a trained model becomes a version, once for each run, also after a kill."""

import platform
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import (
    LoggedModel,
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
    Run,
)
from mlflow.models import Model, ModelSignature, infer_signature
from mlflow.types import ColSpec, Schema, TensorSpec

from core.errors import RegistryError
from core.settings import Settings
from core.text_limits import DESCRIPTION, cut
from mlflow_server.api.connection import mlflow_client, translated
from mlflow_server.api.registry import Registry, Version
from mlflow_server.foreign_graph import SIGNATURE_DTYPES
from mlflow_server.manifest import MODEL_FILES, SCORE, ModelInterface, digest_tags
from mlflow_server.model.pyfunc import ModelFile
from mlflow_server.model.zipped import unzip
from mlflow_server.tags import packed

LOGGED_NAME = "model"
ONNX_OPTIONS: dict[str, Any] = {
    "onnx_execution_providers": ["CPUExecutionProvider"],
    "onnx_session_options": {"intra_op_num_threads": 1, "inter_op_num_threads": 1},
    "save_as_external_data": False,  # one file, so that it has one digest
}


def register(
    settings: Settings,
    *,
    model: str,
    run_id: str,
    exported: ModelFile,
    files: Path,
    input_example: pd.DataFrame,
    tags: Mapping[str, str],
    description: str,
    requirements: Sequence[str],
) -> Version:
    """Log the model into the run and make the run's one version of `model`, in stage Staging.

    Args:
        settings: Settings of the installation.
        model: Name of the registered model.
        run_id: Id of the training run.
        exported: The model's file, which is written into `files`.
        files: Folder with `serving.json` and all other files of the version.
        input_example: Rows of the model's inputs.
        tags: Tags of the version; its digests are added.
        description: Description of the version in MLflow.
        requirements: Packages that the model needs.

    Raises:
        RegistryError: MLflow does not answer, refuses, or returns other bytes than it was given.

    """
    registry = Registry(settings)
    versions = [
        version for version in registry.versions(model) if version.run_id == run_id
    ]
    if versions:
        version = versions[0]
    else:
        content = {
            "conda_env": _conda_environment(requirements),
            "input_example": input_example,
            "signature": _signature(input_example, exported.interface),
        }
        logged, digests = _logged_model(settings, run_id, exported, files, content)
        version_tags = {**tags, **digests}
        version = _new_version(settings, model, logged, version_tags, description)
    damage = registry.damage(model, version.version)
    if damage:
        raise RegistryError(f"{model} version {version.version} is damaged: {damage}")
    if version.version not in registry.aliases(model).values():
        registry.set_stage(model, version.version, "Staging")
    return version


def _logged_model(
    settings: Settings,
    run_id: str,
    exported: ModelFile,
    files: Path,
    content: dict[str, Any],
) -> tuple[LoggedModel, dict[str, str]]:
    """Return the run's logged model and its digests; one that a killed try began is completed."""
    exported.write(files)
    digests = digest_tags(files)
    client = mlflow_client(settings)
    with translated("create logged model"):
        run = client.get_run(run_id)
        experiment_id = run.info.experiment_id
        of_run = f"source_run_id = '{run_id}'"
        models = client.search_logged_models([experiment_id], of_run)
        same = [model for model in models if digests.items() <= model.tags.items()]
        if same:
            logged = same[0]
        else:
            logged = client.create_logged_model(
                experiment_id, LOGGED_NAME, run_id, digests, run.data.params
            )
    if logged.status != LoggedModelStatus.READY:
        served = MODEL_FILES[exported.loader]
        extras = [str(file) for file in sorted(files.iterdir()) if file.name != served]
        _fill(client, run, logged, exported, {**content, "extra_files": extras})
    return logged, digests


def _conda_environment(requirements: Sequence[str]) -> dict[str, Any]:
    """Return the environment as MLflow writes it; MLflow warns if pip is not installed, as here."""
    python = f"python={platform.python_version()}"
    return {
        "name": "mlflow-env",
        "channels": ["conda-forge"],
        "dependencies": [python, "pip", {"pip": list(requirements)}],
    }


def _signature(
    input_example: pd.DataFrame, interface: ModelInterface | None
) -> ModelSignature:
    """Return the signature of the features, or that of a model that was trained elsewhere."""
    scores = pd.DataFrame({SCORE: np.array([0.5], np.float32)})
    if interface:
        return ModelSignature(inputs=_own_inputs(interface))
    with warnings.catch_warnings():
        # An integer column cannot be null: serving fills what is missing.
        warnings.simplefilter("ignore", UserWarning)
        return infer_signature(input_example, scores)


def _own_inputs(interface: ModelInterface) -> Schema:
    """Return the inputs of a model as its own signature has them."""
    columns = interface.columns
    if len(interface.tensors) > 1:
        kind = np.dtype(SIGNATURE_DTYPES[columns[0].kind])
        return Schema(
            [
                TensorSpec(kind, (-1, tensor.width), tensor.name)
                for tensor in interface.tensors
            ]
        )
    return Schema([ColSpec(column.kind, column.name) for column in columns])


def _fill(
    client: MlflowClient,
    run: Run,
    logged: LoggedModel,
    exported: ModelFile,
    content: dict[str, Any],
) -> None:
    """Complete a logged model; steps of a killed try are not done twice.

    `log_model` of the flavour would leave the begun model on the run's page, and `Model.log`
    refuses a model that is an output of the run already.
    """
    run_id = run.info.run_id
    model_id = logged.model_id
    output_ids = [output.model_id for output in run.outputs.model_outputs]
    # With the times of the run's metrics: MLflow does not store the same point twice.
    metrics = [
        Metric(
            point.key, point.value, point.timestamp, 0, model_id=model_id, run_id=run_id
        )
        for point in run.data.to_proto().metrics
    ]
    with translated("log model"):
        if model_id not in output_ids:
            client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])
        client.log_batch(run_id, metrics)
    with tempfile.TemporaryDirectory(prefix="gyre-register-") as name:
        folder = Path(name, LOGGED_NAME)
        _save(exported, folder, logged, content)
        with translated("log model artifacts"):
            client.log_model_artifacts(model_id, str(folder))
            client.finalize_logged_model(model_id, LoggedModelStatus.READY)


def _save(
    exported: ModelFile, folder: Path, logged: LoggedModel, content: dict[str, Any]
) -> None:
    """Write the files of an ordinary MLflow model of the flavour."""
    description = Model(
        logged.artifact_location,
        logged.source_run_id,
        model_uuid=logged.model_id,
        model_id=logged.model_id,
    )
    if exported.loader == "mlflow.pyfunc":
        _save_zipped(exported, folder, description, content["extra_files"])
        return
    options: dict[str, Any] = {}
    if exported.loader == "mlflow.onnx":
        model = onnx.load_model_from_string(exported.content)
        options = ONNX_OPTIONS
    else:
        model = exported.loaded.get_raw_model()
    if exported.loader == "mlflow.sklearn":
        options = {**exported.skops, "pyfunc_predict_fn": exported.method}
    flavor = import_module(exported.loader)
    with warnings.catch_warnings():
        # MLflow warns about type hints of its own modules.
        warnings.simplefilter("ignore", UserWarning)
        flavor.save_model(
            model, path=str(folder), mlflow_model=description, **options, **content
        )
    exported.write(folder)  # skops writes other bytes each time


def _save_zipped(
    exported: ModelFile, folder: Path, description: Model, extra_files: Sequence[str]
) -> None:
    """Write the files of a zipped model as they were, with the description of a new one."""
    unzip(exported.content, folder)
    original = Model.load(str(folder))
    description.flavors = original.flavors
    description.signature = original.signature
    description.save(str(folder / "MLmodel"))
    extra_folder = folder / "extra_files"
    extra_folder.mkdir(exist_ok=True)
    for file in extra_files:
        shutil.copy(file, extra_folder)
    exported.write(folder)


def _new_version(
    settings: Settings,
    model: str,
    logged: LoggedModel,
    tags: dict[str, str],
    description: str,
) -> Version:
    page = f"{settings.link('console')}/status/{model}"
    about = (
        f"Trained by `train_{model}`; alias `production` answers. [Is it well?]({page})"
    )
    client = mlflow_client(settings)
    mlflow_name = settings.mlflow_name(model)
    with suppress(RegistryError), translated("create registered model"):
        client.create_registered_model(mlflow_name, description=about)
    with translated("create model version"):
        version = client.create_model_version(
            mlflow_name,
            source=f"models:/{logged.model_id}",
            run_id=logged.source_run_id,
            model_id=logged.model_id,
            tags=packed(tags),
            description=cut(description, DESCRIPTION),
            await_creation_for=0,  # the SQL store has made it by the time it answers
        )
    return Version(model, str(version.version), str(logged.source_run_id), tags)
