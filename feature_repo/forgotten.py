"""Entities that were forgotten: a source may deliver them for ever, so they are kept out here.

`data/forgotten.json` has a salt and, for each key column, the salted hashes of its values: whoever
has a value can look it up, and nobody can read one.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from secrets import token_hex
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel
from upath import UPath

from core.files import read_file, replace_file
from core.locks import one_writer
from core.settings import Settings


@dataclass(frozen=True)
class Key:
    """A column and a value: the rows that have the value there are those of an entity."""

    column: str
    value: int | str

    @property
    def equals(self) -> str:
        """SQL: the column has the value."""
        return f'"{self.column}" = {literal(self.value)}'

    @property
    def pattern(self) -> str:
        """Regular expression of Python and of Rust: the column with the value, in JSON.

        The JSON may be a text in JSON itself.
        """
        value = str(self.value)
        texts = {json.dumps(value), json.dumps(value, ensure_ascii=False)}
        patterns = [re.escape(text[1:-1]) for text in sorted(texts)]
        any_text = "|".join(patterns).replace(r"\\", r"\\+")
        quote = r'\\*"' if isinstance(self.value, str) else ""
        return rf'\\*"{self.column}\\*": ?{quote}({any_text}){quote}\s*[,}}]'

    def in_json(self, column: str) -> str:
        """SQL: the JSON in another column has the value."""
        return f"regexp_like({column}, {literal(self.pattern)})"


class Forgotten(BaseModel):
    """The entities of `data/forgotten.json`."""

    salt: str
    keys: dict[str, set[str]]

    def digest(self, column: str, value: object) -> str:
        return hashlib.sha256(f"{self.salt} {column} {value}".encode()).hexdigest()

    def has(self, row: Mapping[str, Any]) -> bool:
        """Whether a row, or a part of it, is of one of them."""
        for column in self.keys.keys() & row.keys():
            if self.digest(column, row[column]) in self.keys[column]:
                return True
        return False

    def without(self, rows: pa.Table) -> pa.Table:
        """Return the rows that are of none of them."""
        for column in self.keys.keys() & set(rows.column_names):
            values = rows[column].unique()
            is_forgotten = [self.has({column: value}) for value in values.to_pylist()]
            remaining_values = values.filter(pc.invert(pa.array(is_forgotten, pa.bool_())))
            rows = rows.filter(pc.is_in(rows[column], remaining_values))
        return rows


def forgotten_file(settings: Settings) -> UPath:
    return settings.data / "forgotten.json"


def forgotten(settings: Settings) -> Forgotten:
    file = forgotten_file(settings)
    if not file.exists():
        return Forgotten(salt=token_hex(16), keys={})
    return Forgotten.model_validate_json(read_file(file))


def keep_out(settings: Settings, key: Key) -> None:
    """Let no row of the key in from now on, neither of the source nor of events."""
    with one_writer(settings, "forgotten"):
        entities = forgotten(settings)
        digest = entities.digest(key.column, key.value)
        entities.keys.setdefault(key.column, set()).add(digest)
        replace_file(forgotten_file(settings), entities.model_dump_json(indent=1))


def literal(value: int | str) -> str:
    """Return a value as SQL."""
    if isinstance(value, int):
        return str(value)
    text = value.replace("'", "''")
    return f"'{text}'"
