"""The hash of a feature's meaning: the same for the same meaning, in every process.

Python hashes texts otherwise in each process, so HASHES hold for every one of them.
"""

from dataclasses import replace
from datetime import timedelta

import ibis
from ibis import _

from feature_engine.windows import Window, Windows
from feature_repo.datasets import load_dataset
from feature_repo.definition_hash import view_definition

ORDERS = load_dataset("orders")
DAYS_30 = timedelta(days=30)
DAYS_90 = timedelta(days=90)
COUNT = Window(None, "count", DAYS_30, name="orders")
SPEND = Window("dollar_value", "sum", DAYS_90, name="spend", where=_.number_of_cds > 1)
MEAN = Window("dollar_value", "mean", name="mean")
PER_ORDER = {"per_order": _.spend / _.orders}


def windows(*parts, derived=PER_ORDER):
    return Windows("customer_id", "order_ts", parts, derived)


def by_hand(rows):
    """Columns that are left out, a join, a union and cases, as a view of one's own has them."""
    rows = rows.distinct().drop("superseded", "number_of_cds", "order_id").distinct()
    total = rows.group_by("customer_id").agg(total=rows.dollar_value.sum())
    joined = rows.join(total, "customer_id")
    shares = joined.select(
        "customer_id", "order_ts", share=joined.dollar_value / joined.total
    )
    level = ibis.cases((shares.share > 0.5, "most"), else_="some")
    large = shares.filter(shares.share > 0.9).mutate(level=ibis.literal("all"))
    return shares.mutate(level=level).union(large)


def definition(expression, *unread):
    dataset = replace(ORDERS, views={"view": expression})
    return view_definition(dataset, "view", frozenset(unread))


# A new Ibis or sqlglot may write the same meaning in another way: then each installation must give
# the explicit word once, which CHANGELOG.md has to say. The new hashes stand in the failure.
HASHES = [
    "362304103ecb3092122de7df824fcd0bb8073084ba70c1395cc67db3ca62ec26",
    "a0fc28635db70f3917f1f8dd4ab8fc2654ddea26dded51cbd35a94c79d5a00ca",
]


def test_the_installed_ibis_and_sqlglot_give_the_recorded_hashes():
    expressions = (ORDERS.views["customer_features"], by_hand)
    assert [definition(expression) for expression in expressions] == HASHES


def test_the_hash_changes_with_the_meaning_of_the_features_that_are_read():
    hash_of_both = definition(windows(COUNT, SPEND))
    for other in (
        windows(replace(COUNT, period=DAYS_90), SPEND),
        windows(COUNT, replace(SPEND, where=_.number_of_cds > 2)),
        windows(COUNT, SPEND, derived={"per_order": _.spend / (_.orders + 1)}),
    ):
        assert definition(other) != hash_of_both
    view = windows(COUNT, SPEND, MEAN)
    assert definition(view, "mean") == hash_of_both
    assert definition(view, "orders") != hash_of_both
