"""The model file of a version: ONNX, or a data format of its library that pyfunc loads.

The MLmodel file of a version is not read: it could name any loader, class or code. Another one is
made here from the version's `serving.json` and from the types that the project's spec trusts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from core.errors import RegistryError, TrainingError
from core.user_code import in_one_line
from mlflow_server.api.registry import Registry, Version
from mlflow_server.foreign_graph import scores_of, typed
from mlflow_server.manifest import (
    CONTRACT_FILE,
    MODEL_FILES,
    Loader,
    ModelInterface,
    ModelManifest,
    wrong_files,
)
from mlflow_server.model.zipped import ZippedModel, pyfunc_module

BOOSTERS = {"xgboost": "xgboost.core.Booster", "lightgbm": "lightgbm.basic.Booster"}
TRUSTED = ("numpy.dtype", "skl2onnx.sklapi.cast_transformer.CastTransformer")
"""Types of the step `columns`, which Gyre adds, that skops does not know."""


@dataclass(frozen=True)
class ModelFile:
    """The bytes of a model, which `loaded` parses.

    Attributes:
        content: Bytes of the file.
        loader: MLflow's module that loads it.
        classes: Number of classes; 0 if the model predicts numbers.
        trusted: Types that skops may make beside those it knows.
        interface: How it is asked, if it was trained elsewhere.

    """

    content: bytes
    loader: Loader = "mlflow.onnx"
    classes: int = 2
    trusted: tuple[str, ...] = ()
    interface: ModelInterface | None = None

    @classmethod
    def native(cls, fitted: Any, trusted: tuple[str, ...], classes: int) -> Self:
        """Return the file of a fitted model, in the format of its library or of skops.

        Raises:
            TrainingError: No format takes it, or skops needs types that are not trusted.

        """
        library = type(fitted).__module__.partition(".")[0]
        if library == "xgboost":
            content = bytes(fitted.get_booster().save_raw("ubj"))
            return cls(content, "mlflow.xgboost", classes)
        if library == "lightgbm":
            content = fitted.booster_.model_to_string().encode()
            return cls(content, "mlflow.lightgbm", classes)
        import skops.io  # noqa: PLC0415  (with scikit-learn: readers of the registry do without)

        try:
            content = skops.io.dumps(fitted)
        except Exception as exc:
            problem = f"no data format for {type(fitted).__name__}"
            raise TrainingError(f"{problem}: {in_one_line(exc)}") from exc
        unknown_types = set(skops.io.get_untrusted_types(data=content))
        missing_types = sorted(unknown_types.difference(TRUSTED, trusted))
        if missing_types:
            raise TrainingError(
                "skops does not know all of its types: if you trust them, add to [serving]: "
                f"trusted_types = {missing_types}"
            )
        return cls(content, "mlflow.sklearn", classes, trusted)

    def write(self, folder: Path) -> Loader:
        (folder / MODEL_FILES[self.loader]).write_bytes(self.content)
        return self.loader

    @property
    def method(self) -> str:
        """Method of the fitted model that pyfunc's `predict` calls."""
        has_probabilities = self.classes and self.loader == "mlflow.sklearn"
        return "predict_proba" if has_probabilities else "predict"

    @property
    def skops(self) -> dict[str, Any]:
        types = [*TRUSTED, *self.trusted]
        return {"serialization_format": "skops", "skops_trusted_types": types}

    @cached_property
    def loaded(self) -> Any:
        if self.loader == "mlflow.pyfunc":
            return ZippedModel(self.content)
        pyfunc = pyfunc_module()
        from mlflow.models import Model  # noqa: PLC0415

        model = Model()
        flavor = self.loader.partition(".")[2]
        file = MODEL_FILES[self.loader]
        model_class = BOOSTERS.get(flavor)
        if self.interface and self.interface.model_class:
            model_class = self.interface.model_class
        model.add_flavor(flavor, data=file, model_class=model_class, **self.skops)
        pyfunc.add_to_model(
            model,
            loader_module=self.loader,
            model_path=file,
            predict_fn=self.method,
        )
        with TemporaryDirectory(prefix="gyre-pyfunc-") as folder:
            self.write(Path(folder))
            model.save(str(Path(folder, "MLmodel")))
            return pyfunc.load_model(folder)

    def run(
        self, _outputs: Sequence[str], columns: Mapping[str, Any]
    ) -> list[NDArray[np.float64]]:
        """Return scores of the rows in `columns`, [N] or [N, K], as a session of ONNX Runtime does."""
        rows = pd.DataFrame(dict(columns))
        positions: tuple[int, ...] = ()
        if self.interface:
            rows = frame_of(self.interface, rows)
            positions = self.interface.positions
        # The last column of two probabilities is that of class 1.
        return [scores_of(self._answer(rows), positions, self.classes)]

    def _answer(self, rows: pd.DataFrame) -> Any:
        """Return what the model says of a frame: of a classifier probabilities."""
        has_own_class = self.interface is not None and self.interface.model_class
        if self.classes and has_own_class:
            raw = self.loaded.get_raw_model()
            if hasattr(raw, "predict_proba"):
                return raw.predict_proba(rows)
        return self.loaded.predict(rows)


def frame_of(interface: ModelInterface, rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows of features as the signature of a model has them."""
    return pd.DataFrame(
        {
            column.name: typed(rows[column.name].to_numpy(), column.kind)
            for column in interface.columns
        }
    )


def read_version(
    registry: Registry, version: Version, trusted: tuple[str, ...] = ()
) -> tuple[ModelManifest, ModelFile]:
    """Return manifest and model of a version, as registered.

    Args:
        registry: MLflow's registry.
        version: The version to read.
        trusted: Types that the project's spec trusts; only scoring needs them.

    Raises:
        RegistryError: MLflow does not answer, or the files differ from the registered.

    """
    with TemporaryDirectory(prefix="gyre-") as name:
        folder = Path(name)
        registry.download(version, folder)
        damage = wrong_files(folder, version.tags)
        if damage:
            text = f"version {version.version} of {version.model} is damaged: {damage}"
            raise RegistryError(text)
        return read_files(folder, trusted)


def read_files(
    folder: Path, trusted: tuple[str, ...]
) -> tuple[ModelManifest, ModelFile]:
    """Return manifest and model from the files in a folder, which are not checked."""
    text = (folder / CONTRACT_FILE).read_bytes()
    contract = ModelManifest.model_validate_json(text)
    content = (folder / contract.file).read_bytes()
    model = ModelFile(
        content=content,
        loader=contract.loader,
        classes=contract.class_count,
        trusted=trusted,
        interface=contract.interface,
    )
    return contract, model
