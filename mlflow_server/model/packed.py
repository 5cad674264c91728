"""A model of a library that Gyre does not convert: the folder that MLflow saved, packed into one file.

Opening it runs its code, and opens a pickle where it has one. So a process of its own opens it, and
only where the installation says so.
"""

import warnings
from importlib import import_module
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any
from zipfile import ZipFile, ZipInfo

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from core.errors import SettingsError
from core.settings import load_settings

CODE_REMEDY = (
    "runs its own code while it is opened: convert it to ONNX and log it by mlflow.onnx, or, if you "
    "trust it, set GYRE_ADOPT_PICKLES=true"
)


def packed(folder: Path) -> bytes:
    """Return the files of a folder as one file; the same files give the same bytes."""
    buffer = BytesIO()
    with ZipFile(buffer, "w") as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                # Without the time of the file.
                entry = ZipInfo(path.relative_to(folder).as_posix())
                archive.writestr(entry, path.read_bytes())
    return buffer.getvalue()


def unpack(content: bytes, folder: Path) -> None:
    """Write the files of a packed model into a folder."""
    with ZipFile(BytesIO(content)) as archive:
        archive.extractall(folder)


def pyfunc_module() -> ModuleType:
    """Return MLflow's pyfunc. It is heavy, and readers of the registry do without."""
    with warnings.catch_warnings():
        # MLflow warns about type hints of its own modules.
        warnings.simplefilter("ignore", UserWarning)
        return import_module("mlflow.pyfunc")


class PackedModel:
    """A packed model, opened in this process by MLflow's pyfunc.

    Raises:
        SettingsError: The installation opens no code of a model.

    """

    def __init__(self, content: bytes) -> None:
        if not load_settings().adopt_pickles:
            raise SettingsError(f"the model {CODE_REMEDY}")
        with TemporaryDirectory(prefix="gyre-pyfunc-") as folder:
            unpack(content, Path(folder))
            self._model = pyfunc_module().load_model(folder)
        self._inputs = self._model.metadata.get_input_schema()

    def predict(self, rows: pd.DataFrame) -> NDArray[np.float64]:
        """Return what the model answers for a frame with its inputs, in their order."""
        inputs: Any = rows
        if self._inputs.is_tensor_spec():
            inputs = rows.to_numpy(self._inputs.inputs[0].type)
        else:
            # MLflow takes no other type than that of the signature, not even a wider one.
            types = {
                column.name: column.type.to_pandas() for column in self._inputs.inputs
            }
            inputs = rows[[*types]].astype(
                {name: kind for name, kind in types.items() if kind != np.dtype(object)}
            )
        return np.asarray(self._model.predict(inputs), np.float64)
