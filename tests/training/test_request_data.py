"""Request data offline: columns of the label's rows, in frame and parity."""

from __future__ import annotations

import importlib.util
import sys
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow.compute as pc
import pytest

from core.errors import NoRequestError, TrainingError
from core.settings import PROJECT
from core.spec import MISSING, Population, load_spec
from feature_repo.features import raw_table
from feature_repo.parity import parity
from feature_repo.service import PublishedService
from feature_repo.source import pull
from feature_repo.store import publish_beside
from feature_repo.views import write_views
from tests.conftest import AS_OF, new_settings
from tests.training.conftest import ORDERS
from training.frame import build_frame, features, population, with_features
from training.snapshots import Snapshot
from training.validate import mismatches

SHIPPED = load_spec("customer_churn_model")
FEATURES = {
    "lifetime_orders": "int64", "avg_order_value": "double", "above_average": "double",
    "offer": "string", "bulk": "int64", "boxes": "int32", "mean32": "float32", "loyal": "bool",
    "changed": "timestamp", "paid": "bool", "late": "timestamp", "eased": "double",
}  # fmt: skip
SPEC = SHIPPED.model_copy(
    update={"name": "carts", "dataset": "cart", "feature_service": "cart_v1",
            "label": "with_carts", "features": FEATURES, "segment": None,
            "population": Population(feature="lifetime_orders", below=10_000)}
)  # fmt: skip
FIELDS = {
    "cart_value": "double", "coupon": "string", "items": "int64", "rate": "float32",
    "gift": "bool", "due": "timestamp",
}  # fmt: skip
MOMENTS = [datetime(2099, 3, 1, tzinfo=UTC), datetime(2099, 6, 1, tzinfo=UTC)]
SNAPSHOTS = [Snapshot(each, each) for each in MOMENTS]


@pytest.fixture(scope="module")
def carts():
    """The dataset as a team puts it into place."""
    name = "feature_repo.datasets.cart"
    file = PROJECT / "tests" / "training" / "cart.py"
    found = importlib.util.spec_from_file_location(name, file)
    sys.modules[name] = module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    yield module.CARTS
    del sys.modules[name]


@pytest.fixture(scope="module")
def history(carts, tmp_path_factory):
    settings = new_settings(tmp_path_factory.mktemp("carts"))
    publish_beside(settings, carts)
    rows = pull(settings, ORDERS, AS_OF).read_all()
    rows = rows.filter(pc.less(rows["customer_id"], 1_000))
    table = raw_table(settings, carts)
    table.merge(
        rows.append_column("ingested_at", rows["order_ts"]),
        ORDERS.key,
        rows.column_names,
    )
    write_views(settings, carts, table)
    return settings


def frame_of(history, carts, label="with_carts"):
    spec = SPEC.model_copy(update={"label": label})
    return build_frame(
        history, spec, carts, SNAPSHOTS, AS_OF, raw_table(history, carts).version
    )


def test_a_frame_has_features_of_the_request_data_in_the_labels_rows(history, carts):
    frame = frame_of(history, carts)
    columns = ["customer_id", "event_timestamp", *FEATURES, "label", *FIELDS]
    assert frame.column_names == columns
    assert frame.num_rows > 100
    for row in frame.to_pylist():
        assert row["cart_value"] == (row["customer_id"] % 97 + 1) / 4
        assert row["above_average"] == row["cart_value"] - row["avg_order_value"]
        assert row["offer"].startswith("ten:" if row["customer_id"] % 2 == 0 else ":")
        assert row["bulk"] == row["customer_id"] % 5 * 12
        assert row["boxes"] == row["lifetime_orders"]
        assert row["mean32"] == np.float32(row["avg_order_value"])
        assert row["loyal"] == (None if row["boxes"] == 2 else row["boxes"] > 3)
        assert row["due"] == row["event_timestamp"] + timedelta(seconds=1)
        assert row["late"] == (row["due"] if row["loyal"] else None)
        assert (row["changed"].microsecond, row["paid"]) == (0, not row["gift"])
    again = with_features(
        history, SPEC, frame.select([c for c in columns if c not in FEATURES])
    )
    assert again.equals(frame)


@pytest.mark.parametrize("label", ["churned_90d", "without_coupon", "with_nulls"])
def test_label_rows_that_lack_request_data_are_one_line(history, carts, label):
    name, kind = (
        ("cart_value", "double") if label == "churned_90d" else ("coupon", "string")
    )
    said = rf"label {label}: expected request data {name} \({kind}\) in each of its rows, found"
    with pytest.raises(TrainingError, match=said):
        frame_of(history, carts, label)


def test_scores_without_requests_are_refused(history, carts):
    said = "carts: its features need cart_value, coupon, items, rate, gift, due of a request: only"
    for spec in (SPEC, SPEC.model_copy(update={"population": None})):
        with pytest.raises(NoRequestError, match=said):
            population(history, spec, AS_OF)
    assert mismatches(SPEC, carts, PublishedService(history, "cart_v1")) == []


def test_parity_of_every_feature_with_made_up_request_data(history, carts, monkeypatch):
    monkeypatch.setattr(
        "feature_repo.datasets._module_names", lambda: ["cart", "orders"]
    )
    report = parity(history, "cart_v1", MOMENTS)
    assert report.differences == ()
    assert report.features == len(FEATURES)
    assert report.entities > 100


def test_a_model_takes_every_type_as_one_of_three(history, carts):
    frame = frame_of(history, carts)
    inputs = features(SPEC, frame.filter(pc.is_valid(frame["loyal"])))
    late = inputs["late"].notna()
    assert {str(kind) for kind in inputs.dtypes} <= {
        "int64",
        "float64",
        "object",
        "str",
    }
    assert (inputs["changed"] % 1_000_000 == 0).all()
    assert set(inputs["loyal"]) == set(inputs["paid"]) == {0, 1}
    assert (
        late == (inputs["loyal"] == 1)
    ).all()  # null as of an int64: training refuses it
    assert SPEC.inputs["mean32"] == "double"


def test_audit_columns_stand_in_the_frame_and_are_no_inputs(history, carts):
    """One of the label's rows, one of the service."""
    features = {name: kind for name, kind in FEATURES.items() if name != "paid"}
    audit = {"region": "string", "paid": "bool"}
    spec = SPEC.model_copy(
        update={"features": features, "audit": audit, "label": "with_carts"}
    )
    version = raw_table(history, carts).version
    frame = build_frame(history, spec, carts, SNAPSHOTS, AS_OF, version)
    assert mismatches(spec, carts, PublishedService(history, "cart_v1")) == []
    assert frame.drop_columns([*audit]).equals(
        frame_of(history, carts).drop_columns("paid")
    )
    for row in frame.to_pylist():
        assert row["region"] == ("north" if row["customer_id"] % 3 == 0 else MISSING)
        assert row["paid"] == ("false" if row["gift"] else "true")
    assert not {*audit} & {*spec.inputs}


@pytest.mark.parametrize(
    ("audit", "said"),
    [
        ({"nowhere": "string"}, "audit.nowhere: expected string of cart_v1 or .*, found no such"),
        ({"region": "int64"}, "audit.region: expected int64 of .*, found string"),
    ],
)  # fmt: skip
def test_an_audit_column_that_is_not_there_is_one_line(history, carts, audit, said):
    spec = SPEC.model_copy(update={"audit": audit})
    with pytest.raises(TrainingError, match=f"carts.toml: {said}"):
        build_frame(
            history, spec, carts, SNAPSHOTS, AS_OF, raw_table(history, carts).version
        )
    wrong = SPEC.model_copy(update={"audit": {"gift": "string"}})
    assert mismatches(wrong, carts, PublishedService(history, "cart_v1")) == [
        "carts.toml: audit.gift: expected bool, found string"
    ]
