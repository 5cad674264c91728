"""One module per dataset: its Feast objects, feature and label expressions."""

from importlib import import_module

from core.errors import DataError
from core.user_code import DATASETS, in_one_line
from feature_repo.definition import Dataset

__path__ = [str(DATASETS)]  # the project's modules, not those beside this file


def load_dataset(name: str) -> Dataset:
    """Return the `Dataset` that `feature_repo/datasets/<name>.py` defines.

    Raises:
        DataError: there is no such module, it cannot be imported, or it defines none of that name.

    """
    known = _names()
    if name not in known:
        raise DataError(f"no dataset {name!r}: feature_repo/datasets/ has {', '.join(known)}")
    try:
        module = import_module(f"feature_repo.datasets.{name}")
    except Exception as exc:  # whatever a person's module raises
        raise DataError(f"{in_one_line(exc)} (dataset {name!r} cannot be imported)") from exc
    for value in vars(module).values():
        if isinstance(value, Dataset) and value.name == name:
            return value
    raise DataError(f"feature_repo/datasets/{name}.py defines no Dataset(name={name!r})")


def dataset_of(view: str) -> Dataset | None:
    """Return the dataset that makes the rows of feature view `view`; None: they are not ours."""
    return next((each for each in load_datasets()[0] if view in each.views), None)


def load_datasets() -> tuple[list[Dataset], list[str]]:
    """Return every dataset, by name; and of each module that is none what is wrong with it."""
    datasets, broken = list[Dataset](), list[str]()
    for name in _names():
        try:
            datasets.append(load_dataset(name))
        except DataError as exc:
            broken.append(str(exc))
    return datasets, broken


def _names() -> list[str]:
    return sorted(p.stem for p in DATASETS.glob("*.py") if p.stem != "__init__")
