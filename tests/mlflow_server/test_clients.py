"""MLflow as its users have it: its client, its functions and the calls of its UI, by their defaults."""

import time
import warnings

import httpx
import mlflow
import numpy as np
import pytest
from mlflow.exceptions import MlflowException
from mlflow.models import infer_signature
from sklearn.linear_model import LogisticRegression

from tests.mlflow_server.conftest import client, new_model

pytestmark = pytest.mark.journey


@pytest.fixture
def api(settings):
    return client(settings)


def test_the_client_manages_models_and_versions_that_are_not_gyres(api):
    name = f"their model, {time.time_ns()}"
    api.create_registered_model(name, {"team": "risk"}, "made elsewhere")
    with pytest.raises(MlflowException, match="already exists"):
        api.create_registered_model(name)
    api.set_registered_model_tag(name, "empty", "")
    api.update_registered_model(name, "another")
    found = api.search_registered_models(f"name = '{name}'")[0]
    assert (found.tags, found.description) == ({"team": "risk", "empty": ""}, "another")
    for run in ("one", "one", "two"):
        api.create_model_version(name, f"runs:/{run}/model", run, {"run": run})
    versions = api.search_model_versions(f"name = '{name}' and run_id = 'one'")
    assert {str(version.version) for version in versions} == {"1", "2"}
    api.update_model_version(name, "1", "text")
    api.set_model_version_tag(name, "1", "key", "value")
    api.delete_model_version_tag(name, "1", "run")
    one = api.get_model_version(name, "1")
    assert (one.description, one.tags) == ("text", {"key": "value"})
    for alias in ("champion", "production", "shadow"):
        api.set_registered_model_alias(name, alias, "2")
        assert str(api.get_model_version_by_alias(name, alias).version) == "2"
        api.delete_registered_model_alias(name, alias)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # stages are deprecated
        api.transition_model_version_stage(name, "1", "Production")
        (latest,) = api.get_latest_versions(name, ["Production"])
    assert str(latest.version) == "1"
    copied = api.copy_model_version(f"models:/{name}/3", f"{name}, too")
    assert str(copied.version) == "1"
    api.delete_model_version(name, "3")
    api.rename_registered_model(name, f"{name}, renamed")
    for each in (f"{name}, renamed", f"{name}, too"):
        api.delete_registered_model(each)
    with pytest.raises(MlflowException, match="not found"):
        api.get_registered_model(name)


def test_a_model_logged_and_registered_by_one_function_is_loaded_by_its_alias(
    settings, api
):
    mlflow.set_tracking_uri(settings.mlflow_address)
    mlflow.set_experiment(f"their experiment {time.time_ns()}")
    x = np.arange(20.0).reshape(-1, 1)
    name = f"theirs{time.time_ns()}"
    with mlflow.start_run(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = LogisticRegression().fit(x, x[:, 0] > 9)
        mlflow.sklearn.log_model(
            fitted,
            name="model",
            registered_model_name=name,
            pip_requirements=["scikit-learn"],  # to find them takes a process seconds
            signature=infer_signature(x, fitted.predict(x)),
        )
    api.set_registered_model_alias(name, "production", "1")
    loaded = mlflow.pyfunc.load_model(f"models:/{name}@production")
    assert loaded.predict(x).tolist() == fitted.predict(x).tolist()


def test_the_calls_of_mlflows_pages_are_answered_and_a_role_is_in_the_ledger(
    settings, api, ledger
):
    model = new_model(settings, 2)
    run_id = api.get_model_version(model, "1").run_id
    address = f"{settings.mlflow_address}/ajax-api"
    with httpx.Client(
        headers={"Origin": settings.mlflow_address}, timeout=600
    ) as pages:

        def call(method, path, **more):
            answer = pages.request(method, f"{address}/{path}", **more)
            assert answer.status_code == 200, f"{path}: {answer.text}"
            return answer.json()

        by_name = {"filter": f"name='{model}'"}
        (found,) = call("GET", "2.0/mlflow/registered-models/search", params=by_name)[
            "registered_models"
        ]
        assert found["name"] == model
        shown = call("GET", "2.0/mlflow/model-versions/search", params=by_name)
        assert len(shown["model_versions"]) == 2
        searched = {"max_results": 25, "order_by": ["last_update_time DESC"]}
        assert call("POST", "2.0/mlflow/experiments/search", json=searched)
        runs = {"experiment_ids": ["0"], "order_by": ["attributes.start_time DESC"]}
        assert call("POST", "2.0/mlflow/runs/search", json=runs)["runs"]
        assert call("GET", "2.0/mlflow/runs/get", params={"run_id": run_id})
        call("GET", "2.0/mlflow/artifacts/list", params={"run_id": run_id})
        note = {"name": model, "description": "seen"}
        call("PATCH", "2.0/mlflow/registered-models/update", json=note)
        tag = {"name": model, "version": "1", "key": "seen", "value": "yes"}
        call("POST", "2.0/mlflow/model-versions/set-tag", json=tag)
        role = {"name": model, "alias": "production", "version": "2"}
        call("POST", "2.0/mlflow/registered-models/alias", json=role)
    row = ledger.rows(model)[-1]
    assert (row.role, row.to_version, row.who) == ("production", "2", "mlflow-ui")
