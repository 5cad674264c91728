"""Tokens: set, exchanged and removed while requests run; nobody else gets in."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from itertools import groupby
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from core.errors import SettingsError
from core.settings import load_settings
from core.tokens import serving_headers
from serving.middleware import OPEN_PATHS, READ_SECONDS, Access
from tests.conftest import at_most, unused_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OLD = "old-0123456789"
NEW = "new-0123456789"
WRONG = "new-0123456788"
HEADERS = {"authorization": f"Bearer {OLD}"}
SEEN_SECONDS = at_most(READ_SECONDS + 0.5)
"""After which an exchange holds, the way to the server included."""


def write(file: Path, *lines: str) -> float:
    """Exchange the file as a whole, as a secret store does; return when that was done."""
    new_file = file.with_suffix(".new")
    new_file.write_text("\n".join(lines))
    new_file.replace(file)
    return time.monotonic()


def bearer(token: str) -> bytes:
    return f"Bearer {token}".encode()


def test_a_file_may_hold_several_tokens_and_whose_they_are(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    write(file, "# of the shop", f"shop:{OLD}", "", f"  {NEW}  ", "# a:b:c")
    access = Access(file)
    for header in (bearer(OLD), bearer(NEW), b"bearer " + NEW.encode()):
        assert access.allows(header)
    for header in (b"", bearer(WRONG), bearer(""), b"Basic " + NEW.encode(), NEW.encode(),
                   bearer(f"shop:{OLD}"), b"Bearer \xff", bearer("# of the shop")):  # fmt: skip
        assert not access.allows(header)
    assert serving_headers(load_settings(serving_tokens_file=file)) == HEADERS


def test_a_token_with_a_colon_is_refused_by_its_line_and_not_shortened(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "tokens"
    write(file, OLD, f"shop:cut:{NEW}")
    access = Access(file)
    assert access.allows(bearer(OLD))
    assert not access.allows(bearer(NEW))
    reason = "line 2: expected TOKEN or NAME:TOKEN, found two colons"
    assert caplog.messages == [f"{file}: {reason}: 1 tokens are valid"]
    with pytest.raises(SettingsError, match=reason):
        serving_headers(load_settings(serving_tokens_file=file))


def test_a_file_that_is_no_use_refuses_everything_and_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "tokens"
    access = Access(file)

    def allows(token: str) -> bool:
        access._next_read = 0.0
        return access.allows(bearer(token))

    with caplog.at_level(logging.WARNING, "serving.middleware"):
        for problem in ("No such file", "no token"):
            assert not any([allows(""), allows(OLD), allows("")])
            assert problem in caplog.messages[-1]
            with pytest.raises(SettingsError, match=problem):
                serving_headers(load_settings(serving_tokens_file=file))
            file.touch()
        write(file, OLD)
        assert allows(OLD)
    assert len(caplog.messages) == 3
    assert OLD not in caplog.text


def test_a_relative_path_is_refused_at_the_start() -> None:
    with pytest.raises(SettingsError, match=r"GYRE_SERVING_TOKENS_FILE: .*absolute"):
        load_settings(serving_tokens_file="tokens")


@pytest.fixture(scope="module")
def guarded(
    rig: Any, served: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[httpx.Client, Path]]:
    """A second server with tokens, in a home and with a log of its own, and their file."""
    home = tmp_path_factory.mktemp("guarded")
    shutil.copytree(rig.settings.home / "feast", home / "feast")
    file = home / "tokens"
    write(file, OLD)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("GYRE_SERVING_TOKENS_FILE", str(file))
        environment.setenv("GYRE_HOST", "0.0.0.0")
        with rig.serving(home=home, serving_port=unused_port()) as (client, _):
            rig.known_to_be_ready(client)
            yield client, file


def test_each_protocol_says_401_in_its_form_and_probes_need_no_token(
    guarded: Any,
) -> None:
    client, _ = guarded
    for path, field in (
        ("/predict", "detail"), ("/feedback", "detail"), ("/events/orders", "detail"),
        ("/", "detail"), ("/status", "detail"), ("/nothing", "detail"),
        ("/v1/models/customer_churn_model:predict", "error"), ("/invocations", "message"),
        ("/v2/models/customer_churn_model/infer", "error"), ("/static-offline-docs", "detail"),
    ):  # fmt: skip
        for method in ("GET", "POST"):
            answer = client.request(method, path, content=b"{" * 100)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert "Bearer TOKEN" in answer.json()[field]
    for path in OPEN_PATHS:
        assert client.get(path).status_code == 200
    refusals = 'gyre_requests_total{model="",route="/predict",status="401"} 2.0'
    assert refusals in client.get("/metrics").text


def test_readiness_names_what_is_not_well_and_tells_a_stranger_no_more(
    rig: Any, guarded: Any, tmp_path: Path
) -> None:
    client, _ = guarded
    assert client.get("/health/ready").json() == {"ready": True, "not_well": []}
    names = ("serving_port", "redis_port", "mlflow_port")
    ports = {name: unused_port() for name in names}
    with rig.serving(home=tmp_path, **ports) as (lost, _):
        for path in OPEN_PATHS - {"/openapi.json", "/metrics"}:
            assert "127.0.0.1" not in lost.get(path).text
        for path in ("/health/ready", "/v2/health/ready", "/ping"):
            assert lost.get(path).status_code == 503
        not_well = lost.get("/health/ready").json()["not_well"]
        assert not_well == [f"model {rig.spec.name}", "redis", "mlflow"]
        assert "127.0.0.1" in lost.get("/status", headers=HEADERS).text


def test_it_listens_on_every_address_and_asks_for_a_token_on_each(guarded: Any) -> None:
    url = f"http://127.0.0.2:{guarded[0].base_url.port}/predict"
    body = {"customer_id": 4}
    assert httpx.post(url, json=body).status_code == 401
    assert httpx.post(url, json=body, headers=HEADERS).status_code == 200


def test_the_page_of_the_documentation_opens_without_a_token_and_asks_for_one(
    guarded: Any,
) -> None:
    client, _ = guarded
    page = client.get("/docs").text
    assets = {text for text in page.split('"') if text.startswith("/static-offline-")}
    assert "/static-offline-docs/swagger-ui-bundle.js" in assets
    for asset in assets:
        assert client.get(asset).status_code == 200
    document = client.get("/openapi.json").json()
    assert document["security"] == [{"bearer": []}]
    scheme = document["components"]["securitySchemes"]["bearer"]
    assert scheme == {"type": "http", "scheme": "bearer"}


@pytest.mark.timed
def test_tokens_are_exchanged_and_removed_under_load(rig: Any, guarded: Any) -> None:
    client, file = guarded
    statuses: dict[str, list[int]] = {OLD: [], NEW: [], WRONG: []}
    stop = threading.Event()

    def ask(token: str) -> None:
        headers = {"authorization": f"Bearer {token}"}
        url = client.base_url
        with httpx.Client(base_url=url, headers=headers, timeout=600) as own_client:
            while not stop.wait(0.002):
                answer = own_client.post("/predict", json={"customer_id": 4})
                statuses[token].append(answer.status_code)

    def wait_for(token: str, status: int, since: float) -> None:
        """Wait until `token` is answered so, and hold that to the time since an exchange."""
        wait_until(f"{status}", lambda: statuses[token][-1:] == [status])
        assert time.monotonic() - since < SEEN_SECONDS

    threads = [threading.Thread(target=ask, args=(token,)) for token in statuses]
    for thread in threads:
        thread.start()
    try:
        wait_until("answers", lambda: all(statuses.values()))
        wait_for(NEW, 200, write(file, OLD, f"shop:{NEW}"))
        wait_for(OLD, 401, write(file, NEW))
        file.unlink()
        wait_for(NEW, 401, time.monotonic())
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    # Each exchange counts for every request after it: no token goes to and fro.
    orders = {}
    for token, answers in statuses.items():
        orders[token] = [status for status, _ in groupby(answers)]
    assert orders == {OLD: [200, 401], NEW: [401, 200, 401], WRONG: [401]}
    log = (rig.folder / "serving.log").read_text()
    assert f"{file}: No such file or directory" in log
    assert OLD not in log
    assert NEW not in log
