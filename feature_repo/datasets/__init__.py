"""The datasets: a module for each, with Feast's objects and the expressions of views and labels."""

from collections.abc import Iterable, Sequence
from importlib import import_module

from core.errors import DataError
from core.user_code import DATASETS, in_one_line, makes_dataset
from feature_repo.definition import Dataset

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
    """Return a message for each dataset whose entity has another type in an earlier one.

    Args:
        datasets: All datasets, in the order of names.

    Returns:
        Messages by the name of the dataset.

    """
    problems = {}
    for number, dataset in enumerate(datasets):
        kind = _entity_type(dataset)
        problem = entity_problem(dataset.entity, kind, datasets[:number])
        if problem:
            problems[dataset.name] = f"{dataset.name}: {problem}"
    return problems


def entity_problem(entity: str, kind: str, datasets: Iterable[Dataset]) -> str | None:
    """Return the message that one of some datasets has an entity of this name and another type.

    Online, the features of entities of one name lie in one hash, whose keys have one type.
    """
    for dataset in datasets:
        other_kind = _entity_type(dataset)
        if dataset.entity == entity and other_kind != kind:
            return (
                f"entity {entity} is {kind} here and {other_kind} in {dataset.name}: give the column "
                "another name in one of them, or make the types the same"
            )
    return None


def _entity_type(dataset: Dataset) -> str:
    position = dataset.schema.get_field_index(dataset.entity)
    return "no column" if position < 0 else str(dataset.schema.field(position).type)


def _dataset_names() -> list[str]:
    modules = DATASETS.glob("*.py")
    return sorted(module.stem for module in modules if makes_dataset(module))
