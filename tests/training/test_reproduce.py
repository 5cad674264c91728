"""A version is built again in another folder: the same, or the reason why not."""

from __future__ import annotations

from datetime import timedelta

import pyarrow as pa
import pytest
from deltalake import DeltaTable
from typer.testing import CliRunner

from cli.main import typer_app
from feature_repo.ingest import raw_table
from mlflow_server.connection import client
from mlflow_server.registry import Registry
from stack.errors import RegistryError, SettingsError
from stack.spec import load_spec
from tests.conftest import AS_OF
from tests.training.conftest import ORDERS
from training import chain
from training.reproduce import reproduce

OLD = AS_OF - timedelta(days=180)
SHIPPED = load_spec("customer_churn_model")
OTHER = {"name": "to_be_built_again", "experiment": "to_be_built_again"}


@pytest.fixture(scope="module")
def versions(tracked) -> dict[str, str]:
    """One version of each shipped estimator, by type."""
    made = {}
    for estimator in SHIPPED.estimators:
        spec = SHIPPED.model_copy(update=OTHER | {"estimators": (estimator,)})
        run_id = chain.open_run(tracked, spec, OLD, key=estimator.name, reason="r", who="t")
        for stage in (chain.dataset, chain.fit, chain.evaluate):
            stage(tracked, spec, run_id)
        made[estimator.type] = chain.register(tracked, spec, run_id)
    return made


def with_raw(settings, home, change):
    """The same MLflow, and a home of its own whose raw table holds what `change` made of it."""
    beside = settings.model_copy(update={"home": home, "mlflow_url": settings.mlflow_address})
    rows = raw_table(settings, ORDERS).read()
    raw_table(beside, ORDERS).merge(change(rows), ORDERS.key, rows.column_names)
    return beside


def others(report) -> set[str]:
    return {part.name for part in (*report.causes, *report.results) if not part.same}


@pytest.mark.parametrize("estimator", [each.type for each in SHIPPED.estimators])
def test_every_shipped_estimator_is_the_same_to_the_byte(tracked, versions, estimator, tmp_path):
    before = sorted(path for path in tracked.home.rglob("*") if "mlflow" not in str(path))
    folder = tmp_path / "elsewhere"
    report = reproduce(tracked, OTHER["name"], versions[estimator], folder)
    assert report.reproduced, report.summary()
    assert (others(report), report.largest_difference) == (set(), 0)
    assert f"model.onnx ({estimator})" in [part.name for part in report.results]
    assert (folder / "model.onnx").stat().st_size > 1000
    assert sorted(p for p in tracked.home.rglob("*") if "mlflow" not in str(p)) == before
    with pytest.raises(SettingsError, match="expected an empty folder"):
        reproduce(tracked, OTHER["name"], versions[estimator], folder)


def test_one_row_that_is_another_is_named(tracked, versions, tmp_path):
    def changed(rows: pa.Table) -> pa.Table:
        at = rows.schema.get_field_index("dollar_value")
        values = rows["dollar_value"].to_pylist()
        values[0] = values[0] * 2 + 1
        return rows.set_column(at, "dollar_value", pa.array(values))

    beside = with_raw(tracked, tmp_path / "copy", changed)
    report = reproduce(beside, OTHER["name"], versions["random_forest"])
    named = {"raw table orders, identity", "raw table orders, rows of version 0"}
    assert not report.reproduced
    assert others(report) & {part.name for part in report.causes} == named
    assert "because: raw table orders, rows of version 0: another" in report.summary()


def test_a_version_of_the_table_that_was_vacuumed_is_an_obstacle(tracked, versions, tmp_path):
    beside = with_raw(tracked, tmp_path / "copy", lambda rows: rows)
    table = raw_table(beside, ORDERS)
    later = table.read().slice(0, 5).set_column(4, "dollar_value", pa.array([1.0] * 5))
    table.merge(later, ORDERS.key, ["dollar_value"])
    DeltaTable(str(table.path)).vacuum(0, dry_run=False, enforce_retention_duration=False)
    report = reproduce(beside, OTHER["name"], versions["random_forest"])
    assert not report.reproduced
    assert "impossible: table orders: its version 0 cannot be read, vacuumed" in report.summary()


def test_what_differs_is_named_and_alone_is_no_verdict(tracked, versions):
    """Another lock file and other code than the version names, and an edited stored spec."""
    name, version = OTHER["name"], versions["logistic_regression"]
    api, tags = client(tracked), Registry(tracked).version(name, version).tags
    for tag in ("lock_sha256", "code_sha256"):
        api.set_model_version_tag(name, version, tag, "0" * 64)
    run_id = api.get_model_version(name, version).run_id
    spec = load_spec("customer_churn_model").model_copy(update=OTHER | {"seed": 8})
    try:
        api.log_text(run_id, spec.model_dump_json(), "spec.json")
        found = CliRunner().invoke(
            typer_app, ["reproduce", name, version],
            env={"GYRE_HOME": str(tracked.home), "GYRE_MLFLOW_PORT": str(tracked.mlflow_port)},
        )  # fmt: skip
    finally:
        for tag in ("lock_sha256", "code_sha256"):
            api.set_model_version_tag(name, version, tag, tags[tag])
    assert found.exit_code == 0, found.output
    for part in ("code", "requirements.lock", "spec (spec.json of its run)"):
        assert f"{part}: another, then " in found.stdout
    api.log_text(run_id, "{}", "spec.json")
    with pytest.raises(RegistryError, match="stored spec is none that this code knows"):
        reproduce(tracked, name, version)
