"""Tokens: set, replaced and removed while requests run; nobody else is answered."""

import time
from contextlib import ExitStack
from functools import partial
from itertools import groupby

import pytest

from core.errors import SettingsError
from core.settings import free_ports, load_settings
from core.tokens import serving_headers
from serving.middleware import OPEN_PATHS, READ_SECONDS, Access
from tests.conftest import at_most, wait_until
from tests.serving.load import repeated

OLD = "old-0123456789"
NEW = "new-0123456789"
WRONG = "new-0123456788"
HEADERS = {"authorization": f"Bearer {OLD}"}
SEEN_SECONDS = at_most(READ_SECONDS + 0.5)
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
    ("lines", "reason"),
    [
        (None, "No such file"),
        ([], "no token"),
        ([f"shop:cut:{OLD}"], "line 1: expected TOKEN or NAME:TOKEN, found two colons"),
    ],
)
def test_a_file_without_a_token_allows_no_request_and_is_reported_once(
    tmp_path, caplog, lines, reason
):
    file = tmp_path / "tokens"
    if lines is not None:
        write(file, *lines)
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
    """A second server with tokens, in a home and with a log of its own, and their file."""
    home = tmp_path_factory.mktemp("guarded")
    rig.copy_serving_files(home)
    file = home / "tokens"
    write(file, OLD)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("GYRE_SERVING_TOKENS_FILE", str(file))
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
    for path in OPEN_PATHS:
        assert client.get(path).status_code == 200
    assert client.get("/health/ready").json() == {"ready": True, "not_well": []}
    metric = 'gyre_requests_total{model="",route="/predict",status="401"} 2.0'
    assert metric in client.get("/metrics").text


def test_the_page_of_the_documentation_opens_without_a_token_and_asks_for_one(guarded):
    client, _ = guarded
    page = client.get("/docs").text
    assets = {text for text in page.split('"') if text.startswith("/static-offline-")}
    assert "/static-offline-docs/swagger-ui-bundle.js" in assets
    for asset in assets:
        assert client.get(asset).status_code == 200
    document = client.get("/openapi.json").json()
    assert document["security"] == [{"bearer": []}]


def test_a_server_without_its_stores_shows_addresses_and_counts_only_with_a_token(
    rig, tmp_path, monkeypatch
):
    file = tmp_path / "tokens"
    write(file, OLD)
    monkeypatch.setenv("GYRE_SERVING_TOKENS_FILE", str(file))
    with rig.serving(home=tmp_path, serving_workers=2, **free_ports()) as (client, _):
        # Probes, which refuse nobody.
        for path in ("/health/ready", "/v2/health/ready", "/ping"):
            assert client.get(path).status_code == 503
        for _ in range(20):
            # A new connection may reach the other worker.
            headers = HEADERS | {"connection": "close"}
            answer = client.post("/predict", json={"customer_id": 4}, headers=headers)
            assert answer.status_code == 503

        def counts():
            status = client.get("/status", headers=HEADERS).json()
            return status["counts"]["requests_refused"]

        wait_until("the counts", lambda: counts() == {"429": 0, "503": 20})
        for path in OPEN_PATHS - {"/openapi.json", "/metrics"}:
            assert "127.0.0.1" not in client.get(path).text
        not_well = client.get("/health/ready").json()["not_well"]
        assert not_well == [f"model {rig.spec.name}", "redis", "mlflow"]
        assert "127.0.0.1" in client.get("/status", headers=HEADERS).text


@pytest.mark.timed
def test_tokens_are_replaced_and_removed_under_load(rig, guarded):
    client, file = guarded
    statuses = {OLD: [], NEW: [], WRONG: []}

    def ask(token):
        headers = {"authorization": f"Bearer {token}"}
        answer = client.post("/predict", json={"customer_id": 4}, headers=headers)
        statuses[token].append(answer.status_code)

    def wait_for(token, status, since):
        """Wait until `token` is answered so, and hold that to the time since the change."""
        wait_until(f"{status}", lambda: statuses[token][-1:] == [status])
        assert time.monotonic() - since < SEEN_SECONDS

    with ExitStack() as clients:
        for token in statuses:
            clients.enter_context(repeated(partial(ask, token), 0.002))
        wait_until("answers", lambda: all(statuses.values()))
        wait_for(NEW, 200, write(file, OLD, f"shop:{NEW}"))
        wait_for(OLD, 401, write(file, NEW))
        file.unlink()
        wait_for(NEW, 401, time.monotonic())
    # A change counts for every request after it.
    orders = {}
    for token, answers in statuses.items():
        orders[token] = [status for status, _ in groupby(answers)]
    assert orders == {OLD: [200, 401], NEW: [401, 200, 401], WRONG: [401]}
    log = (rig.folder / "serving.log").read_text()
    assert f"{file}: No such file or directory" in log
    assert OLD not in log
    assert NEW not in log
