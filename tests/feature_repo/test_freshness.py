"""Two ages, each with its limit; and what is applied and not built."""

from __future__ import annotations

from datetime import timedelta

import pandas as pd
import pyarrow as pa
import pytest
from feast import Field
from feast.types import Int64

from core.errors import DataError
from core.storage import Table
from feature_repo.freshness import Freshness, freshness
from feature_repo.store import FeatureStore, open_store
from tests.conftest import AS_OF
from tests.feature_repo.test_ingest import DAY, order, shop  # noqa: F401  (a fixture)

HOUR = timedelta(hours=1)


@pytest.mark.parametrize(
    ("watermark", "newest", "causes"),
    [
        (None, None, []),
        (AS_OF - HOUR, AS_OF - 47 * HOUR, []),
        (AS_OF - 3 * HOUR, AS_OF, ["orders: features are not complete"]),
        (AS_OF, AS_OF - 49 * HOUR, ["orders: source is silent"]),
    ],
)
def test_what_is_too_old_is_said_with_since_when(watermark, newest, causes):
    found = Freshness("orders", watermark, newest, 2 * DAY).problems(AS_OF)
    assert [cause for cause, _ in found] == causes
    assert all(f"{cause} since 2099-11-" in why and "are expected" in why for cause, why in found)


def test_both_are_read_from_what_was_ingested(shop, as_of):  # noqa: F811
    shop.has(order(1, 1, as_of - DAY), order(2, 1, as_of - 2 * DAY))
    shop.ingest(as_of)
    found = freshness(shop.settings, "orders")
    assert (found.watermark, found.newest) == (as_of, as_of - DAY)
    assert found.problems(as_of) == []
    assert len(found.problems(as_of + 3 * DAY)) == 2


def says(settings, why, remedy="run: gyre ingest orders"):
    """Freshness and a training frame say the same, and why."""
    said = f"customer_features: applied, not built ({why}); {remedy}"
    found = freshness(settings, "orders")
    assert found.problems(found.watermark or AS_OF) == [(said, said)]
    frame = pd.DataFrame({"customer_id": [1], "event_timestamp": [AS_OF], "as_of": [0]})
    with pytest.raises(DataError) as refused:
        FeatureStore(settings).historical("customer_churn_v1", frame)
    assert str(refused.value) == said


def test_what_is_applied_and_not_built_is_said_and_nothing_is_trained_on_it(shop, as_of, tmp_path):  # noqa: F811
    settings = shop.settings
    says(settings, "no rows yet")
    shop.has(order(1, 1, as_of - DAY))
    shop.ingest(as_of)
    assert freshness(settings, "orders").not_built == ()
    another = {"definition": 0, "raw": 0}  # as an edited expression leaves it
    view = Table(settings, "features/customer_features", pa.schema([]))
    columns = pa.schema(view._open().schema())
    view.replace_files(tmp_path, columns, "period", "period < -9999", another)
    says(settings, "its rows are of another expression")
    shop.ingest(as_of + DAY)
    assert freshness(settings, "orders").not_built == ()
    store = open_store(settings, 60)
    view = store.get_feature_view("customer_features")
    view.features.append(Field(name="returns", dtype=Int64))
    store.apply(view)
    says(
        settings, "its expression gives no returns",
        "add it to the expression, then run: gyre ingest orders",
    )  # fmt: skip
