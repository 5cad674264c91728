"""Request data offline: columns of the label's rows, in frame and parity."""

import importlib.util
import sys
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from core.errors import DataError, NoRequestError, TrainingError
from core.project import PROJECT
from core.spec import MISSING, Population
from feature_engine.ingest.source import pull
from feature_engine.offline.labels import dataset_labels
from feature_engine.offline.raw import raw_table
from feature_engine.parity import parity
from feature_repo.published.service import PublishedService
from feature_repo.published.store import publish_beside
from tests.conftest import AS_OF, new_settings
from tests.support.training.chains import store
from tests.training.conftest import ORDERS, SHIPPED
from training.data.frame import TIME_TYPE, build_frame, feature_columns, population
from training.data.requests import request_frame
from training.data.snapshots import Snapshot
from training.stages.validate import mismatches

FEATURES = {
    "lifetime_orders": "int64", "avg_order_value": "double", "above_average": "double",
    "offer": "string", "boxes": "int32", "mean32": "float32", "loyal": "bool",
    "changed": "timestamp", "late": "timestamp",
}  # fmt: skip
SPEC = SHIPPED.model_copy(
    update={"name": "carts", "dataset": "cart", "feature_service": "cart_v1",
            "label": "with_carts", "features": FEATURES, "segment": None,
            "audit": {"region": "string", "paid": "bool"},
            "population": Population(feature="lifetime_orders", below=10_000)}
)  # fmt: skip
REQUEST_DATA = ["cart_value", "coupon", "gift", "due"]
MOMENTS = [datetime(2099, 3, 1, tzinfo=UTC), datetime(2099, 6, 1, tzinfo=UTC)]
SNAPSHOTS = [Snapshot(moment, moment) for moment in MOMENTS]


@pytest.fixture(scope="module")
def carts():
    """The dataset as a team puts it into place."""
    name = "feature_repo.datasets.cart"
    file = PROJECT / "tests" / "training" / "cart.py"
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    yield module.CARTS
    del sys.modules[name]


@pytest.fixture(scope="module")
def history(carts, tmp_path_factory):
    settings = new_settings(tmp_path_factory.mktemp("carts"))
    publish_beside(settings, carts)
    rows = pull(settings, ORDERS, AS_OF).read_all()
    store(settings, carts, rows.filter(pc.less(rows["customer_id"], 1_000)))
    return settings


def frame_of(history, carts, **changes):
    spec = SPEC.model_copy(update=changes)
    version = raw_table(history, carts).version
    source = dataset_labels(history, carts, spec.label)
    return build_frame(history, spec, source, SNAPSHOTS, AS_OF, version)


@pytest.fixture(scope="module")
def frame(history, carts):
    return frame_of(history, carts)


def test_a_frame_has_features_of_the_request_data_in_the_rows_of_the_label(frame):
    columns = ["customer_id", "event_timestamp", *FEATURES, "label", *REQUEST_DATA]
    assert frame.drop_columns([*SPEC.audit]).column_names == columns
    assert frame.num_rows > 100
    for row in frame.to_pylist():
        customer = row["customer_id"]
        assert row["cart_value"] == (customer % 97 + 1) / 4
        assert row["above_average"] == row["cart_value"] - row["avg_order_value"]
        assert row["offer"].startswith("ten:" if customer % 2 == 0 else ":")
        assert row["boxes"] == row["lifetime_orders"]
        assert row["mean32"] == np.float32(row["avg_order_value"])
        assert row["loyal"] == (None if row["boxes"] == 2 else row["boxes"] > 3)
        assert row["due"] == row["event_timestamp"] + timedelta(seconds=1)
        assert row["late"] == (row["due"] if row["loyal"] else None)
        assert row["changed"].microsecond == 0
        # Audit columns: one of the label's rows, one of the service.
        assert row["region"] == ("north" if customer % 3 == 0 else MISSING)
        assert row["paid"] == ("false" if row["gift"] else "true")
    assert not {*SPEC.audit} & {*SPEC.inputs}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": "churned_90d"},
         r"label churned_90d: expected request data cart_value \(double\) in each of its rows, f"),
        ({"label": "with_nulls"},
         r"label with_nulls: expected request data coupon \(string\) in each of its rows, found"),
        ({"audit": {"nowhere": "string"}},
         r"carts.toml: audit.nowhere: expected string of cart_v1 or .*, found no such"),
        ({"audit": {"region": "int64"}},
         r"carts.toml: audit.region: expected int64 of .*, found string"),
    ],
)  # fmt: skip
def test_a_column_that_label_rows_lack_is_reported_in_one_line(
    history, carts, changes, message
):
    with pytest.raises(TrainingError, match=message):
        frame_of(history, carts, **changes)


def test_batch_scoring_of_a_model_with_request_data_is_refused(history, carts):
    fields = ", ".join(REQUEST_DATA)
    message = f"carts: its features need {fields} of a request: a population cannot be"
    with pytest.raises(NoRequestError, match=message):
        population(history, SPEC, AS_OF)


def test_rows_with_request_data_get_their_features(history, carts, frame):
    customers = frame["customer_id"].unique()[:4]
    due = AS_OF + timedelta(days=1)
    rows = pa.table(
        {
            "cart_value": pa.array([3, 5, 7, 9] * 2),
            "coupon": pa.array(["ten", ""] * 4),
            "gift": pa.array([True, False] * 4),
            "due": pa.array([due] * 8, TIME_TYPE),
            "customer_id": pa.concat_arrays([customers, customers]),
            "event_timestamp": pa.array([AS_OF] * 4 + [due] * 4, TIME_TYPE),
        }
    )
    scored = request_frame(history, SPEC, rows, AS_OF, "tomorrow")
    assert scored.num_rows == 8
    by_row = {
        (row["customer_id"], row["event_timestamp"]): row for row in rows.to_pylist()
    }
    for row in scored.to_pylist():
        brought = by_row[row["customer_id"], row["event_timestamp"]]
        assert row["cart_value"] == brought["cart_value"]
        difference = brought["cart_value"] - row["avg_order_value"]
        assert row["above_average"] == difference
        assert row["offer"].startswith(f"{brought['coupon']}:")


def test_all_columns_that_rows_lack_are_named_in_one_message(history, carts):
    rows = pa.table(
        {
            "customer_id": pa.array(["x"]),
            "coupon": pa.array([None], pa.string()),
            "cart_value": pa.array([1.5]),
            "due": pa.array([AS_OF], TIME_TYPE),
        }
    )
    message = (
        "carts: tomorrow: customer_id: expected int64, found string: 'x'; "
        "coupon: expected string, found rows without a value; "
        "gift: expected bool, found no such column"
    )
    with pytest.raises(DataError, match=message):
        request_frame(history, SPEC, rows, AS_OF, "tomorrow")


def test_a_key_whose_text_is_another_number_is_no_entity(history, carts, caplog):
    rows = pa.table(
        {
            "customer_id": ["7", "007"],
            "coupon": ["a", "b"],
            "gift": [True, False],
            "cart_value": [1.5, 2.5],
            "due": pa.array([AS_OF, AS_OF], TIME_TYPE),
        }
    )
    scored = request_frame(history, SPEC, rows, AS_OF, "tomorrow")
    assert scored["customer_id"].to_pylist() == [7]
    problem = "customer_id: expected int64, found string: '007'"
    assert f"carts: tomorrow: 1 of 2 rows are left out: {problem}" in caplog.text


def test_mismatches_of_spec_and_service_are_named(history, carts):
    service = PublishedService(history, "cart_v1")
    assert mismatches(SPEC, service) == []
    wrong = SPEC.model_copy(update={"audit": {"gift": "string"}})
    assert mismatches(wrong, service) == [
        "carts.toml: audit.gift: expected bool, found string"
    ]


def test_parity_holds_for_every_feature_with_generated_request_data(
    history, carts, monkeypatch
):
    loaded = ([carts, ORDERS], [])
    monkeypatch.setattr("feature_repo.datasets.load_datasets", lambda: loaded)
    report = parity(history, "cart_v1", MOMENTS)
    assert report.differences == ()
    assert report.features == len(FEATURES) + 1  # and the audit column `paid`
    assert report.entities > 100


def test_a_model_gets_every_type_as_an_integer_a_float_or_a_text(frame):
    inputs = feature_columns(SPEC, frame.filter(pc.is_valid(frame["loyal"])))
    kinds = {str(kind) for kind in inputs.dtypes}
    assert kinds <= {"int64", "float64", "object", "str"}
    assert (inputs["changed"] % 1_000_000 == 0).all()
    assert set(inputs["loyal"]) == {0, 1}
    assert (inputs["late"].notna() == (inputs["loyal"] == 1)).all()
