"""A server answers its own names, and takes no request of another site's page."""

import asyncio

import pytest

from core.access.http_guard import GuardMiddleware, HttpGuard
from core.errors import SettingsError
from core.settings import Settings, load_settings

LINKS = {"mlflow": "https://ml.example.com:5000", "console": "https://c.example.com"}


def guard(tmp_path, **more):
    return HttpGuard(Settings(home=tmp_path, **more))


def refusal(rules, method="GET", version="1.1", **headers):
    pairs = [
        (name.replace("_", "-").encode(), value.encode())
        for name, value in headers.items()
    ]
    found = rules.refusal(method, version, pairs)
    return found.status if found else None


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", None),
        ("LOCALHOST:8000", None),
        ("localhost.:8000", None),
        ("127.0.0.1:8000", None),
        ("10.1.2.3", None),
        ("203.0.113.7:80", None),
        ("[::1]:8000", None),
        ("[fd00::1]", None),
        ("ml.example.com:5000", None),
        ("c.example.com", None),
        ("mlflow:5000", None),
        ("gyre.internal:99", None),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("10.1.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost@evil.example", 403),
        ("evil.example/localhost", 403),
        ("localhost:port", 403),
        ("localhost:99999999", 403),
        ("[::1", 403),
        ("", 403),
        (" ", 403),
        ("locälhost", 403),
    ],
)
def test_a_name_is_own_or_refused(tmp_path, host, status):
    own = {
        "links": LINKS,
        "mlflow_url": "http://mlflow:5000",
        "allowed_hosts": frozenset({"gyre.internal"}),
    }
    rules = guard(tmp_path, **own)
    assert refusal(rules, host=host) == status
    assert refusal(rules, host=host) == status  # it is remembered as it is


def test_one_host_is_needed_but_in_http_1_0(tmp_path):
    rules = guard(tmp_path)
    two = [(b"host", b"localhost"), (b"host", b"localhost")]
    assert rules.refusal("GET", "1.1", two).status == 400
    assert rules.refusal("GET", "1.1", []).status == 400
    assert rules.refusal("GET", "1.0", []) is None


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, None),
        ({"sec_fetch_site": "same-origin"}, None),
        ({"sec_fetch_site": "none"}, None),
        ({"sec_fetch_site": "same-site"}, 403),
        ({"sec_fetch_site": "cross-site"}, 403),
        ({"sec_fetch_site": ""}, 403),
        ({"origin": "http://localhost:8000"}, None),
        ({"origin": "https://localhost:8000"}, None),
        ({"origin": "https://ml.example.com:5000"}, None),
        ({"origin": "https://c.example.com"}, None),
        ({"origin": "http://c.example.com"}, 403),
        ({"origin": "http://localhost:8001"}, 403),
        ({"origin": "http://127.0.0.1:8000"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": ""}, 403),
        ({"origin": "file://"}, 403),
        ({"origin": "chrome-extension://localhost:8000"}, 403),
        ({"origin": "http://localhost:8000", "sec_fetch_site": "cross-site"}, 403),
        ({"origin": "http://evil.example", "sec_fetch_site": "same-origin"}, 403),
    ],
)
@pytest.mark.parametrize(
    "method", ["POST", "PUT", "PATCH", "DELETE", "WEBSOCKET", "ANY"]
)
def test_a_write_of_another_site_is_refused(tmp_path, method, headers, status):
    rules = guard(tmp_path, links=LINKS)
    assert refusal(rules, method, host="localhost:8000", **headers) == status
    assert refusal(rules, "GET", host="localhost:8000", **headers) is None


def test_the_standard_port_may_be_left_out(tmp_path):
    rules = guard(tmp_path)
    assert (
        refusal(rules, "POST", host="localhost:80", origin="http://localhost") is None
    )
    assert (
        refusal(rules, "POST", host="localhost", origin="http://localhost:80") is None
    )
    assert refusal(rules, "POST", host="localhost", origin="https://localhost") is None
    assert refusal(rules, "POST", host="localhost", origin="http://localhost:8") == 403


def test_a_websocket_of_another_site_is_not_opened(tmp_path):
    sent = []

    async def app(*_):
        raise AssertionError("it is not asked")

    async def send(message):
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"origin", b"http://evil.example")]
    scope = {"type": "websocket", "http_version": "1.1", "headers": headers}
    asyncio.run(GuardMiddleware(app, Settings(home=tmp_path))(scope, None, send))
    assert [message["type"] for message in sent] == ["websocket.close"]


@pytest.mark.parametrize("names", ["a:80", "http://a", "a/b", "a..b", "*"])
def test_a_wrong_name_is_refused_by_its_setting(monkeypatch, tmp_path, names):
    monkeypatch.setenv("GYRE_ALLOWED_HOSTS", names)
    with pytest.raises(SettingsError, match=r"GYRE_ALLOWED_HOSTS.*name of a host"):
        load_settings(home=tmp_path)


def test_names_are_read_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("GYRE_ALLOWED_HOSTS", "Gyre.Example serving")
    settings = load_settings(home=tmp_path)
    assert settings.allowed_hosts == {"gyre.example", "serving"}
