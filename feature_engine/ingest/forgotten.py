"""Forgotten entities: a source may deliver them for ever, so they are kept out here.

`data/forgotten.json` has a salt and, for each key column, the salted hashes of its values. It holds no
value, but whoever can read it can try values: a number of six digits is found within seconds. So only
its owner can read it, or who can read the bucket.
"""

import hashlib
from collections.abc import Mapping
from secrets import token_hex
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel
from upath import UPath

from core.files import read_if_present, replace_file
from core.locks import one_writer
from core.settings import Settings


class Forgotten(BaseModel):
    """The entities of `data/forgotten.json`."""

    salt: str
    keys: dict[str, set[str]]

    def digest(self, column: str, value: object) -> str:
        text = f"{self.salt} {column} {value}"
        return hashlib.sha256(text.encode()).hexdigest()

    def has(self, row: Mapping[str, Any]) -> bool:
        """Whether a row, or a part of it, belongs to a forgotten entity."""
        return any(
            self.digest(column, row[column]) in digests
            for column, digests in self.keys.items()
            if column in row
        )

    def without(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Return the rows that belong to no forgotten entity."""
        for column in self.keys.keys() & set(rows.schema.names):
            values = rows[column].unique()
            is_kept = [not self.has({column: value}) for value in values.to_pylist()]
            kept_values = values.filter(pa.array(is_kept, pa.bool_()))
            rows = rows.filter(pc.is_in(rows[column], kept_values))
        return rows


def forgotten_file(settings: Settings) -> UPath:
    return settings.data / "forgotten.json"


def forgotten(settings: Settings) -> Forgotten:
    content = read_if_present(forgotten_file(settings))
    if content is None:
        return Forgotten(salt=token_hex(16), keys={})
    return Forgotten.model_validate_json(content)


def keep_out(settings: Settings, column: str, value: object) -> None:
    """Let no row with the value in from now on, neither of the source nor of events."""
    with one_writer(settings, "forgotten"):
        entities = forgotten(settings)
        entities.keys.setdefault(column, set()).add(entities.digest(column, value))
        replace_file(
            forgotten_file(settings), entities.model_dump_json(indent=1), mode=0o600
        )
