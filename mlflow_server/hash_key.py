"""The key of hashes, in the database of the ledger: who has a file of hashes alone can try no value.

A value of few possible ones, such as a number of six digits, is found by hashing all of them. Without
the key nobody can.
"""

import hmac
from dataclasses import dataclass, field
from datetime import UTC, datetime
from secrets import token_bytes, token_hex

import sqlalchemy as sql

from mlflow_server.database import Store, lock_tables
from mlflow_server.tables import HASH_KEYS

SECRET_BYTES = 32


@dataclass(frozen=True)
class HashKey:
    """A random key.

    Attributes:
        id: Its name, by which a file says which key its hashes need. It tells nothing of the key.
        secret: Its bytes.

    """

    id: str
    secret: bytes = field(repr=False)

    def digest(self, content: str) -> str:
        """Return the HMAC-SHA-256 of a text, in hexadecimal."""
        return hmac.digest(self.secret, content.encode(), "sha256").hex()


class HashKeys(Store):
    """The keys of an installation: one, made when it is asked for first.

    Raises:
        RegistryError: The database does not answer.

    """

    subject = "hash keys"

    def named(self, key_id: str) -> HashKey | None:
        """Return the key of an id; None if the database does not have it."""
        query = sql.select(HASH_KEYS).filter_by(id=key_id)
        with self._begin() as connection:
            row = connection.execute(query).first()
        return HashKey(row.id, bytes.fromhex(row.secret)) if row else None

    def newest(self) -> HashKey:
        """Return the newest key; of two processes that ask first, one makes it."""
        query = sql.select(HASH_KEYS).order_by(HASH_KEYS.c.made_at.desc())
        with self._begin() as connection:
            lock_tables(connection, "gyre.hash_keys")
            row = connection.execute(query).first()
            if row:
                return HashKey(row.id, bytes.fromhex(row.secret))
            key = HashKey(token_hex(8), token_bytes(SECRET_BYTES))
            values = {
                "id": key.id,
                "secret": key.secret.hex(),
                "made_at": datetime.now(UTC).isoformat(),
            }
            connection.execute(sql.insert(HASH_KEYS).values(values))
        return key
