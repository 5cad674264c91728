"""Forgotten entities: a source may deliver them for ever, so they are kept out here.

`data/forgotten.json` has, for each key column, a keyed hash (HMAC) of each value. The key is in the
database of the ledger. Who has the file alone can try no value. Who has both, such as the owner of
the home or of a backup, can: a number of six digits is found within seconds.

Files of older releases have salted hashes, which anybody can try. They become keyed ones when the
file is read first, without their values: what is keyed is the salted hash.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from secrets import token_hex
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, TypeAdapter
from upath import UPath

from core.errors import RegistryError
from core.files import read_if_present, replace_file
from core.locks import one_writer
from core.settings import Settings
from mlflow_server.hash_key import HashKey, HashKeys

LOCK = "forgotten"


class KeyedHashes(BaseModel):
    """The content of the file.

    Attributes:
        key: Id of the key.
        salt: Text that each value is hashed with, before the key is used.
        hashes: Keyed hashes by column.

    """

    key: str
    salt: str
    hashes: dict[str, set[str]]


class SaltedHashes(BaseModel):
    """The content of a file of an older release; a release as old refuses `KeyedHashes`."""

    salt: str
    keys: dict[str, set[str]]

    def keyed(self, key: HashKey) -> KeyedHashes:
        hashes = {
            column: {key.digest(salted_hash) for salted_hash in salted_hashes}
            for column, salted_hashes in self.keys.items()
        }
        return KeyedHashes(key=key.id, salt=self.salt, hashes=hashes)


CONTENT: TypeAdapter[KeyedHashes | SaltedHashes] = TypeAdapter(
    KeyedHashes | SaltedHashes
)


@dataclass(frozen=True)
class Forgotten:
    """The forgotten entities, with the key of their hashes."""

    content: KeyedHashes
    key: HashKey

    def digest(self, column: str, value: object) -> str:
        text = f"{self.content.salt} {column} {value}"
        return self.key.digest(hashlib.sha256(text.encode()).hexdigest())

    def has(self, row: Mapping[str, Any]) -> bool:
        """Whether a row, or a part of it, belongs to a forgotten entity."""
        return any(
            self.digest(column, row[column]) in digests
            for column, digests in self.content.hashes.items()
            if column in row
        )

    def without(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Return the rows that belong to no forgotten entity."""
        for column in self.content.hashes.keys() & set(rows.schema.names):
            values = rows[column].unique()
            is_kept = [not self.has({column: value}) for value in values.to_pylist()]
            kept_values = values.filter(pa.array(is_kept, pa.bool_()))
            rows = rows.filter(pc.is_in(rows[column], kept_values))
        return rows


NOBODY = Forgotten(KeyedHashes(key="", salt="", hashes={}), HashKey("", b""))


def forgotten_file(settings: Settings) -> UPath:
    return settings.data / "forgotten.json"


class ForgottenFile:
    """The file of an installation. It keeps the key, so that the database is asked once."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._path = forgotten_file(settings)
        self._key: HashKey | None = None

    def read(self) -> Forgotten:
        """Return the forgotten entities.

        Raises:
            RegistryError: The database does not answer, or does not have the key of the file.

        """
        content = self._content()
        if content is None:
            return NOBODY
        if isinstance(content, SaltedHashes):
            with one_writer(self._settings, LOCK):
                return self._keyed()
        return Forgotten(content, self._key_of(content))

    def keep_out(self, column: str, value: object) -> None:
        """Let no row with the value in from now on, neither of the source nor of events.

        Raises:
            RegistryError: See `read`.

        """
        with one_writer(self._settings, LOCK):
            entities = self._keyed()
            hashes = entities.content.hashes
            hashes.setdefault(column, set()).add(entities.digest(column, value))
            self._write(entities.content)

    def _keyed(self) -> Forgotten:
        """Return the content with keyed hashes; a file of an older release is written anew."""
        content = self._content()
        if isinstance(content, KeyedHashes):
            return Forgotten(content, self._key_of(content))
        salted_hashes = content or SaltedHashes(salt=token_hex(16), keys={})
        with HashKeys(self._settings) as keys:
            self._key = keys.newest()
        entities = Forgotten(salted_hashes.keyed(self._key), self._key)
        if content:
            self._write(entities.content)
        return entities

    def _content(self) -> KeyedHashes | SaltedHashes | None:
        text = read_if_present(self._path)
        return None if text is None else CONTENT.validate_json(text)

    def _write(self, content: KeyedHashes) -> None:
        replace_file(self._path, content.model_dump_json(indent=1), mode=0o600)

    def _key_of(self, content: KeyedHashes) -> HashKey:
        if self._key is None or self._key.id != content.key:
            with HashKeys(self._settings) as keys:
                self._key = keys.named(content.key)
        if self._key is None:
            raise RegistryError(
                f"{self._path}: its hashes need the key {content.key}, which the table hash_keys of "
                "the ledger's database does not have, so that forgotten entities cannot be kept "
                "out: name the database that has it (GYRE_LEDGER_URL, GYRE_DATABASE_URL), restore "
                "ledger.db of a backup, or remove the file and repeat each gyre forget"
            )
        return self._key


def forgotten(settings: Settings) -> Forgotten:
    """Return the forgotten entities of an installation: see `ForgottenFile.read`."""
    return ForgottenFile(settings).read()


def keep_out(settings: Settings, column: str, value: object) -> None:
    """Let no row with the value in from now on: see `ForgottenFile.keep_out`."""
    ForgottenFile(settings).keep_out(column, value)
