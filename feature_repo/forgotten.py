"""Entities that were forgotten: a source may deliver them for ever, so they are kept out here.

`data/forgotten.json` has a salt, and by key column the salted hashes of its values: whoever has a
value can ask for it, and nobody can read one.
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
    """Whose rows are meant: those with `value` in a column of this name."""

    column: str
    value: int | str

    @property
    def equals(self) -> str:
        """SQL: the column has the value."""
        return f'"{self.column}" = {literal(self.value)}'

    @property
    def texts(self) -> str:
        """Regular expression, of Python and of Rust: the value in JSON, or in JSON in JSON."""
        value = str(self.value)
        texts = {json.dumps(value, ensure_ascii=each)[1:-1] for each in (False, True)}
        return "|".join(re.escape(each).replace(r"\\", r"\\+") for each in sorted(texts))

    @property
    def pattern(self) -> str:
        """The same of the column with this value."""
        quote = r'\\*"' * isinstance(self.value, str)
        return rf'\\*"{self.column}\\*": ?{quote}({self.texts}){quote}\s*[,}}]'

    def in_json(self, column: str) -> str:
        """SQL: the JSON in another column has the value."""
        return f"regexp_like({column}, {literal(self.pattern)})"


class Forgotten(BaseModel):
    salt: str
    keys: dict[str, set[str]]

    def digest(self, column: str, value: object) -> str:
        return hashlib.sha256(f"{self.salt} {column} {value}".encode()).hexdigest()

    def has(self, row: Mapping[str, Any]) -> bool:
        """Whether a row, or a part of it, is of one of them."""
        keys = self.keys.items()
        return any(name in row and self.digest(name, row[name]) in known for name, known in keys)

    def others(self, rows: pa.Table) -> pa.Table:
        for name in self.keys.keys() & {*rows.column_names}:
            values = rows[name].unique().to_pylist()
            gone = pa.array([each for each in values if self.has({name: each})], rows[name].type)
            rows = rows.filter(pc.invert(pc.is_in(rows[name], gone)))
        return rows


def forgotten_file(settings: Settings) -> UPath:
    return settings.data / "forgotten.json"


def forgotten(settings: Settings) -> Forgotten:
    if not (file := forgotten_file(settings)).exists():
        return Forgotten(salt=token_hex(16), keys={})
    return Forgotten.model_validate_json(read_file(file))


def keep_out(settings: Settings, key: Key) -> None:
    """Let no row of the key in from now on, neither of the source nor of events."""
    with one_writer(settings, "forgotten"):
        known = forgotten(settings)
        known.keys.setdefault(key.column, set()).add(known.digest(key.column, key.value))
        replace_file(forgotten_file(settings), known.model_dump_json(indent=1))


def literal(value: int | str) -> str:
    return str(value) if isinstance(value, int) else "'" + value.replace("'", "''") + "'"
