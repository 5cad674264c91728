"""What every request passes: its token, and its id."""

import re
import time
from contextlib import ExitStack
from functools import partial
from itertools import groupby

import pytest

from core.errors import SettingsError
from core.settings import free_ports, load_settings
from core.tokens import serving_headers
from serving.http.middleware import OPEN_PATHS, TOKEN_READ_SECONDS, Access
from tests.conftest import at_most, wait_until
from tests.support.serving.load import repeated

OLD = "old-0123456789"
NEW = "new-0123456789"
WRONG = "new-0123456788"
PROXY_ID = "shop/42:a-b_c.d+e=f@g" + "h" * 107
"""All characters that a proxy's id may have, and as many."""
HEADERS = {"authorization": f"Bearer {OLD}"}
SEEN_SECONDS = at_most(TOKEN_READ_SECONDS + 0.5)
"""After which a new file counts, the way to the server included."""


def write(file, *lines):
    """Replace the file as a whole, as a secret store does; return when that was done."""
    new_file = file.with_suffix(".new")
    new_file.write_text("\n".join(lines))
    new_file.replace(file)
    return time.monotonic()


def test_a_file_may_hold_several_tokens_and_the_names_of_their_owners(tmp_path):
    file = tmp_path / "tokens"
    write(file, "# of the shop", f"shop:{OLD}", "", f"  {NEW}  ", "# a:b:c")
    access = Access(file)
    for header in (f"Bearer {OLD}", f"Bearer {NEW}", f"bearer {NEW}"):
        assert access.allows(header.encode())
    for header in ("", "Bearer ", NEW, f"Basic {NEW}", f"Bearer {WRONG}", f"Bearer shop:{OLD}",
                   "Bearer # of the shop", "Bearer \xff"):  # fmt: skip
        assert not access.allows(header.encode("latin-1"))
    assert serving_headers(load_settings(serving_tokens_file=file)) == HEADERS


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("# none", "no token"),
        (f"shop:cut:{OLD}", "line 1: expected TOKEN or NAME:TOKEN, found two colons"),
    ],
)
def test_a_file_without_a_token_allows_no_request_and_is_reported_once(
    tmp_path, caplog, line, reason
):
    file = tmp_path / "tokens"
    write(file, line)
    access = Access(file)
    for token in ("", OLD, "cut"):
        assert not access.allows(f"Bearer {token}".encode())
    (message,) = caplog.messages
    assert reason in message
    assert OLD not in message
    with pytest.raises(SettingsError, match=reason):
        serving_headers(load_settings(serving_tokens_file=file))


@pytest.fixture(scope="module")
def guarded(rig, served, tmp_path_factory):
    """A server behind a proxy, with a home and a log of its own; the file of its tokens."""
    home = tmp_path_factory.mktemp("guarded")
    rig.copy_serving_files(home)
    file = home / "tokens"
    write(file, OLD)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("GYRE_SERVING_TOKENS_FILE", str(file))
        environment.setenv("GYRE_BEHIND_PROXY", "true")
        with rig.serving(home=home) as (client, _):
            rig.known_to_be_ready(client)
            yield client, file


def test_each_protocol_answers_401_in_its_form_and_some_pages_need_no_token(guarded):
    client, _ = guarded
    for path, field in (
        ("/predict", "detail"), ("/feedback", "detail"), ("/events/orders", "detail"),
        ("/", "detail"), ("/status", "detail"), ("/nothing", "detail"),
        ("/v1/models/customer_churn_model:predict", "error"), ("/invocations", "message"),
        ("/v2/models/customer_churn_model/infer", "error"), ("/static-offline-docs", "detail"),
    ):  # fmt: skip
        answer = client.post(path, content=b"{" * 100)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert "Bearer TOKEN" in answer.json()[field]
        assert client.get(path).status_code == 401
    assets = re.findall(r'"(/static-offline-[^"]*)"', client.get("/docs").text)
    assert "/static-offline-docs/swagger-ui-bundle.js" in assets
    for path in (*OPEN_PATHS, *assets):
        assert client.get(path).status_code == 200
    assert client.get("/openapi.json").json()["security"] == [{"bearer": []}]
    metric = 'gyre_requests_total{model="",route="/predict",status="401"} 2.0'
    assert metric in client.get("/metrics").text


@pytest.mark.parametrize(
    "path", ["/metrics/", "/metrics//", "/metrics%2f", "/metrics%2F/"]
)
def test_metrics_have_one_path_which_a_proxy_can_refuse(guarded, path):
    client, _ = guarded
    assert client.get(path).status_code == 401
    assert client.get(path, headers=HEADERS).status_code == 404
    assert client.get("/ping/").status_code == 200


@pytest.mark.parametrize("path", ["/docs", "/docs/", "/docs//", "/docs%2f"])
def test_no_other_site_shows_the_documentation_in_a_frame(guarded, path):
    client, _ = guarded
    answer = client.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-security-policy"] == "frame-ancestors 'self'"
    assert answer.headers["x-frame-options"] == "SAMEORIGIN"


def test_a_server_without_its_stores_is_live_and_shows_addresses_only_with_a_token(
    rig, tmp_path, monkeypatch
):
    file = tmp_path / "tokens"
    write(file, OLD)
    monkeypatch.setenv("GYRE_SERVING_TOKENS_FILE", str(file))
    with rig.serving(home=tmp_path, serving_workers=2, **free_ports()) as (client, _):
        for path in OPEN_PATHS - {"/openapi.json", "/metrics"}:
            answer = client.get(path)
            is_probe = path.endswith(("/ready", "/ping"))
            assert answer.status_code == (503 if is_probe else 200)
            assert "127.0.0.1" not in answer.text
        not_well = client.get("/health/ready").json()["not_well"]
        assert not_well == [f"model {rig.spec.name}", "redis", "mlflow"]
        # A new connection may reach the other worker.
        client.headers.update(HEADERS | {"connection": "close"})
        for _ in range(20):
            refused = rig.predict(client)
            assert refused.status_code == 503
            assert "no version in production here yet" in refused.json()["detail"]

        def counts():
            return client.get("/status").json()["counts"]["requests_refused"]

        # Probes refuse nobody.
        wait_until("the counts", lambda: counts() == {"429": 0, "503": 20})
        assert "127.0.0.1" in client.get("/status").text


def test_ids_behind_a_proxy_begin_with_the_proxys_id_and_feedback_accepts_them(guarded):
    client, _ = guarded
    body = [{"customer_id": key} for key in (4, 4, 5)]
    headers = HEADERS | {"x-request-id": PROXY_ID}

    def row_ids():
        answer = client.post("/predict/batch", json=body, headers=headers)
        assert answer.headers["x-request-id"] == PROXY_ID
        return [row["request_id"] for row in answer.json()]

    ids = row_ids()
    assert row_ids() == ids  # the proxy repeats a request
    assert all(row_id.startswith(f"{PROXY_ID}-") for row_id in ids)
    assert len(set(ids)) == 3
    outcomes = [{"request_id": row_id, "actual": 1} for row_id in ids]
    assert client.post("/feedback", json=outcomes, headers=HEADERS).status_code == 200
    for unsafe in (b"", b"a b", b"a" * 129, b'x"y', "ä".encode()):
        answer = client.get("/health/live", headers=[(b"x-request-id", unsafe)])
        assert len(answer.headers["x-request-id"]) == 32


def test_a_client_without_a_proxy_cannot_choose_the_id_of_a_request(served):
    for path in ("/predict", "/health/live", "/nothing"):
        answer = served.client.get(path, headers={"x-request-id": "mine"})
        assert len(answer.headers["x-request-id"]) == 32


@pytest.mark.timed
def test_tokens_are_replaced_and_removed_under_load(rig, guarded):
    client, file = guarded
    statuses = {OLD: [], NEW: [], WRONG: []}

    def ask_with(token):
        headers = {"authorization": f"Bearer {token}"}
        answer = client.post("/predict", json={"customer_id": 4}, headers=headers)
        statuses[token].append(answer.status_code)

    def wait_for(token, status, since):
        """Wait until `token` is answered so, and hold that to the time since the change."""
        wait_until(f"{status}", lambda: statuses[token][-1:] == [status])
        assert time.monotonic() - since < SEEN_SECONDS

    with ExitStack() as clients:
        for token in statuses:
            clients.enter_context(repeated(partial(ask_with, token), 0.002))
        wait_until("answers", lambda: all(statuses.values()))
        wait_for(NEW, 200, write(file, OLD, f"shop:{NEW}"))
        wait_for(OLD, 401, write(file, NEW))
        file.unlink()
        wait_for(NEW, 401, time.monotonic())
    # A change counts for every request after it.
    changes = {OLD: [200, 401], NEW: [401, 200, 401], WRONG: [401]}
    for token, expected in changes.items():
        assert [status for status, _ in groupby(statuses[token])] == expected
    log = (rig.folder / "serving.log").read_text()
    assert f"{file}: No such file or directory" in log
    assert OLD not in log
    assert NEW not in log
