"""A model that is watched and not served here: predictions arrive as rows, outcomes as ever."""

import json
import os
import re
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from random import Random

import httpx
import pandas as pd
import pyarrow as pa
import pytest

from core.errors import DataError
from core.spec import FLOAT32, load_spec
from monitoring.log.external import take_predictions
from monitoring.log.tables import predictions
from monitoring.monitor import monitor
from stack.environment import process_environment
from tests.conftest import answers, mlflow_server, new_settings, running, wait_until
from tests.support.feature_engine.odd.own_types import MISFIT
from tests.support.feature_engine.odd.source import NAMES
from tests.support.feature_engine.odd.team_rows import DOUBLES, TeamRows
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

FIRST = int(os.environ["ODD_SEED"])
NIGHT = [
    pytest.param(number, marks=pytest.mark.nightly)
    for number in range(FIRST, FIRST + 300)
]
KINDS = {
    "request_id": "text",
    "predicted_at": "time",
    "score": "float",
    "loan_id": "int",
    "income": "float",
    "children": "int",
    "town": "text",
}
IDS = ["a-1", "007", "7", "1e5", "x:1/2", "a b", "数", "NaN", "null", "y" * 138]
SCORES = [*DOUBLES, 0.25, 0.499999, 1.0000001, -0.1]
POOLS = {
    "request_id": {pa.string(): IDS, pa.int64(): [0, 7, -1, 2**63 - 1]},
    "score": {
        pa.float64(): SCORES,
        pa.float32(): SCORES,
        pa.int8(): [0, 1, 2, -1],
        pa.string(): [
            "0.25",
            "1e-3",
            "1.5",
            "0x1",
            "ten",
            "9,5",
            "0.1000000000000000055",
        ],
    },
}
ID = re.compile(r"[0-9A-Za-z._:/+=@-]{1,137}")
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
    assert take_predictions(settings, watched, "1").new_count == 5
    assert take_predictions(settings, watched, "1").new_count == 0


def wrong_columns(row):
    """Return the columns for which `POST /models/NAME/predictions` would refuse a row."""
    wrong = {name for name, value in row.items() if value is MISFIT}
    if row["request_id"] is MISFIT or not ID.fullmatch(row["request_id"]):
        wrong.add("request_id")
    if row["predicted_at"] is MISFIT or row["predicted_at"] > datetime.now(UTC):
        wrong.add("predicted_at")
    if isinstance(row["income"], float) and abs(row["income"]) > FLOAT32:
        wrong.add("income")
    is_probability = row["score"] not in (None, MISFIT) and 0 <= row["score"] <= 1
    return wrong if is_probability else wrong | {"score"}


@pytest.mark.parametrize("seed", [*range(20), *NIGHT])
def test_rows_of_a_table_arrive_as_they_are_or_are_counted(
    settings, spec, tmp_path, seed
):
    own_home = settings.model_copy(update={"home": tmp_path / "home"})
    names = Random(seed).sample(NAMES, len(KINDS))
    columns = dict(zip(KINDS, names, strict=True))
    rows = TeamRows(seed, KINDS, "loan_id", "town", POOLS, columns)
    watched = with_table(spec, rows.write(tmp_path), **columns)
    held_columns = [rows.held(name) for name in KINDS]
    arrived = {}
    refused = []
    for values in zip(*held_columns, strict=True):
        row = dict(zip(KINDS, values, strict=True))
        wrong = wrong_columns(row)
        if wrong:
            refused.append(wrong)
        else:
            arrived.setdefault(row["request_id"], row)
    taken = take_predictions(own_home, watched, "1")
    assert taken.new_count == len(arrived)
    assert sum(taken.refused.values()) == len(refused)
    found_reasons = {reason.rpartition(" ")[2] for reason in taken.refused}
    assert found_reasons <= set().union(*refused)
    stored_rows = predictions(own_home).read().to_pylist()
    assert {row["request_id"] for row in stored_rows} == arrived.keys()
    for stored in stored_rows:
        row = arrived[stored["request_id"]]
        features = {name: row[name] for name in FEATURES}
        assert json.loads(stored["features"]) == features
        assert stored["entity"] == str(row["loan_id"])
        assert stored["received"] == stored["as_of"] == row["predicted_at"]
        assert stored["probability"] == round(row["score"], 6)
    again = take_predictions(own_home, watched, "1")
    assert again.new_count == 0


def test_rows_that_another_model_is_days_ahead_of_arrive(settings, spec, tmp_path):
    own_home = settings.model_copy(update={"home": tmp_path / "home"})
    now = datetime.now(UTC)
    former = {"model": MODEL, "created": 1, "received": now}
    other = {"model": "other", "created": 2, "received": now}
    stored = predictions(own_home)
    others_rows = pa.Table.from_pylist(
        [former | {"request_id": "former"}, other | {"request_id": "other"}],
        schema=stored.schema,
    )
    stored.insert(others_rows, "request_id", "received")
    path = tmp_path / "predictions.parquet"
    watched = with_table(spec, path)
    rows = scored(count=9).assign(
        request_id=[f"row-{number}" for number in range(9)],
        predicted_at=[now - timedelta(days=days) for days in range(4, 13)],
    )
    rows[4:].to_parquet(path)
    assert take_predictions(own_home, watched, "1").new_count == 5
    rows.to_parquet(path)
    assert take_predictions(own_home, watched, "1").new_count == 4
    late_rows = rows.assign(request_id=[f"late-{number}" for number in range(9)])
    late_rows.to_parquet(path)
    assert take_predictions(own_home, watched, "1").new_count == 2


def test_versions_and_ids_that_pandas_made_doubles_are_whole_numbers(
    settings, spec, tmp_path
):
    own_home = settings.model_copy(update={"home": tmp_path / "home"})
    rows = scored(count=4).assign(request_id=[1, 2, None, 4], version=[1, None, 1, 2])
    assert rows["request_id"].dtype == rows["version"].dtype == "float64"
    rows.to_parquet(tmp_path / "predictions.parquet")
    watched = with_table(spec, tmp_path / "predictions.parquet")
    taken = take_predictions(own_home, watched, "1")
    assert taken.refused == {"rows of its table with a wrong request_id": 1}
    stored_rows = predictions(own_home).read().to_pylist()
    versions = {row["request_id"]: row["version"] for row in stored_rows}
    assert versions == {"1": "1", "2": "1", "4": "2"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"their score": True}, "score: expected double, found bool"),
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
