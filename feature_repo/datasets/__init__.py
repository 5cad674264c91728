"""The datasets: a module for each, with Feast's objects and the expressions of views and labels."""

import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import NamedTuple

import ibis

from core.errors import DataError
from core.user_code import DATASETS, in_one_line, makes_dataset
from feature_repo.definition import Dataset, raw_schema

__path__ = [str(DATASETS)]  # the project's modules, not the modules beside this file


def load_dataset(name: str) -> Dataset:
    """Return the `Dataset` that `feature_repo/datasets/<name>.py` defines.

    Raises:
        DataError: The module is missing, cannot be imported, or does not define the dataset.

    """
    if not (DATASETS / f"{name}.py").exists():
        names = ", ".join(_dataset_names())
        raise DataError(f"no dataset {name!r}: feature_repo/datasets/ has {names}")
    try:
        module = import_module(f"feature_repo.datasets.{name}")
    except Exception as exc:  # of any kind: it is the user's module
        raise DataError(
            f"{in_one_line(exc)} (dataset {name!r} cannot be imported)"
        ) from exc
    for value in vars(module).values():
        if isinstance(value, Dataset) and value.name == name:
            return value
    raise DataError(
        f"feature_repo/datasets/{name}.py defines no Dataset(name={name!r})"
    )


def dataset_of(view: str) -> Dataset | None:
    """Return the dataset that has the expression of a feature view; None for a view of plain Feast."""
    datasets, _ = load_datasets()
    return next((dataset for dataset in datasets if view in dataset.views), None)


def load_datasets() -> tuple[list[Dataset], list[str]]:
    """Return every dataset in the order of names, and messages: of broken modules, and of entities."""
    datasets = []
    problems = []
    for name in _dataset_names():
        try:
            datasets.append(load_dataset(name))
        except DataError as exc:
            problems.append(str(exc))
    problems += entity_problems(datasets).values()
    return datasets, problems


def entity_problems(datasets: Sequence[Dataset]) -> dict[str, str]:
    """Return a message for each dataset with a join key that has another type before.

    Args:
        datasets: All datasets, in the order of names.

    Returns:
        Messages by the name of the dataset.

    """
    problems = {}
    former_keys: list[JoinKey] = []
    for dataset in datasets:
        for key in _join_keys(dataset):
            problem = _type_conflict(key.column, key.type, former_keys)
            if problem:
                problems[dataset.name] = f"{dataset.name}: {problem}"
            former_keys.append(key)
    return problems


def entity_problem(entity: str, kind: str, datasets: Iterable[Dataset]) -> str | None:
    """Return the message that one of some datasets has a join key of this name and another type."""
    keys = [key for dataset in datasets for key in _join_keys(dataset)]
    return _type_conflict(entity, kind, keys)


class JoinKey(NamedTuple):
    """A column that tells the hashes of Redis apart.

    Attributes:
        column: Name of the column.
        type: Type of its values.
        place: The dataset, or the view, that has it.

    """

    column: str
    type: str
    place: str


def _type_conflict(column: str, kind: str, keys: Iterable[JoinKey]) -> str | None:
    """Return the message that one of some keys has this name and another type.

    Online, the features of entities of one name lie in one hash, whose keys have one type.
    """
    for key in keys:
        if key.column == column and key.type != kind:
            return (
                f"join key {column} is {kind} here and {key.type} in {key.place}: give the column "
                "another name in one of them, or make the types the same"
            )
    return None


def _join_keys(dataset: Dataset) -> list[JoinKey]:
    """Return the entity of a dataset, and the keys of its views that have further ones."""
    from feast import FeatureView  # noqa: PLC0415  (heavy)

    position = dataset.schema.get_field_index(dataset.entity)
    kind = "no column" if position < 0 else str(dataset.schema.field(position).type)
    keys = [JoinKey(dataset.entity, kind, dataset.name)]
    columns_by_entity = _columns_by_entity()
    module = sys.modules.get(f"{__name__}.{dataset.name}")
    for view in vars(module).values() if module else ():
        if not isinstance(view, FeatureView) or view.name not in dataset.views:
            continue
        columns = {columns_by_entity.get(entity, entity) for entity in view.entities}
        if columns == {dataset.entity}:
            continue
        types = _view_types(dataset, view.name)
        place = f"the view {view.name} of {dataset.name}"
        names = sorted(columns & types.keys())
        keys += [JoinKey(name, types[name], place) for name in names]
    return keys


def _columns_by_entity() -> dict[str, str]:
    """Return the join key of each entity: before `feast apply` a view knows their names alone."""
    from feast import Entity  # noqa: PLC0415  (heavy)

    columns = {}
    for name, module in list(sys.modules.items()):
        if name.startswith(f"{__name__}."):
            for value in vars(module).values():
                if isinstance(value, Entity):
                    columns[value.name] = value.join_key
    return columns


def _view_types(dataset: Dataset, view: str) -> dict[str, str]:
    """Return the types of a view's columns; none if its expression fails, which others report."""
    raw_rows = ibis.table(raw_schema(dataset), name="raw")
    try:
        schema = dataset.views[view](raw_rows).schema().to_pyarrow()
    except Exception:  # noqa: BLE001  (of any kind: it is the user's expression)
        return {}
    return {field.name: str(field.type) for field in schema}


def _dataset_names() -> list[str]:
    modules = DATASETS.glob("*.py")
    return sorted(module.stem for module in modules if makes_dataset(module))
