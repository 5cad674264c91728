"""A trained model becomes a version: once per run, whatever was killed on the way."""

import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import onnx
import pandas as pd
from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, Schema

from core.errors import RegistryError
from core.settings import Settings
from mlflow_server.connection import EXISTS, client, translated
from mlflow_server.pyfunc import ModelFile
from mlflow_server.registry import Registry, Version
from mlflow_server.served_model import (
    CONTRACT_FILE,
    SCORE,
    digest_tags,
    served_files,
    wrong_files,
)
from mlflow_server.version_tags import packed

COLUMN_TYPES = {"int64": "long", "float64": "double", "object": "string"}
NAME = "model"
ONNX: dict[str, Any] = {
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
    extra_files: Path,
    input_example: pd.DataFrame,
    tags: Mapping[str, str],
    description: str,
    requirements: Sequence[str],
) -> Version:
    """Log the model into the run and make the run's one version of `model`, stage Staging.

    extra_files: a folder with `serving.json` and whatever else belongs to the version.

    Raises:
        RegistryError: MLflow does not answer, refuses, or returns other bytes than it was given.

    """
    registry = Registry(settings)
    if done := next(
        (each for each in registry.versions(model) if each.run_id == run_id), None
    ):
        # Killed before the stage.
        if done.version not in registry.aliases(model).values():
            registry.set_stage(model, done.version, "Staging")
        return done
    columns = [
        ColSpec(COLUMN_TYPES[str(t)], name) for name, t in input_example.dtypes.items()
    ]
    content: dict[str, Any] = {
        "pip_requirements": list(requirements),
        "input_example": input_example,
        "signature": ModelSignature(Schema(columns), Schema([ColSpec("float", SCORE)])),
        "extra_files": [str(path) for path in sorted(extra_files.iterdir())],
    }
    logged, digests = _logged(
        settings, run_id, exported, extra_files / CONTRACT_FILE, content
    )
    return _new_version(
        settings, model, run_id, logged.model_id, {**tags, **digests}, description
    )


def _new_version(
    settings: Settings,
    model: str,
    run_id: str,
    model_id: str,
    tags: dict[str, str],
    description: str,
) -> Version:
    api, page = client(settings), f"{settings.link('console')}/status/{model}"
    about = (
        f"Trained by `train_{model}`; alias `production` answers. [Is it well?]({page})"
    )
    with translated(f"new model {model}", unless=EXISTS):
        api.create_registered_model(model, description=about)
    with translated(f"new version of {model}"):
        made = api.create_model_version(
            model,
            source=f"models:/{model_id}",
            run_id=run_id,
            model_id=model_id,
            tags=packed(tags),
            description=description,
            await_creation_for=0,  # the SQL store has made it by the time it answers
        )
    Registry(settings).set_stage(model, str(made.version), "Staging")
    return Version(model, str(made.version), run_id, tags)


def _logged(
    settings: Settings,
    run_id: str,
    exported: ModelFile,
    contract: Path,
    content: dict[str, Any],
) -> tuple[Any, dict[str, str]]:
    """Return the run's model and its digests, read back; what a killed try began is finished."""
    api = client(settings)
    with tempfile.TemporaryDirectory(prefix="gyre-register-") as name:
        exported.write(Path(name))
        shutil.copy(contract, name)
        digests = digest_tags(Path(name))
        with translated(f"log the model into run {run_id}"):
            run = api.get_run(run_id)
            place, source = run.info.experiment_id, f"source_run_id = '{run_id}'"
            models = api.search_logged_models([place], source)
            logged = next(
                (each for each in models if digests.items() <= each.tags.items()), None
            )
            if logged is None:
                logged = api.create_logged_model(
                    place, NAME, run_id, digests, run.data.params
                )
            if logged.status != LoggedModelStatus.READY:
                _fill(api, run, logged, exported, content)
        back, places = Path(name, "back"), served_files(digests).values()
        what = f"model of run {run_id}"
        Registry(settings).download_from(logged.artifact_location, back, what, places)
        if wrong := wrong_files(back, digests):
            raise RegistryError(f"run {run_id}: MLflow returned other bytes: {wrong}")
        return logged, digests


def _fill(
    api: Any, run: Any, logged: Any, exported: ModelFile, content: dict[str, Any]
) -> None:
    """Make of it an ordinary MLflow model of its flavour; what a killed try did is done.

    `log_model` of the flavour would begin another and leave the dead one on the run's page.
    """
    run_id = logged.source_run_id
    named = {"model_id": logged.model_id, "run_id": run_id}
    if logged.model_id not in {output.model_id for output in run.outputs.model_outputs}:
        api.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    # With their times, so that a second try writes the same; `run.data.metrics` has values alone.
    points = run.data.to_proto().metrics
    api.log_batch(
        run_id, [Metric(m.key, m.value, m.timestamp, 0, **named) for m in points]
    )
    model = Model(logged.artifact_location, model_uuid=logged.model_id, **named)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as name:
        # About type hints of MLflow's own modules.
        warnings.simplefilter("ignore", UserWarning)
        _save(exported, Path(name, NAME), content | {"mlflow_model": model})
        api.log_model_artifacts(logged.model_id, f"{name}/{NAME}")
    api.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)


def _save(exported: ModelFile, path: Path, content: dict[str, Any]) -> None:
    how: dict[str, Any] = {}
    if exported.loader == "mlflow.onnx":
        model, how = onnx.load_model_from_string(exported.content), ONNX
    else:
        model = exported.loaded.get_raw_model()
    if exported.loader == "mlflow.sklearn":
        how = exported.skops | {"pyfunc_predict_fn": exported.method}
    import_module(exported.loader).save_model(model, path=str(path), **how, **content)
    exported.write(path)  # skops writes other bytes each time
