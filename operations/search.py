"""A search for the rows of one entity."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cached_property

import pyarrow as pa
from sqlglot import column, exp

from core.errors import DataError
from core.settings import Settings
from core.spec import ModelSpec, broken_specs, load_specs
from core.user_code import DATASETS
from feature_engine.ingest.key_values import json_text_pattern
from feature_engine.ingest.quarantine import quarantine_table
from feature_engine.offline.raw import raw_table
from feature_repo.datasets import load_datasets
from feature_repo.definition import Dataset
from feature_repo.published.store import open_store

DAY = timedelta(days=1)


@dataclass(frozen=True)
class EntityKey:
    """A column and a value: a row that has the value in the column is of the entity."""

    column: str
    value: int | str

    @property
    def equals(self) -> str:
        """SQL condition: the column, of numbers or texts, has the value."""
        text = exp.cast(column(self.column, quoted=True), "varchar")
        return text.eq(str(self.value)).sql()

    @property
    def pattern(self) -> str:
        """Regular expression, for Python and Rust, of the column with the value in JSON.

        The JSON may be a text within JSON.
        """
        quote = r'\\*"' if isinstance(self.value, str) else ""
        value = json_text_pattern(str(self.value))
        return (
            rf'\\*"{json_text_pattern(self.column)}\\*": ?{quote}{value}{quote}\s*[,}}]'
        )

    def in_json(self, column: str) -> str:
        """SQL condition: JSON in another column has the key's column with the value."""
        return f"regexp_like({column}, {exp.convert(self.pattern).sql()})"


@dataclass(frozen=True)
class EntitySearch:
    """A search for the rows of one entity.

    Attributes:
        settings: Settings of the installation.
        key: Key of the entity.
        erase: Whether rows are erased; without it they are counted alone.
        problems: Places that may keep rows, each with the reason.

    """

    settings: Settings
    key: EntityKey
    erase: bool = False
    problems: list[str] = field(default_factory=list)

    @cached_property
    def datasets(self) -> list[Dataset]:
        """Datasets that have the key's column; one that cannot be imported is known by its tables."""
        datasets, broken_modules = load_datasets()
        names = {dataset.name for dataset in datasets}
        for module in sorted(DATASETS.glob("*.py")):
            if module.stem not in names:
                try:
                    datasets += self._broken_dataset(module.stem, datasets)
                except DataError as exc:  # its table is damaged
                    self.problems.append(str(exc))
        datasets = [data for data in datasets if self.key.column in data.schema.names]
        if any(not dataset.key for dataset in datasets):
            self.problems.extend(broken_modules)
        self.problems.extend(broken_specs())
        return datasets

    def _broken_dataset(self, name: str, datasets: Sequence[Dataset]) -> list[Dataset]:
        """Return a dataset, without a key, for the tables of a module that cannot be imported.

        It has every view that no other dataset has. Without tables no dataset is returned.
        """
        column_type = pa.int64() if isinstance(self.key.value, int) else pa.string()
        schema = pa.schema([(self.key.column, column_type)])
        dataset = Dataset(
            name=name,
            schema=schema,
            key=(),
            event_time="",
            entity=self.key.column,
            look_back=DAY,
            silence=DAY,
            views={},
            labels={},
        )
        raw = raw_table(self.settings, dataset)
        if raw.exists:
            columns = [c for c in raw.stored_schema() if c.name == self.key.column]
            dataset = replace(dataset, schema=pa.schema(columns))
        elif not quarantine_table(self.settings, dataset).exists:
            return []
        explained_views = {view for data in datasets for view in data.views}
        views = open_store(self.settings).list_feature_views()
        other_names = {view.name for view in views} - explained_views
        return [replace(dataset, views=dict.fromkeys(other_names, lambda rows: rows))]

    def key_in(self, dataset: Dataset) -> EntityKey:
        """Return the key with its value in the type of a dataset's column."""
        text = str(self.key.value)
        column_type = dataset.schema.field(self.key.column).type
        is_number = pa.types.is_integer(column_type) and text.lstrip("-").isdecimal()
        return EntityKey(self.key.column, int(text) if is_number else text)

    @cached_property
    def specs(self) -> list[ModelSpec]:
        """Models that have the key."""
        return [spec for spec in load_specs() if self.key.column in spec.entity_key]
