"""A model that is watched and not served here: predictions arrive as rows, outcomes as ever."""

from contextlib import contextmanager
from datetime import UTC, datetime

import httpx
import pandas as pd
import pytest

from core.errors import DataError
from core.spec import load_spec
from monitoring.log.external import take_predictions
from monitoring.log.tables import predictions
from monitoring.monitor import monitor
from stack.environment import process_environment
from tests.conftest import answers, mlflow_server, new_settings, running, wait_until
from tests.support.tools.preloaded import commands_folder
from tests.support.training.loans import (
    FEATURES,
    MODEL,
    SPEC,
    make_project,
    scored,
    with_table,
)
from training.chain import train

WATCHED = SPEC.replace(
    'missing_features = "defaults"', 'missing_features = "defaults"\nexternal = true'
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    make_project(folder, WATCHED)
    return folder


@pytest.fixture(scope="module")
def spec(folder):
    spec = load_spec(MODEL, folder / "models")
    source = str(folder / "loans.parquet")
    label = spec.label.model_copy(update={"source": source})
    return spec.model_copy(update={"label": label})


@pytest.fixture(scope="module")
def settings(tmp_path_factory, spec):
    settings = new_settings(tmp_path_factory.mktemp("home"))
    with mlflow_server(settings):
        report = train(settings, spec, datetime.now(UTC), key="k", reason="r", who="t")
        assert "version 1 is in production" in report.outcome
        yield settings


@contextmanager
def serving(settings, log, environment):
    command = [str(commands_folder() / "python"), "-m", "serving"]
    with running(command, log, **environment):
        ready = f"{settings.serving_address}/health/ready"
        wait_until("serving", lambda: answers(ready), 120)
        yield


def sent(row, number, **more):
    """The body of one prediction."""
    features = {name: row[name] for name in FEATURES}
    return {
        "request_id": f"theirs-{number}",
        "predicted_at": row["predicted_at"].isoformat(),
        "score": row["score"],
        "loan_id": row["loan_id"],
        "features": features,
    } | more


@pytest.mark.journey
def test_predictions_that_are_sent_are_watched_with_their_outcomes(
    settings, spec, folder
):
    log = settings.home / "serving.log"
    environment = process_environment(settings) | {"GYRE_PROJECT": str(folder)}
    rows = scored()
    records = rows.to_dict("records")
    bodies = [sent(row, number) for number, row in enumerate(records)]
    with serving(settings, log, environment):
        address = f"{settings.serving_address}/models/{MODEL}/predictions"
        answer = httpx.post(address, json=bodies, timeout=60)
        assert answer.json() == {"recorded": 300, "logged": True}
        assert httpx.post(address, json=bodies[0], timeout=60).is_success  # again
        for wrong, problem in (
            ({"score": 7.0}, "score: 7.0 is not a probability"),
            ({"predicted_at": "2999-01-01T00:00:00Z"}, "lies in the future"),
            ({"predicted_at": "2026-01-01T00:00:00"}, "timezone"),
            ({"features": {"income": 1.0}}, "children"),
            ({"loan_id": "x"}, "loan_id"),
        ):
            answer = httpx.post(address, json=bodies[0] | wrong, timeout=60)
            assert answer.status_code == 422
            assert problem in answer.text
        outcomes = [
            {"request_id": body["request_id"], "actual": int(row["defaulted"])}
            for body, row in zip(bodies, records, strict=True)
        ]
        feedback = f"{settings.serving_address}/feedback"
        assert httpx.post(feedback, json=outcomes, timeout=60).is_success
        document = httpx.get(f"{settings.serving_address}/openapi.json").json()
        assert "/models/{name}/predictions" in document["paths"]
        report = monitor(settings, spec, datetime.now(UTC))
    assert report.entities == 300
    assert report.malformed == 0
    assert report.figures["psi/income"] < 0.25
    assert "online/log_loss" in report.figures
    assert report.verdict == "ok", report.words


def test_predictions_of_a_table_arrive_once_and_their_drift_is_found(
    settings, spec, tmp_path
):
    rows = scored(factor=4).rename(columns={"score": "their score"})
    rows["their id"] = [f"row-{number}" for number in range(len(rows))]
    rows["version"] = "1"
    rows.to_parquet(tmp_path / "predictions.parquet")
    watched = with_table(spec, tmp_path, request_id="their id", score="their score")
    stored = predictions(settings)
    report = monitor(settings, watched, datetime.now(UTC))
    ids = stored.read()["request_id"].to_pylist()
    assert sum(name.startswith("row-") for name in ids) == 300
    assert report.figures["psi/income"] > 0.25
    assert report.verdict == "bad", report.words
    more = rows.head(5).assign(**{"their id": [f"late-{n}" for n in range(5)]})
    pd.concat([rows, more]).to_parquet(tmp_path / "predictions.parquet")
    assert take_predictions(settings, watched, "1") == 5
    assert take_predictions(settings, watched, "1") == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"their score": 7.0}, "row row-0: score: 7.0 is not a probability"),
        ({"income": None}, "expected a column income of"),
    ],
)
def test_a_wrong_table_is_named_and_adds_nothing(
    settings, spec, tmp_path, change, message
):
    rows = scored().rename(columns={"score": "their score"})
    rows["request_id"] = [f"row-{number}" for number in range(len(rows))]
    for name, value in change.items():
        rows = (
            rows.drop(columns=name) if value is None else rows.assign(**{name: value})
        )
    rows.to_parquet(tmp_path / "predictions.parquet")
    stored = predictions(settings)
    before = stored.read().num_rows if stored.exists else 0
    watched = with_table(spec, tmp_path / "predictions.parquet", score="their score")
    with pytest.raises(DataError, match=message):
        take_predictions(settings, watched, "1")
    assert (stored.read().num_rows if stored.exists else 0) == before


def test_a_model_that_is_served_here_takes_no_predictions_of_others(
    settings, folder, tmp_path
):
    other = tmp_path / "project"
    other.mkdir()
    make_project(other)
    log = settings.home / "serving2.log"
    environment = process_environment(settings) | {"GYRE_PROJECT": str(other)}
    with serving(settings, log, environment):
        address = f"{settings.serving_address}/models/{MODEL}/predictions"
        row = scored().to_dict("records")[0]
        answer = httpx.post(address, json=sent(row, 0), timeout=60)
    assert answer.status_code == 404
    assert "external = true" in answer.json()["detail"]
