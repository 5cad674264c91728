"""Adoptions whose processes are those of the preloaded python."""

import multiprocessing
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from core.project import CLONE
from mlflow_server.manifest import MODEL_FILES
from mlflow_server.model.pyfunc import ModelFile
from tests.support.tools.preloaded import commands_folder
from training.adopt import adopt
from training.model.foreign import REQUESTS, RESULTS, Request
from training.model.original import class_count


def take(settings, spec, source, key=None):
    """Adopt a model; the key of the run is its address, or another."""
    multiprocessing.set_executable(sys.executable)  # its children inherit open files
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(commands_folder() / "python"))
        return adopt(
            settings,
            spec,
            source,
            datetime.now(UTC),
            key=key or source,
            reason="r",
            who="t",
        )


def converted(settings, spec, source, rows, folder):
    """Make the served form of a model as an adoption does, and prove it on rows of the features.

    Returns:
        The result, and the served model; None if there is an error.

    """
    address = settings.mlflow_address if settings else ""
    request = Request(source=str(source), address=address, spec=spec)
    (folder / "request.json").write_bytes(REQUESTS.dump_json(request))
    rows.to_parquet(folder / "frame.parquet")
    command = [commands_folder() / "python", "-m", "training.model.foreign", folder]
    subprocess.run(command, cwd=CLONE, check=True, capture_output=True)
    result = RESULTS.validate_json((folder / "result.json").read_bytes())
    if result.error:
        return result, None
    content = (folder / MODEL_FILES[result.loader]).read_bytes()
    model = ModelFile(
        content=content,
        loader=result.loader,
        classes=class_count(spec),
        trusted=spec.serving.trusted_types,
        interface=result.interface,
    )
    return result, model
