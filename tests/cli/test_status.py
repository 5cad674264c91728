"""`gyre status` says what the console says, in a table that fits a terminal."""

import re
from contextlib import closing
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from io import StringIO

import pytest
from rich.console import Console

from cli.status import status_tables
from core.spec import load_spec
from mlflow_server.promotion.ledger import Ledger
from monitoring.console.loop import Card, Loop
from monitoring.console.states import STATE_WORDS, problems
from monitoring.decisions.store import store_decision
from tests.conftest import new_settings
from tests.support.monitoring.ledger_rows import LEDGER
from tests.support.monitoring.year import decision_row, fill
from tests.support.tools.clone import gyre

pytestmark = pytest.mark.journey

SPEC = load_spec("customer_churn_model")
HEAD = "model state version since req/min p99 errors"


def shown(cards, width, states=None, more=(), **terminal):
    """The lines of the status of these cards and states on a terminal."""
    document = {
        "models": {name: asdict(card) for name, card in cards.items()},
        "problems": [
            {
                "state": state.health,
                "of": subjects,
                "words": state.words,
                "remedy": state.remedy,
            }
            for state, subjects in problems(states or {})
        ],
        "processes": [],
        "pss_mib": 700,
        "broken_specs": [],
        "keys_behind": {},
    } | dict(more)
    text = StringIO()
    Console(file=text, width=width, force_terminal=True, **terminal).print(
        status_tables(document)
    )
    return text.getvalue().splitlines()


@pytest.fixture(scope="module")
def loop(tmp_path_factory):
    """The loop of a year of monitoring runs, of whose programs none runs."""
    settings = new_settings(tmp_path_factory.mktemp("year") / "home")
    fill(settings, SPEC, datetime.now(UTC))
    return Loop(settings).read()


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_has_the_consoles_word_and_order_and_fits(loop, width):
    lines = shown(loop.cards, width, loop.states, no_color=True, color_system=None)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert not {"None", "datetime", "Decimal"} & {*text.replace(",", " ").split()}
    assert " - " not in text
    first, *_ = problems(loop.states)
    assert lines[1].split()[0] == first.state.health
    place = lines.index(next(line for line in lines if line.split() == HEAD.split()))
    cells = lines[place + 1].split()
    assert cells[:2] == [SPEC.name, loop.cards[SPEC.name].word]
    assert f"{cells[3]} {cells[4]} ago" == "24 h ago"


def test_no_word_is_broken_on_80_columns():
    card = Card(
        state="attention",
        word="mismatched",
        version="120",
        since=datetime.now(UTC) - timedelta(days=99),
        requests_per_minute=10_000.0,
        p99_ms=200.4,
        failed_share=1.0,
    )
    lines = shown({SPEC.name: card}, 80, no_color=True, color_system=None)
    assert lines[0].split() == HEAD.split()
    assert "mismatched" in lines[1]
    assert not {"dat", "mat"} & {*" ".join(lines).split()}


def test_a_card_without_any_figure_is_unknown_in_words(loop):
    card = Card(state="unknown")
    lines = shown({"model": card}, 120, no_color=True, color_system=None)
    assert lines[1].split() == ["model", *["unknown"] * 6]


def test_figures_have_their_units_and_ages_are_ago():
    card = Card(
        state="attention",
        word="drifted",
        version="3",
        since=datetime.now(UTC) - timedelta(minutes=3, seconds=5),
        requests_per_minute=417.96,
        p99_ms=3.14,
        failed_share=0.0012,
    )
    lines = shown({"churn": card}, 80, no_color=True, color_system=None)
    assert lines[0].split() == HEAD.split()
    cells = re.split(" {2,}", lines[1].strip())
    assert cells == ["churn", "drifted", "3", "3 min ago", "418.0", "3.1 ms", "0.12%"]


def test_keys_that_differ_from_their_source_are_counted(loop):
    more = {"keys_behind": {"orders": 3}}
    lines = shown(loop.cards, 120, more=more, no_color=True, color_system=None)
    assert (
        "orders: keys that differ from their source: 3; to let it win: gyre ingest orders "
        "--source-wins"
    ) in lines


@pytest.mark.parametrize(
    ("word", "colour"),
    [
        ("healthy", "\x1b[32m"),
        ("unknown", "\x1b[33m"),
        *[(word, "\x1b[1;31m") for word in sorted({*STATE_WORDS.values(), "alerted"})],
    ],
)
def test_a_colour_has_one_meaning(word, colour):
    card = Card(state="ok", word=word)
    colours = {"color_system": "standard"}
    assert f"{colour}{word}" in "\n".join(shown({"churn": card}, 120, **colours))
    plain_lines = shown({"churn": card}, 120, **colours, no_color=True)
    assert "\x1b[3" not in "\n".join(plain_lines)


def test_gyre_models_says_of_which_version_the_verdict_is(tmp_path):
    settings = new_settings(tmp_path)
    with closing(Ledger(settings)) as ledger:
        ledger.insert(replace(LEDGER, to_version="2"))
    row = decision_row(
        model=SPEC.name, version="1", as_of=datetime.now(UTC), verdict="bad"
    )
    store_decision(settings, row)
    head, line = gyre(settings, "models").stdout.splitlines()
    assert head.split()[:2] == ["model", "production"]
    assert line.split()[:2] == [SPEC.name, "2"]
    assert "  version 1: bad  " in line
