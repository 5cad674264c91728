"""One module per dataset: its Feast objects, feature and label expressions."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from feature_repo.definition import Dataset
from stack.errors import DataError


def load_dataset(name: str) -> Dataset:
    """Return the `Dataset` that `feature_repo/datasets/<name>.py` defines.

    Raises:
        DataError: there is no such module, or it defines none of that name.

    """
    known = _names()
    if name not in known:
        raise DataError(f"no dataset {name!r}: feature_repo/datasets/ has {', '.join(known)}")
    module = import_module(f"feature_repo.datasets.{name}")
    for value in vars(module).values():
        if isinstance(value, Dataset) and value.name == name:
            return value
    raise DataError(f"feature_repo/datasets/{name}.py defines no Dataset(name={name!r})")


def dataset_of(view: str) -> Dataset | None:
    """Return the dataset that makes the rows of feature view `view`; None: they are not ours."""
    return next((each for each in map(load_dataset, _names()) if view in each.views), None)


def _names() -> list[str]:
    return sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem != "__init__")
