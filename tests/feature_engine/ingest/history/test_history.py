"""Which content of a key counts, held by a model that is written in another way than the product."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_engine.ingest.history import (
    MOST_CONTENTS,
    History,
    read_history,
    write_history,
)
from tests.support.feature_engine.sayings import Sayings

LAG = 1_000
CASES = {
    "S10 E20 E30 S20": "30",
    "S10 E20 E30 S20 S30": "30",
    "S10 E20 E30 S20 S30 S10": "10",
    "S10 E20 S10": "20",
    "S10 E20 S10 S10": "20",
    "S10 E20 S20 S10": "10",
    "S10 E20 S60": "60",
    "S10 E20 E10 S10": "10",
    "S10 E20 E10 S10 S20": "10",
    "S10 E20 E10 S10 S20 S10": "10",
    "E20": "20",
    "E20 S10": "10",
    "E20 S20 S10": "10",
    "E20 E30 S20": "30",
    "E20 E30 S20 S20": "30",
    "E20 E30 E20 S20": "20",
    "E20 E30 E20 S20 S30": "20",
    "S10 S20 S10": "10",
}


def row(value):
    return json.dumps({"value": int(value)}, sort_keys=True)


def after(steps, lag=LAG):
    history = History()
    for at, origin, value in steps:
        add = history.with_delivery if origin == "S" else history.with_event
        history = add(at, row(value))
    return history


def steps_of(words):
    return [(at, word[0], word[1:]) for at, word in enumerate(words.split())]


@pytest.mark.parametrize(("words", "value"), CASES.items())
def test_each_case_of_the_rule(words, value):
    assert after(steps_of(words)).counting_row(LAG) == row(value)


def test_an_event_that_lands_late_is_put_in_its_place():
    steps = [(0, "S", 10), (3, "S", 20), (1, "E", 20), (2, "E", 30)]
    assert after(steps).counting_row(LAG) == row(30)
    steps = [(5, "E", 99), (1, "S", 10), (9, "S", 10)]
    assert after(steps).counting_row(LAG) == row(99)


def test_an_entry_of_the_stream_counts_once():
    history = after(steps_of("S10 E20 E30 S20"))
    assert history.with_event(1, row(20)) == history
    assert history.with_event(2, row(30)) == history


requests = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), min_size=1)


@given(requests, st.randoms(use_true_random=False))
@settings(max_examples=500, deadline=None)
def test_of_several_events_at_one_time_the_last_counts_also_if_they_land_again(
    requests, random
):
    history = after(steps_of("S10"))
    for at, values in enumerate(requests, 1):
        for _ in range(random.choice([1, 1, 2])):
            landed = history
            for value in values:
                history = history.with_event(at, row(value), landed)
        contents = [content.digest for content in history.contents if content.at == at]
        assert len(contents) == len(values)
        assert history.counting_row(LAG) == row(values[-1])


def test_after_the_lag_what_an_event_said_is_news():
    steps = [(0, "S", 10), (1, "E", 20), (2, "E", 30), (LAG + 2, "S", 20)]
    assert after(steps).counting_row(LAG) == row(20)
    steps[-1] = (LAG + 1, "S", 20)
    assert after(steps).counting_row(LAG) == row(30)


def test_a_source_that_has_not_caught_up_is_behind_after_the_lag():
    history = after(steps_of("S10 E20"))
    assert not history.is_behind(LAG, LAG)
    assert history.is_behind(LAG + 2, LAG)
    assert not after(steps_of("S10 E20 S20")).is_behind(9 * LAG, LAG)
    assert not after(steps_of("E20")).is_behind(9 * LAG, LAG)


def test_what_older_releases_wrote_is_read():
    assert read_history("", row(20)).counting_row(LAG) == row(20)
    corrected = read_history(row(10), row(20))
    assert corrected.counting_row(LAG) == row(20)
    assert corrected.with_delivery(9, row(10)).counting_row(LAG) == row(20)
    assert corrected.with_delivery(9, row(30)).counting_row(LAG) == row(30)
    plain = read_history(None, row(10))
    assert plain.is_plain
    assert plain.with_event(9, row(20)).counting_row(LAG) == row(20)


def test_a_key_with_very_many_events_keeps_the_last_ones():
    history = after(steps_of("S10"))
    for number in range(MOST_CONTENTS + 50):
        history = history.with_event(number + 1, row(number))
        history = history.pruned(number + 1, 10**9, may_come_late=True)
    assert len(history.contents) == MOST_CONTENTS
    assert history.contents[0].origin == "s"
    late = history.with_delivery(10**6, row(MOST_CONTENTS))
    assert late.counting_row(10**9) == row(MOST_CONTENTS + 49)


steps = st.lists(
    st.tuples(st.integers(0, LAG // 2), st.sampled_from("SEE"), st.integers(0, 3)),
    min_size=1,
    max_size=25,
)


def timed(gaps):
    at = 0
    for gap, origin, value in gaps:
        at += gap + 1
        yield at, origin, value


@given(steps)
@settings(max_examples=1_000, deadline=None)
def test_histories_come_to_what_the_model_says(gaps):
    model = Sayings(LAG)
    history = History()
    stored = None
    for at, origin, value in timed(gaps):
        (model.deliver if origin == "S" else model.event)(at, value)
        history = after([(at, origin, value)]) if stored is None else stored
        if stored is not None:
            add = history.with_delivery if origin == "S" else history.with_event
            history = add(at, row(value))
        history = history.pruned(at, LAG, may_come_late=False)
        counting = history.counting_row(LAG)
        assert counting == row(model.counts)
        # As the table keeps it between two steps.
        text = None if history.is_plain else write_history(history, counting)
        stored = read_history(text, counting)


@given(steps, st.randoms(use_true_random=False))
@settings(max_examples=1_000, deadline=None)
def test_the_order_in_which_events_land_does_not_matter(gaps, random):
    """Each event lands at its time, or up to `LAG` later, as when the consumer stood."""
    known = [*timed(gaps)]
    expected = after(known).counting_row(LAG)
    lands = [(at, at, origin, value) for at, origin, value in known]
    for number, (at, _, origin, value) in enumerate(lands):
        if origin == "E" and random.random() < 0.5:
            lands[number] = (at + random.randint(0, LAG), at, origin, value)
    history = History()
    for landing, at, origin, value in sorted(lands, key=lambda step: step[0]):
        add = history.with_delivery if origin == "S" else history.with_event
        history = add(at, row(value))
        history = history.pruned(landing, LAG, may_come_late=True)
        text = history.counting_row(LAG)
        history = read_history(write_history(history, text), text)
    assert history.counting_row(LAG) == expected
