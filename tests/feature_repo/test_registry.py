"""Feast's registry on PostgreSQL."""

import gc
import sys

import pytest

from core.spec import load_spec
from feature_repo.published.service import PublishedService
from mlflow_server.database import open_database
from tests.conftest import new_settings, run_feast
from tests.support.stores.postgres import postgres_server

pytestmark = pytest.mark.journey


def test_a_store_that_is_not_used_any_more_leaves_no_connection_open(
    tmp_path, monkeypatch
):
    problems = []
    monkeypatch.setattr(sys, "unraisablehook", problems.append)
    with postgres_server(tmp_path / "postgres.log") as server:
        address = server.address.replace("s:", "sql:")
        settings = new_settings(tmp_path, database_url=address)
        open_database(settings).dispose()
        run_feast(settings, "apply", GYRE_DATABASE_URL=address)
        spec = load_spec("customer_churn_model")
        service = PublishedService(settings, spec.feature_service)
        assert service.join_keys
        del service
        gc.collect()
    assert problems == []
