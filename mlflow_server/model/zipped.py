"""A model that nothing here converts: the folder that MLflow saved, as one file.

Opening it runs its code, and opens a pickle where it has one. So a process of its own opens it, and
only where the installation says so.
"""

import shutil
import warnings
from importlib import import_module
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any
from zipfile import ZipFile

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from core.errors import SettingsError
from core.settings import load_settings

RUNS_CODE = (
    "the model runs its own code while it is opened: convert it to ONNX (mlflow.onnx)"
)


def require_trust(problem: str) -> None:
    """Refuse to open what can run any code, unless the installation allows it.

    Raises:
        SettingsError: It does not; `problem` says what can run code, and another remedy.

    """
    if not load_settings().adopt_pickles:
        raise SettingsError(
            f"{problem}, or, if you trust it, set GYRE_ADOPT_PICKLES=true"
        )


def zipped(folder: Path) -> bytes:
    """Return the files of a folder as one file."""
    with TemporaryDirectory(prefix="gyre-zip-") as name:
        archive = shutil.make_archive(f"{name}/model", "zip", folder)
        return Path(archive).read_bytes()


def unzip(content: bytes, folder: Path) -> None:
    """Write the files of a zipped model into a folder."""
    with ZipFile(BytesIO(content)) as archive:
        archive.extractall(folder)


def pyfunc_module() -> ModuleType:
    """Return MLflow's pyfunc. It is heavy, and readers of the registry do without."""
    with warnings.catch_warnings():
        # MLflow warns about type hints of its own modules.
        warnings.simplefilter("ignore", UserWarning)
        return import_module("mlflow.pyfunc")


class ZippedModel:
    """A zipped model, opened in this process by MLflow's pyfunc.

    Raises:
        SettingsError: The installation opens no code of a model.

    """

    def __init__(self, content: bytes) -> None:
        require_trust(RUNS_CODE)
        with TemporaryDirectory(prefix="gyre-pyfunc-") as folder:
            unzip(content, Path(folder))
            self._model = pyfunc_module().load_model(folder)
        schema = self._model.metadata.get_input_schema()
        self._matrix_type: np.dtype[Any] | None = None
        self._types: dict[str, Any] = {}
        if schema.is_tensor_spec():
            self._matrix_type = schema.inputs[0].type
        else:
            self._types = {
                column.name: column.type.to_pandas() for column in schema.inputs
            }

    def predict(self, rows: pd.DataFrame) -> NDArray[np.float64]:
        """Return what the model answers for a frame with its inputs, in their order."""
        # MLflow takes no other type than that of the signature, not even a wider one.
        types = {name: kind for name, kind in self._types.items() if name in rows}
        inputs: Any = rows.astype(types)
        if self._matrix_type is not None:
            inputs = rows.to_numpy(self._matrix_type)
        return np.asarray(self._model.predict(inputs), np.float64)
