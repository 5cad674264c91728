"""Tokens: set, exchanged and removed while requests run; nobody else gets in."""

from __future__ import annotations

import logging
import shutil
import threading
import time
import timeit
from itertools import groupby
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from core.errors import SettingsError
from core.settings import load_settings
from core.tokens import serving_headers
from serving.middleware import LOOK_SECONDS, OPEN, Access
from tests.conftest import at_most, unused_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OLD, NEW, WRONG = "old-0123456789", "new-0123456789", "new-0123456788"
SEEN = at_most(LOOK_SECONDS + 0.5)
"""Seconds after which an exchange holds, the way to the server included."""


def put(file: Path, *lines: str) -> float:
    """Exchange the file as a whole, as a secret store does; when that was done."""
    beside = file.with_suffix(".new")
    beside.write_text("\n".join(lines))
    beside.replace(file)
    return time.monotonic()


def bearer(token: str) -> bytes:
    return f"Bearer {token}".encode()


def test_a_file_may_hold_several_tokens_and_whose_they_are(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    put(file, "# of the shop", f"shop:{OLD}", "", f"  {NEW}  ")
    access = Access(file)
    assert access.allows(bearer(OLD))
    assert access.allows(bearer(NEW))
    assert access.allows(b"bearer " + NEW.encode())
    for sent in (b"", bearer(WRONG), bearer(""), b"Basic " + NEW.encode(), NEW.encode(),
                 bearer(f"shop:{OLD}"), b"Bearer \xff", bearer("# of the shop")):  # fmt: skip
        assert not access.allows(sent)
    assert serving_headers(load_settings(serving_tokens_file=file)) == {
        "authorization": f"Bearer {OLD}"
    }


def test_a_file_that_is_no_use_refuses_everything_and_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "tokens"
    access = Access(file)
    with caplog.at_level(logging.WARNING, "serving.middleware"):
        for make, problem in ((lambda: None, "No such file"), (file.touch, "no token")):
            make()
            access._look_at = 0.0
            for _ in range(3):
                assert not access.allows(bearer(""))
                access._look_at = 0.0
            assert problem in caplog.messages[-1]
            with pytest.raises(SettingsError, match=problem):
                serving_headers(load_settings(serving_tokens_file=file))
        put(file, OLD)
        assert access.allows(bearer(OLD))
    assert len(caplog.messages) == 3
    assert OLD not in caplog.text


def test_a_relative_path_is_refused_at_the_start() -> None:
    with pytest.raises(SettingsError, match=r"GYRE_SERVING_TOKENS_FILE: .*absolute"):
        load_settings(serving_tokens_file="tokens")


@pytest.mark.timed
def test_a_token_costs_less_than_5_microseconds(tmp_path: Path) -> None:
    put(tmp_path / "tokens", OLD, NEW)
    access, sent = Access(tmp_path / "tokens"), bearer(NEW)
    seconds = (
        min(timeit.repeat(lambda: access.allows(sent), number=10_000, repeat=5))
        / 10_000
    )
    assert seconds < at_most(5e-6)


@pytest.fixture(scope="module")
def guarded(
    rig: Any, served: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[httpx.Client, Path]]:
    """A second server with tokens, in a home and with a log of its own, and their file."""
    home = tmp_path_factory.mktemp("guarded")
    shutil.copytree(rig.settings.home / "feast", home / "feast")
    file = home / "tokens"
    put(file, OLD)
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
    for path, said in (
        ("/predict", "detail"), ("/explain", "detail"), ("/feedback", "detail"),
        ("/events/orders", "detail"),
        ("/v1/models/churn-predictor:predict", "error"), ("/invocations", "message"),
        ("/v2/models/churn-predictor/infer", "error"), ("/nothing", "detail"), ("/docs", "detail"),
        ("/", "detail"), ("/openapi.json", "detail"),
    ):  # fmt: skip
        for method in ("GET", "POST"):
            answer = client.request(method, path, content=b"{" * 100)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (
                401,
                "Bearer",
            )
            assert "Bearer TOKEN" in answer.json()[said]
    assert {path: client.get(path).status_code for path in OPEN} == dict.fromkeys(
        OPEN, 200
    )
    assert (
        'gyre_requests_total{model="",route="",status="401"} 22.0'
        in client.get("/metrics").text
    )


def test_it_listens_on_every_address_and_asks_for_a_token_on_each(guarded: Any) -> None:
    url, body = (
        f"http://127.0.0.2:{guarded[0].base_url.port}/predict",
        {"customer_id": 4},
    )
    assert httpx.post(url, json=body).status_code == 401
    headers = {"authorization": f"Bearer {OLD}"}
    assert httpx.post(url, json=body, headers=headers).status_code == 200


def test_kserve_answers_who_carries_a_token(guarded: Any) -> None:
    client, _ = guarded
    headers = {"authorization": f"Bearer {OLD}"}
    path, body = "/v1/models/churn-predictor", {"instances": [{"customer_id": 4}]}
    assert client.get(path, headers=headers).json()["ready"] is True
    answer = client.post(f"{path}:predict", json=body, headers=headers)
    assert answer.json()["predictions"][0]["customer_id"] == 4
    document = client.get("/openapi.json", headers=headers).json()
    assert document["paths"]["/predict"]["post"]["security"] == [{"bearer": []}]


@pytest.mark.timed
def test_tokens_are_exchanged_and_removed_under_load(rig: Any, guarded: Any) -> None:
    client, file = guarded
    statuses: dict[str, list[int]] = {OLD: [], NEW: [], WRONG: []}
    stop = threading.Event()

    def ask(token: str) -> None:
        headers = {"authorization": f"Bearer {token}"}
        with httpx.Client(
            base_url=client.base_url, headers=headers, timeout=600
        ) as own:
            while not stop.wait(0.002):
                answer = own.post("/predict", json={"customer_id": 4})
                statuses[token].append(answer.status_code)

    def seen(token: str, status: int, since: float) -> None:
        """Wait until `token` is answered so, and hold that to the time since an exchange."""
        wait_until(f"{status}", lambda: statuses[token][-1:] == [status])
        assert time.monotonic() - since < SEEN

    threads = [threading.Thread(target=ask, args=(token,)) for token in statuses]
    for thread in threads:
        thread.start()
    try:
        wait_until("answers", lambda: all(statuses.values()))
        seen(NEW, 200, put(file, OLD, f"shop:{NEW}"))
        seen(OLD, 401, put(file, NEW))
        file.unlink()
        seen(NEW, 401, time.monotonic())
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    # Each exchange counts for every request after it: no token goes to and fro.
    order = {
        token: [status for status, _ in groupby(each)]
        for token, each in statuses.items()
    }
    assert order == {OLD: [200, 401], NEW: [401, 200, 401], WRONG: [401]}
    log = (rig.folder / "serving.log").read_text()
    assert f"{file}: No such file or directory" in log
    assert OLD not in log
    assert NEW not in log
