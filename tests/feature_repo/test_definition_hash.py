"""The hash of a feature's meaning: the same for the same meaning, in every process."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from datetime import timedelta
from itertools import permutations

import ibis
import pytest
from ibis import _

from core.settings import PROJECT
from feature_repo.datasets import load_dataset
from feature_repo.definition_hash import view_definition
from feature_repo.windows import Window, Windows

ORDERS = load_dataset("orders")
DAYS_30, DAYS_90 = timedelta(days=30), timedelta(days=90)
COUNT = Window(None, "count", DAYS_30, name="orders")
SPEND = Window("dollar_value", "sum", DAYS_90, name="spend", where=_.number_of_cds > 1)
MEAN = Window("dollar_value", "mean", name="mean")
PER_ORDER = {"per_order": _.spend / _.orders}


def windows(*parts, derived=PER_ORDER):
    return Windows("customer_id", "order_ts", parts, derived)


def every_function(rows):
    functions = ("count", "sum", "mean", "min", "max", "first", "last")
    parts = [Window("dollar_value", each, DAYS_30, name=each) for each in functions]
    return Windows("customer_id", "order_ts", parts)(rows)


def by_hand(rows):
    """Columns that are left out, a join, a union and cases, as a view of one's own has them."""
    rows = rows.distinct().drop("superseded", "number_of_cds", "order_id").distinct()
    total = rows.group_by("customer_id").agg(total=rows.dollar_value.sum())
    joined = rows.join(total, "customer_id")
    shares = joined.select("customer_id", "order_ts", share=joined.dollar_value / joined.total)
    level = ibis.cases((shares.share > 0.5, "most"), else_="some")
    large = shares.filter(shares.share > 0.9).mutate(level=ibis.literal("all"))
    return shares.mutate(level=level).union(large)


def definition(expression, *unread):
    dataset = dataclasses.replace(ORDERS, views={"view": expression})
    return view_definition(dataset, "view", frozenset(unread))


# A new Ibis or sqlglot may write the same meaning in another way: then each installation must give
# the explicit word once, which CHANGELOG.md has to say. The new hashes stand in the failure.
HASHES = {
    "orders.customer_features": "362304103ecb3092",
    "every_function": "d1837b768ee0a55d",
    "by_hand": "6f179524d92ec241",
}


def test_the_installed_ibis_and_sqlglot_write_what_they_wrote_before():
    now = {
        "orders.customer_features": view_definition(ORDERS, "customer_features"),
        "every_function": definition(every_function),
        "by_hand": definition(by_hand),
    }
    assert now == HASHES


def test_the_order_of_windows_does_not_count():
    parts = (COUNT, SPEND, MEAN)
    assert len({definition(windows(*order)) for order in permutations(parts)}) == 1


@pytest.mark.parametrize(
    "written",
    [
        lambda rows: rows.select("customer_id", "order_ts", doubled=rows.dollar_value * 2),
        lambda rows: rows.select("order_ts", "customer_id", doubled=rows.dollar_value * 2),
        lambda rows: rows.mutate(doubled=rows.dollar_value * 2).select(
            "doubled", "order_ts", "customer_id"
        ),
        lambda rows: (
            rows.select("customer_id", "order_ts", twice=rows.dollar_value * 2)
            .mutate(same=_.twice)
            .select("customer_id", "order_ts", doubled="same")
        ),
    ],
)
def test_other_ways_to_write_the_same_query_do_not_count(written):
    plain = definition(lambda rows: rows.select("customer_id", "order_ts", "dollar_value"))
    first = definition(
        lambda rows: rows.select("customer_id", "order_ts", doubled=rows.dollar_value * 2)
    )
    assert definition(written) == first != plain


@pytest.mark.parametrize(
    "other",
    [
        windows(dataclasses.replace(COUNT, period=DAYS_90), SPEND),
        windows(dataclasses.replace(COUNT, column="dollar_value"), SPEND),
        windows(dataclasses.replace(COUNT, name="number"), SPEND, derived={}),
        windows(COUNT, dataclasses.replace(SPEND, function="max")),
        windows(COUNT, dataclasses.replace(SPEND, where=_.number_of_cds > 2)),
        windows(COUNT, dataclasses.replace(SPEND, where=None)),
        windows(COUNT, SPEND, MEAN),
        windows(COUNT, SPEND, derived={"per_order": _.spend / (_.orders + 1)}),
        windows(COUNT, SPEND, derived={}),
    ],
)
def test_another_meaning_has_another_hash(other):
    assert definition(other) != definition(windows(COUNT, SPEND))


def test_a_feature_that_nobody_reads_does_not_count():
    more = windows(COUNT, SPEND, MEAN)
    assert definition(more, "mean") == definition(windows(COUNT, SPEND))
    assert definition(more, "orders") != definition(windows(COUNT, SPEND))


def test_constant_rows_count_by_their_content():
    def coded(number):
        def expression(rows):
            codes = ibis.memtable({"number_of_cds": [1, 2], "code": [number, 0]})
            return rows.join(codes, "number_of_cds").select("customer_id", "order_ts", "code")

        return expression

    assert definition(coded(5)) == definition(coded(5)) != definition(coded(6))


def test_every_process_computes_the_same_hash():
    code = (
        "from tests.feature_repo import test_definition_hash as t; print(t.definition(t.by_hand))"
    )
    hashes = {
        subprocess.check_output(
            [sys.executable, "-c", code],
            cwd=PROJECT,
            env=os.environ | {"PYTHONHASHSEED": seed},
        )
        for seed in "1234"
    }
    assert hashes == {f"{definition(by_hand)}\n".encode()}
