"""Forgotten entities are kept out, and who has their file alone finds none of them."""

import hashlib
import hmac
import json
from contextlib import closing
from itertools import product

import pytest
from pydantic import ValidationError

from core.errors import RegistryError
from feature_engine.ingest.forgotten import (
    SaltedHashes,
    forgotten,
    forgotten_file,
    keep_out,
)
from mlflow_server.hash_key import HashKeys
from tests.conftest import AS_OF, new_settings
from tests.support.feature_engine.installation import Events
from tests.support.feature_engine.shop import DAY, HOUR, ORDERS, order, shop  # noqa: F401  (a fixture)

COLUMN = "customer_id"
ID = 271_828
NEARBY = range(ID - 500, ID + 500)


@pytest.fixture
def settings(tmp_path):
    return new_settings(tmp_path / "home")


def salted_hash(salt, number):
    """Return the hash of the releases before."""
    return hashlib.sha256(f"{salt} {COLUMN} {number}".encode()).hexdigest()


def write_salted_hashes(settings, *numbers):
    """Write the file as the releases before did."""
    hashes = [salted_hash("5a17", number) for number in numbers]
    forgotten_file(settings).parent.mkdir(parents=True, exist_ok=True)
    content = {"salt": "5a17", "keys": {COLUMN: hashes}}
    forgotten_file(settings).write_text(json.dumps(content))


def texts_of(content):
    """Return all texts of a JSON value."""
    if isinstance(content, dict):
        content = [*content, *content.values()]
    if isinstance(content, list):
        return [text for part in content for text in texts_of(part)]
    return [str(content)]


def numbers_found(settings, *secrets):
    """Return the numbers that are found by trying: by each text of the file, and by secrets."""
    texts = texts_of(json.loads(forgotten_file(settings).read_text()))
    keys = [secret for text in [*texts, *secrets] for secret in bytes_of(text)]
    numbers = set()
    for number, salt in product(NEARBY, texts):
        plain = salted_hash(salt, number)
        hashes = {plain, hashlib.sha256(str(number).encode()).hexdigest()}
        for key in keys:
            for text in (plain, str(number)):
                hashes.add(hmac.new(key, text.encode(), "sha256").hexdigest())
        if not hashes.isdisjoint(texts):
            numbers.add(number)
    return numbers


def bytes_of(text):
    try:
        return [text.encode(), bytes.fromhex(text)]
    except ValueError:
        return [text.encode()]


def test_who_has_the_file_alone_finds_no_key_and_who_has_the_database_too_does(
    settings,
):
    write_salted_hashes(settings, ID)
    assert numbers_found(settings) == {ID}, "the way of finding is one"
    forgotten_file(settings).unlink()
    keep_out(settings, COLUMN, ID)
    assert numbers_found(settings) == set()
    with HashKeys(settings) as keys:
        secret = keys.newest().secret
    assert len(secret) == 32
    assert numbers_found(settings, secret.hex()) == {ID}
    assert forgotten_file(settings).stat().st_mode & 0o777 == 0o600
    assert secret.hex() not in repr(forgotten(settings))


@pytest.mark.parametrize("is_first_read", [True, False])
def test_a_file_of_an_older_release_becomes_one_that_cannot_be_tried(
    settings, is_first_read
):
    write_salted_hashes(settings, ID, 7)
    if is_first_read:
        assert forgotten(settings).has({COLUMN: ID})
    else:
        keep_out(settings, COLUMN, 11)
    assert numbers_found(settings) == set()
    entities = forgotten(settings)
    for number in (ID, 7):
        assert entities.has({COLUMN: number, "more": 1})
    assert not entities.has({COLUMN: 8})
    assert not entities.has({"other": ID})
    assert entities.has({COLUMN: 11}) != is_first_read
    with pytest.raises(ValidationError):  # an older release lets nobody in
        SaltedHashes.model_validate_json(forgotten_file(settings).read_text())


def test_an_installation_has_one_key_and_without_it_nothing_is_let_in(settings):
    keep_out(settings, COLUMN, 7)
    with HashKeys(settings) as keys, HashKeys(settings) as others:
        assert keys.newest() == others.newest()
    keep_out(settings, COLUMN, 8)
    entities = forgotten(settings)
    assert [entities.has({COLUMN: number}) for number in (7, 8, 9)] == [
        True,
        True,
        False,
    ]
    ledger = settings.home / "ledger.db"
    ledger.rename(ledger.with_suffix(".away"))
    for use in (forgotten, lambda home: keep_out(home, COLUMN, 9)):
        with pytest.raises(
            RegistryError, match=r"hash_keys.*does not have.*ledger\.db"
        ):
            use(settings)
    ledger.with_suffix(".away").rename(ledger)
    assert forgotten(settings).has({COLUMN: 7})


@pytest.mark.journey
def test_without_the_key_no_row_and_no_event_is_let_in_and_with_it_all_others_are(shop):
    settings = shop.settings
    moment = AS_OF - DAY
    shop.has(order(1, 8, moment))
    shop.ingest(AS_OF)
    keep_out(settings, COLUMN, 7)
    shop.has(order(1, 8, moment), order(2, 7, moment), order(3, 9, moment))
    text = forgotten_file(settings).read_text()
    other_key = json.dumps(json.loads(text) | {"key": "of another database"})
    with closing(Events(settings, ORDERS)) as events:
        forgotten_file(settings).write_text(other_key)
        with pytest.raises(RegistryError, match="of another database"):
            shop.ingest(AS_OF + HOUR)
        events.receives(AS_OF + HOUR, order(4, 7, moment), order(5, 9, moment))
        assert events.redis.xlen("gyre:events:orders") == 1
        assert [row["order_id"] for row in shop.raw()] == [1]
        assert shop.quarantine() == []
        forgotten_file(settings).write_text(text)
        events.consumes()
        assert events.redis.xlen("gyre:events:orders") == 0
    assert sorted(row["order_id"] for row in shop.raw()) == [1, 5]
    shop.ingest(AS_OF + HOUR, full=True)
    assert sorted(row["order_id"] for row in shop.raw()) == [1, 3, 5]
