"""No message has a password of an address, however a person has written the address."""

import re
from datetime import UTC, datetime
from urllib.parse import unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.connectors.addresses import shown_address, without_secrets
from core.errors import GyreError
from core.settings import Settings
from feature_engine.ingest.source import pull
from feature_repo.datasets.orders import ORDERS

PASSWORD = "hunter2secret"
SCHEMES = (
    "postgresql",
    "postgres",
    "mysql",
    "duckdb",
    "snowflake",
    "s3",
    "az",
    "gs",
    "iceberg",
    "ftp",
    "x",
)
TOKEN_ALONE = "{scheme}:{slashes}{password}@host"
FORMS = (
    "{scheme}:{slashes}user:{password}@host/db#table",
    "{scheme}:{slashes}user:{password}@host",
    "{scheme}:{slashes}:{password}@host:1/db",
    TOKEN_ALONE,
    "{scheme}:{slashes}host/db?user=u&password={password}#table",
    "{scheme}:{slashes}bucket/x.parquet?sig={password}",
    "{scheme}:{slashes}user:{password}@bucket/x.parquet?a=1#t",
    "user:{password}@host/db#table",
    "{slashes}user:{password}@host/db",
    "host=localhost password={password} dbname=x",
    "{scheme}:host=localhost;pwd={password};#t",
)
NAMES = (
    "password",
    "Passwd",
    "password2",
    "PWD",
    "passphrase",
    "secret",
    "client_secret",
    "token",
    "api_key",
    "apikey",
    "X-Api-Key",
    "AccountKey",
    "Access Key",
    "private_key",
    "credential",
    "credentials",
    "authorization",
    "SharedAccessSignature",
    "sig",
)
NAMED_FORMS = (
    "host=h {name}={password} dbname=x",
    "host=h {name} = {password}",
    "host=h {name}='my {password}' dbname=x",
    "host=h {name}='a\\' x={password}' dbname=x",
    "host=h {name}='a''b {password}'",
    "host=h {name}='a x={password}",
    'host=h {name}="a {password}" dbname=x',
    'Password="a""b;c={password}"',
    "Driver={{x}};Server=h;{name}={{a;{password}}}",
    "Driver={{x}};Server=h;{name}={{a}}}};b={password}}};Uid=u",
    "Server=h;Uid=u;{name}=a&{password};",
    "Server=h;Uid=u;{name}=a&b={password};",
    "Server=h;Uid=u;{name}=my {password};",
    "Server=h;Uid=u;{name}=a;{password}",
    "host=h {name}=a@{password}",
    "jdbc:host=h {name}=a@{password}",
    "host=h {name}=a#{password}",
    "host=h {name}=a?b={password}",
    '{{"{name}": "{password}"}}',
    '{{"{name}":["{password}"], "x": 1}}',
    "{{'{name}': '{password}'}}",
    "{name}: {password}",
    "{name}:{password}",
    "jdbc:sqlserver://h;user=u;{name}={password}",
    "postgresql://h/db?{name}=a&{password}#t",
    "az://c/x.parquet;{name}={password}",
)
"""Secrets that are given by a name, in the ways of libpq, ODBC, JDBC, JSON and YAML."""
NO_HOST_FORMS = (
    "postgresql://u:{password}%40h/db#t",
    "postgresql://u:{password}%2540h/db",
    "postgresql://u%3A{password}%40h/db",
    "postgresql://u%253A{password}%2540h/db",
    "postgresql://{password}%40h/db",
    "s3://{password}%40bucket/x.parquet",
    "postgresql:/u:{password}%40h/db",
    "postgresql:u:{password}%40h/db",
    "postgresql//u:{password}%40h/db",
    "postgresql://u:12%40{password}",
    "user:{password}%40host/db",
    "postgres://u:{password}",
    "postgres:u:{password}",
    "postgres://u:{password}#t",
    "postgres://u:12 {password}",
    "postgres://h1:1,u:{password}",
    "s3://KEY:{password}/x.parquet",
    "jdbc:postgresql://u:{password}/db",
    "jdbc:oracle:thin:u/{password}",
    "postgresql://u:{password}\uff20h/db",
    "postgresql://u\uff1a{password}\ufe6bh/db",
    "https://u\uff1a{password}\uff05\uff14\uff10h",
    "https://h/x.csv?{password}",
)
"""Addresses without an @: it is encoded, wide, or missing."""


def address_with(form, scheme, slashes, before, after):
    """Return an address, and its password as pieces that a client may quote."""
    # Without a colon only a word is known to be a secret.
    password = PASSWORD if form == TOKEN_ALONE else before + PASSWORD + after
    if "#" not in form:  # it would begin a table's name
        password = password.replace("#", "")
    address = form.format(scheme=scheme, slashes=slashes, password=password)
    pieces = {password, unquote(password), *re.split("[:@/?#&=]", password)}
    return address, [piece for piece in pieces if PASSWORD in piece]


addresses = st.builds(
    address_with,
    st.sampled_from(FORMS),
    st.sampled_from(SCHEMES),
    st.sampled_from(["//", "/", "///", ""]),
    st.sampled_from(["", "a:", "a/", "p@", "%2F", "é", "[", "1:2@", "a#b"]),
    st.sampled_from(["", ":b", "@b", "%40", "]", "$"]),
)


@given(addresses)
@settings(max_examples=500, deadline=None)
def test_a_password_is_not_shown_and_is_taken_out_of_a_text(case):
    address, pieces = case
    assert PASSWORD not in shown_address(address), address
    for piece in pieces:
        text = f"could not connect to {address}: wrong password {piece}"
        assert PASSWORD not in without_secrets(text, address), address


def assert_hidden(address):
    """The password is neither in the address that is shown nor in a client's error."""
    assert PASSWORD not in shown_address(address), address
    for piece in (address, PASSWORD):
        assert PASSWORD not in without_secrets(f"cannot open {piece}: bad", address)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", NAMED_FORMS)
def test_a_secret_with_a_name_is_not_shown_in_any_quotes(form, name):
    assert_hidden(form.format(name=name, password=PASSWORD))


@pytest.mark.parametrize("form", NO_HOST_FORMS)
def test_a_password_that_no_host_follows_is_not_shown(form):
    assert_hidden(form.format(password=PASSWORD))


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("/data/orders.parquet", "/data/orders.parquet"),
        ("/data/a@b/[xy]?.parquet", "/data/a@b/[xy]?.parquet"),
        ("data/day=2026-01-01/*.parquet", "data/day=2026-01-01/*.parquet"),
        ("s3://bucket/a?.parquet", "s3://bucket/a?.parquet"),
        ("s3://bucket/day=1/a@b.parquet", "s3://bucket/day=1/a@b.parquet"),
        ("s3://bucket/10:30/a@b.parquet", "s3://bucket/10:30/a@b.parquet"),
        ("az://c/x.parquet?sig=S", "az://c/x.parquet"),
        ("s3://KEY:S/S@bucket/x", "s3://bucket/x"),
        ("postgresql://u:S@host/db?sslmode=require#t", "host/db#t"),
        ("postgresql:/u:S@host/db#t", "host/db#t"),
        ("postgresql://host:5432/db#t", "postgresql://host:5432/db#t"),
        ("postgresql://h1:1,h2:2/db#t", "postgresql://h1:1,h2:2/db#t"),
        ("postgresql://[::1]:5432/db#t", "postgresql://[::1]:5432/db#t"),
        ("postgresql://host:/db#t", "postgresql://host:/db#t"),
        ("duckdb://md:shop#t", "duckdb://md:shop#t"),
        ("sqlite:///shop.db#t", "sqlite:///shop.db#t"),
        ("iceberg://main#shop.orders", "iceberg://main#shop.orders"),
        ("https://host/a%40b.csv", "https://host/a%40b.csv"),
        ("s3://bucket/10:30/a%40b.parquet", "s3://bucket/10:30/a%40b.parquet"),
        ("/data/a%40b.parquet", "/data/a%40b.parquet"),
        ("databricks://token:S@host#t", "host#t"),
        ("postgres://u:S", "postgres://…"),
        ("host=h password='a b' dbname=x", "host=h password=…"),
    ],
)
def test_the_rest_of_an_address_is_shown(address, shown):
    assert shown_address(address) == shown


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("slashes", ["//", "/"])
@pytest.mark.parametrize("scheme", ["postgresql", "mysql", "s3", "ftp"])
def test_the_error_of_a_source_has_no_password(
    tmp_path, monkeypatch, form, slashes, scheme
):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    address = form.format(scheme=scheme, slashes=slashes, password=PASSWORD)
    address = re.sub(r"\bhost\b", "127.0.0.1:1", address)
    where = Settings(home=tmp_path, sources={"orders": address})
    with pytest.raises(GyreError) as caught:
        pull(where, ORDERS, datetime.now(UTC), None, {}).read_all()
    assert PASSWORD not in f"{caught.value}"
