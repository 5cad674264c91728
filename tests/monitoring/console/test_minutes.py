"""Traffic and lag by the minute: what the counters of real replicas become, and what is kept."""

import json
import logging
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from functools import partial
from math import inf

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from monitoring.console.cached_reader import CachedReader
from monitoring.console.panels import minutes
from monitoring.console.panels.minutes import KEPT_MINUTES, SAMPLE_SECONDS, Recorder
from monitoring.console.panels.traffic import (
    REQUESTS,
    ROWS,
    SECONDS,
    TOTAL,
    counts_of,
    quantile,
    rates,
    traffic_of,
)
from serving.metrics import BUCKETS
from tests.conftest import answers, unused_port, wait_until
from tests.support.monitoring.page_text import one_line
from tests.support.serving.console import SAMPLE
from tests.support.serving.console import console as start_console
from tests.support.serving.event_requests import accepts, order
from tests.support.tools.prometheus import programs

pytestmark = pytest.mark.journey

NOW = datetime(2026, 11, 20, 12, 0, 30, tzinfo=UTC)
MINUTE = int(NOW.timestamp() // 60)
BURST = 150
BOUNDS = (*BUCKETS, inf)
FRESH_SECONDS = 0.5
"""How long a replica's answer is new enough; else a second."""


def counts(*numbers):
    return Counter({(REQUESTS, "m", f"{place}"): n for place, n in enumerate(numbers)})


def after(seconds):
    return NOW + timedelta(seconds=seconds)


def test_the_increases_of_a_minute_are_those_of_all_its_samples():
    samples = {NOW: counts(5, 2), after(20): counts(9, 2), after(60.02): counts(65, 2)}
    assert rates(samples) == counts(60, 0)
    assert rates({NOW: counts(5), after(30): counts(15)}) == counts(20)
    assert not rates({NOW: counts(5)}), "one sample is no difference"


def test_samples_of_one_moment_tell_no_rate():
    assert not rates({NOW: counts(5), after(0.2): counts(15)})


def test_counters_of_a_replica_that_was_restarted_count_from_0():
    before = counts(1_000, 300)
    assert rates({NOW: before, after(60): counts(7)}) == counts(7)
    # It answered more of one status than before, and has forgotten the other.
    assert rates({NOW: counts(5, 9), after(60): counts(8)}) == counts(8)
    later = {NOW: before, after(20): counts(4), after(60): counts(10)}
    assert rates(later) == counts(10)


def test_a_label_that_is_counted_for_the_first_time_counts_from_0():
    assert rates({NOW: counts(5), after(60): counts(5, 3)}) == counts(0, 3)


@pytest.mark.parametrize(
    ("share", "numbers", "expected"),
    [
        (0.5, {1.0: 10, 2.0: 10, inf: 10}, 0.5),
        (0.5, {1.0: 0, 2.0: 10, inf: 10}, 1.5),
        (0.5, {1.0: 5, 2.0: 10, inf: 10}, 1.0),
        (0.75, {1.0: 5, 2.0: 5, 4.0: 10, inf: 10}, 3.0),
        (0.99, {1.0: 5, 2.0: 5, inf: 10}, 2.0),
        (0.5, {1.0: 0, inf: 0}, None),
        (0.5, {}, None),
    ],
)
def test_a_quantile_lies_in_its_bucket(share, numbers, expected):
    assert quantile(share, numbers) == expected


@given(
    st.lists(st.integers(0, 50), min_size=len(BOUNDS), max_size=len(BOUNDS)),
    st.sampled_from((0.5, 0.95, 0.99)),
)
def test_a_quantile_is_within_the_bounds_of_the_bucket_that_has_it(numbers, share):
    values = [bound for bound, n in zip(BOUNDS, numbers, strict=True) for _ in range(n)]
    cumulative = {
        bound: sum(numbers[: place + 1]) for place, bound in enumerate(BOUNDS)
    }
    figure = quantile(share, cumulative)
    if not values:
        assert figure is None
        return
    # The value of which at least this share of all is not larger.
    place = BOUNDS.index(
        next(v for v in values if cumulative[v] >= share * len(values))
    )
    lower = BOUNDS[place - 1] if place else 0.0
    upper = BOUNDS[place]
    if upper == inf:
        assert figure == lower
    else:
        assert lower <= figure <= upper * (1 + 1e-9)


def test_a_quantile_is_that_of_prometheus(tmp_path):
    numbers = [0, 3, 3, 40, 77, 80, 80, 91, 99, 99, 99, 100, 104]
    series = [
        {
            "series": f'b{{le="{"+Inf" if bound == inf else bound}"}}',
            "values": f"{number}",
        }
        for bound, number in zip(BOUNDS, numbers, strict=True)
    ]
    buckets = dict(zip(BOUNDS, numbers, strict=True))
    shares = (0.01, 0.5, 0.75, 0.9, 0.95, 0.96, 0.99)
    tests = []
    for share in shares:
        value = quantile(share, buckets)
        # It computes with floats, too: the last of 17 digits may be another.
        expression = f"abs(histogram_quantile({share}, b) - {value!r}) < 1e-12"
        tests.append({"expr": f"count({expression})", "eval_time": "0m",
                      "exp_samples": [{"labels": "{}", "value": 1}]})  # fmt: skip
    document = {"tests": [{"input_series": series, "promql_expr_test": tests}]}
    file = tmp_path / "test.yml"
    file.write_text(yaml.safe_dump(document))
    promtool = programs("prometheus", "promtool") / "promtool"
    subprocess.run([promtool, "test", "rules", file], check=True)


def test_a_model_that_nobody_asks_has_no_latency():
    nobody = traffic_of("m", Counter())
    assert nobody == [0, None, None, None, 0, 0, None]
    some = Counter({
        (REQUESTS, "m", TOTAL): 12, (REQUESTS, "m", "429"): 2, (REQUESTS, "n", TOTAL): 99,
        (SECONDS, "m", "0.002"): 0, (SECONDS, "m", "0.005"): 8, (SECONDS, "m", "+Inf"): 8,
        (SECONDS, "m", TOTAL): 16, (ROWS, "m", "defaults"): 2, (ROWS, "m", TOTAL): 8,
    })  # fmt: skip
    assert traffic_of("m", some) == [12, 3.5, 4.85, 4.97, 2, 0, 25.0]


@pytest.fixture
def recorder(rig, served, tmp_path, monkeypatch):
    """Return a recorder of replicas of serving, by default the server of the tests."""
    reader = partial(CachedReader, seconds=FRESH_SECONDS)
    monkeypatch.setattr(minutes, "CachedReader", reader)

    def make(*addresses):
        urls = " ".join(addresses) or rig.settings.serving_address
        settings = rig.settings.model_copy(
            update={"home": tmp_path, "serving_url": urls}
        )
        return Recorder(settings, [rig.spec.name], CachedReader(dict))

    return make


def record(recorder, at):
    """Note a minute; a replica that was asked just now is not asked again."""
    time.sleep(1.1 * FRESH_SECONDS)
    recorder.record(at)


def is_silent(address):
    """Whether a replica that was killed has ended."""
    return not answers(f"{address}/health/live")


def requests_of(rig, recorder, at):
    """Requests of a minute of which only the seconds since the first sample are known."""
    subject = f"model/{rig.spec.name}"
    row = recorder.minutes[int((at - timedelta(seconds=10)).timestamp() // 60)]
    return row[subject][0] if subject in row else None


def test_the_counters_of_a_real_server_are_read(rig, served):
    before = counts_of(served.client.get("/metrics").text)
    for _ in range(5):
        rig.predict(served.client)
    served.client.post("/predict", json={})
    counted = counts_of(served.client.get("/metrics").text) - before
    name = rig.spec.name
    assert counted[REQUESTS, name, TOTAL] == 6
    assert counted[REQUESTS, name, "200"] == 5
    assert counted[REQUESTS, name, "422"] == 1
    assert counted[SECONDS, name, "+Inf"] == 5
    assert counted[ROWS, name, TOTAL] == 5


def test_a_stop_is_a_gap_and_a_restart_neither_negative_nor_huge(
    rig, fast_rig, served, recorder
):
    home = rig.second_home()
    port = unused_port()
    moments = [NOW + timedelta(minutes=count) for count in range(6)]
    with fast_rig.serving(home=home, serving_port=port) as (client, process):
        rig.known_to_be_ready(client)
        address = str(client.base_url).rstrip("/")
        one = recorder(address)
        record(one, moments[0])
        assert requests_of(rig, one, moments[0]) is None, "one sample is no difference"
        for _ in range(BURST):
            rig.predict(client)
        record(one, moments[1])
        assert requests_of(rig, one, moments[1]) > BURST
        process.kill()
        wait_until("its end", lambda: is_silent(address))
        record(one, moments[2])
        assert requests_of(rig, one, moments[2]) is None
        assert one.rows(f"model/{rig.spec.name}").keys() == {MINUTE + 1}
    with fast_rig.serving(home=home, serving_port=port) as (client, _):
        rig.known_to_be_ready(client)
        for _ in range(3):
            rig.predict(client)
        record(one, moments[3])
        record(one, moments[4])
        # Of the last minute: the burst before the restart, and what came since.
        for at in moments[3:5]:
            assert 0 < requests_of(rig, one, at) < 60 * (BURST + 3)


def test_a_replica_that_appears_adds_no_earlier_requests_and_one_that_goes_none(
    rig, fast_rig, served, recorder
):
    port = unused_port()
    address = f"http://127.0.0.1:{port}"
    two = recorder(rig.settings.serving_address, address)
    record(two, NOW)
    record(two, NOW)
    assert requests_of(rig, two, NOW) == 0
    home = rig.second_home()
    with fast_rig.serving(home=home, serving_port=port) as (client, _):
        rig.known_to_be_ready(client)
        for _ in range(BURST):
            rig.predict(client)
        record(two, NOW)
        assert requests_of(rig, two, NOW) == 0
        rig.predict(client)
        record(two, NOW)
        assert requests_of(rig, two, NOW) > 0
    wait_until("its end", lambda: is_silent(address))
    record(two, NOW)
    assert requests_of(rig, two, NOW) == 0


def test_at_most_24_hours_are_kept_whatever_the_clock_and_the_models_were(
    recorder, tmp_path
):
    one = recorder()
    old = {"model/deleted": [1.0] * 7}
    one.minutes = {MINUTE + age: old for age in range(-4 * KEPT_MINUTES, 500)}
    one.record(NOW)
    assert len(one.minutes) == KEPT_MINUTES
    assert max(one.minutes) == MINUTE
    assert list(one.minutes) == sorted(one.minutes)
    assert not (tmp_path / "console").exists()
    one.record(NOW + timedelta(seconds=30))  # the first sample of a minute
    assert recorder().minutes == one.minutes


@pytest.mark.parametrize(
    "content", [b"\x00\xff", b'{"29000000": {"model/m": [1.0', b"[]"]
)
def test_a_damaged_file_is_put_aside_with_a_message(
    recorder, tmp_path, caplog, content
):
    folder = tmp_path / "console"
    folder.mkdir()
    (folder / "minutes.json").write_bytes(content)
    one = recorder()
    assert one.minutes == {}
    assert (folder / "minutes.damaged").read_bytes() == content
    (message,) = caplog.messages
    assert f"{folder / 'minutes.json'} cannot be read; it is now" in message
    one.record(NOW)
    one.write()
    assert recorder().minutes.keys() == {MINUTE}


def test_figures_that_cannot_be_written_stay_in_memory(recorder, tmp_path, caplog):
    (tmp_path / "console").write_text("no folder")
    caplog.set_level(logging.WARNING)
    one = recorder()
    caplog.clear()
    one.record(NOW)
    one.write()
    assert one.minutes.keys() == {MINUTE}
    assert "figures by minute are not kept" in caplog.messages[-1]


def test_a_sample_that_fails_ends_no_recording(recorder, caplog, monkeypatch):
    monkeypatch.setattr(minutes, "SAMPLE_SECONDS", 0.5)
    # To Python's resolver this host is a UnicodeError, and no OSError.
    one = recorder("http://serving..svc:8000")
    caplog.set_level(logging.WARNING)
    stopped = threading.Event()
    recording = threading.Thread(target=one.run, args=(stopped,))
    recording.start()
    try:
        wait_until("another sample", lambda: len(caplog.messages) > 1)
        for message in caplog.messages:
            assert "no figures of this minute" in message
        assert recording.is_alive()
    finally:
        stopped.set()
        recording.join()


def rows_of(client, path, kind):
    """The figures by minute in a page."""
    text = client.get(path).text
    charts = json.loads(text.split('id="charts">')[1].partition("</script>")[0])
    return charts["minutes"][kind]


def page_of(client, path):
    return one_line(client.get(path).text)


def test_a_burst_is_seen_within_a_minute_and_kept_by_the_next_console(
    rig,
    served,
    consumer,
):
    """Two samples tell of a minute; here they are taken ten times as often."""
    assert 2 * SAMPLE_SECONDS < 60
    home = rig.second_home()
    page = f"/status/{rig.spec.name}"
    often = {SAMPLE: SAMPLE_SECONDS / 10}
    # It writes the last figures at SIGTERM, which the preloaded python does not take.
    with start_console(rig, sys.executable, often, home=home) as (client, process):
        wait_until("figures", lambda: rows_of(client, page, "model"), seconds=60)
        for _ in range(BURST):
            rig.predict(served.client)
        accepts(served, [order(71, 900_071), order(72, 900_071)], count=2)

        def most():
            return max(row[0] for row in rows_of(client, page, "model").values())

        wait_until("the burst", lambda: most() >= BURST, seconds=60)
        text = page_of(client, page)
        tile = text.split(">Requests a minute<")[1].partition("</div>")[0]
        number = re.search(r'class="value">([\d,]+)', tile)[1]
        assert int(number.replace(",", "")) >= BURST
        assert " ago</time>" in tile
        # Without a script, too.
        for words in ("requests a minute <b>", "p50 ms <b>", "p99 ms <b>", "429 a minute <b>",
                      "503 a minute <b>", "with default features, % of predictions <b>"):  # fmt: skip
            assert words in text, words
        card = page_of(client, "/").split("<dt>requests a minute</dt>")[1]
        assert " ago</time>" in card.partition("</div>")[0]

        data = f"/data/{rig.spec.dataset}"
        events = rows_of(client, data, "events").values()
        assert max(row[0] for row in events) >= 2
        assert rows_of(client, data, "lag")
        assert "consumer lag, s <b>" in page_of(client, data)

        process.terminate()
        process.wait(timeout=60)
    with start_console(rig, home=home) as (client, _):
        assert most() >= BURST


def test_where_serving_is_silent_figures_are_those_of_the_newest_monitoring_run(
    rig, served, monitored
):
    nobody = f"http://127.0.0.1:{unused_port()}"
    with start_console(rig, home=rig.second_home(), serving_url=nobody) as (client, _):
        card = "<dt>requests a minute</dt><dd><b>60</b>"
        wait_until("the monitoring run", lambda: card in page_of(client, "/"))
        assert "<dt>p99 latency</dt><dd><b>9.5</b> ms" in page_of(client, "/")
        page = page_of(client, f"/status/{rig.spec.name}")
        tiles = page.split('<section class="tiles"')[1].partition("</section>")[0]
        for figure in ('<span class="value">60', '<span class="value">9.5 <small>ms'):
            assert figure in tiles, figure
        assert "no figures by the minute yet: serving must answer twice" in page
