"""`gyre forget`: every row of one entity is erased, in every place.

The key is kept out first (feature_engine/ingest/forgotten.py). Each call repeats every step: the
next call erases what a killed one left.
"""

import re
import shutil

from core.errors import DataError, SettingsError
from core.locks import one_writer
from core.settings import Settings
from core.spec import broken_specs, load_specs
from core.user_code import in_one_line
from feature_engine.ingest.forgotten import forgotten, keep_out
from feature_repo.datasets import load_datasets
from operations.erase import ENTITY_PLACES
from operations.search import EntityKey, EntitySearch

OUT_OF_REACH = """out of reach:
  backups, and copies on other hosts (there for a week): forget again after a restore
  the source: rows of the key that it delivers are kept out from now on
  versions: models that learnt from the rows stay, with up to 20 rows of features without a key:
    train again
  topics of Kafka: those of GYRE_PREDICTIONS_TOPIC and GYRE_DECISIONS_TOPIC, with the rows that wait
    in serving/outbox of GYRE_HOME, and those that events come from, with their dead letters
  answers to requests that gave features and no key
  texts that may quote a value: logs of the programs and of Airflow, alerts, how runs ended, why
    the last rows of a dataset were stopped
  memory of serving: features of the last 300 s, for when Redis fails
  online values in another store than Redis (GYRE_ONLINE_STORE__TYPE): delete them by its means"""


def named_key(name: str, column: str, text: str) -> EntityKey:
    """Return the key of a model or a dataset.

    Args:
        name: Name of the model or the dataset.
        column: A column of its key.
        text: Value of the key.

    Raises:
        SettingsError: The model or dataset has no such key, as far as files can be read, or the
            key cannot have the value.

    """
    datasets, problems = load_datasets()
    problems += broken_specs()
    types = {}
    for dataset in datasets:
        column_type = dataset.schema.field(dataset.entity).type
        types[dataset.name, dataset.entity] = str(column_type)
    for spec in load_specs():
        for key_column, kind in spec.entity_key.items():
            types[spec.name, key_column] = kind
    if (name, column) not in types:
        expected = " or ".join(f"{owner} --{key} VALUE" for owner, key in types)
        option = f" --{column}" if column else ""
        unread = "".join(f"; could not be read: {line}" for line in problems)
        raise SettingsError(f"expected {expected}, found {name}{option}{unread}")
    if not text:
        raise SettingsError(f"--{column}: expected a value, found none")
    if types[name, column] != "int64":
        return EntityKey(column, text)
    # 007 is another customer's number, or a text.
    if not re.fullmatch("0|-?[1-9][0-9]*", text):
        expected = "expected a whole number without leading zeros"
        raise SettingsError(f"--{column}: {expected}, found {text!r}")
    return EntityKey(column, int(text))


def forget(
    settings: Settings, key: EntityKey, *, dry_run: bool = False
) -> dict[str, int]:
    """Erase every row of a key, in every place.

    Args:
        settings: Settings of the installation.
        key: Key of the entity.
        dry_run: Count rows, change nothing.

    Returns:
        Number of rows by place; empty if the key was forgotten before.

    Raises:
        DataError: No place ever had the key; or a place may still have it, such as a dataset that
            cannot be imported, while all others are erased; or maintenance or a backup goes on.
        RegistryError: MLflow or the ledger's database does not answer; nothing was changed.

    """
    search = EntitySearch(settings, key)
    rows = _counts(search)
    is_kept_out = forgotten(settings).has({key.column: key.value})
    if not (rows or search.problems or is_kept_out):
        raise DataError(f"no row has {key.column} {key.value}: nothing was changed")
    if dry_run:
        if search.problems:
            raise DataError(_unfinished_message("counted", search.problems, rows))
        return rows
    with one_writer(settings, "backup"), one_writer(settings, "maintain"):
        keep_out(settings, key.column, key.value)
        # A killed backup left it.
        shutil.rmtree(settings.home / "run" / ".backup.part", ignore_errors=True)
        search = EntitySearch(settings, key, erase=True)
        problems = search.problems
        for name, erase in ENTITY_PLACES.items():
            try:
                erase(search)
            except Exception as exc:  # noqa: BLE001  (whatever it is, the next places are erased)
                problems.append(f"{name}: {in_one_line(exc)}")
    rows_left = {} if problems else count_rows(settings, key)
    if problems or rows_left:
        raise DataError(_unfinished_message("forgotten", problems, rows_left))
    return rows


def _unfinished_message(done: str, problems: list[str], rows: dict[str, int]) -> str:
    """Return the message that rows or problems are left."""
    counts = [f"{name}: {count} rows" for name, count in rows.items()]
    lines = "; ".join(dict.fromkeys([*counts, *problems]))
    return (
        f"not {done} yet: {lines}: mend files that are named, check that serving and "
        "gyre consume run, then repeat gyre forget"
    )


def count_rows(settings: Settings, key: EntityKey) -> dict[str, int]:
    """Return the number of rows by place, of the places that have some."""
    return _counts(EntitySearch(settings, key))


def _counts(search: EntitySearch) -> dict[str, int]:
    counts = {name: count(search) for name, count in ENTITY_PLACES.items()}
    return {name: count for name, count in counts.items() if count}
