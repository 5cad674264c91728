"""A model without a feature view: its table has the features, and a request brings all of them."""

import sys
from datetime import UTC, datetime

import httpx
import pytest

from core.errors import DataError, NoRequestError, SettingsError
from core.spec import load_spec
from monitoring.monitor import monitor
from stack.environment import process_environment
from tests.conftest import answers, mlflow_server, new_settings, running, wait_until
from tests.support.training.loans import MODEL, SPEC, loans, make_project
from training.chain import train
from training.check import check
from training.data.frame import population

pytestmark = pytest.mark.journey


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    make_project(folder)
    return folder


@pytest.fixture
def spec(folder):
    spec = load_spec(MODEL, folder / "models")
    source = str(folder / "loans.parquet")
    label = spec.label.model_copy(update={"source": source})
    return spec.model_copy(update={"label": label})


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    settings = new_settings(tmp_path_factory.mktemp("home"))
    with mlflow_server(settings):
        yield settings


def test_such_a_model_is_trained_served_by_requests_alone_and_monitored(
    settings, spec, folder
):
    now = datetime.now(UTC)
    assert check(settings, spec, now) == ([], "rows: those of the label's table")
    report = train(settings, spec, now, key="first", reason="r", who="t")
    assert "version 1 is in production" in report.outcome
    log = settings.home / "serving.log"
    environment = process_environment(settings) | {"GYRE_PROJECT": str(folder)}
    rows = loans().tail(300)
    with (
        running([sys.executable, "-m", "serving"], log, **environment),
        httpx.Client(base_url=settings.serving_address, timeout=30) as http,
    ):

        def asked(row):
            return http.post(f"/models/{MODEL}/predict", json=row)

        is_ready = f"{settings.serving_address}/health/ready"
        wait_until("serving", lambda: answers(is_ready), 120)
        refused = asked({"loan_id": 1})
        assert refused.status_code == 422
        assert refused.json()["detail"] == (
            "features: version 1 needs income, children, town"
        )
        for row in rows.to_dict("records"):
            features = {name: row[name] for name in spec.features}
            answer = asked({"loan_id": row["loan_id"], "features": features}).json()
            assert answer["features_from"] == "request"
        report = monitor(settings, spec, datetime.now(UTC))
    figures = report.figures
    assert report.entities == len(rows)
    assert figures["psi/income"] < 0.25
    assert {"psi/children", "psi/town", "psi/score"} <= figures.keys()
    assert not [name for name in figures if name.startswith(("skew/share", "fresh"))]
    assert report.verdict == "ok", report.words


def test_what_such_a_model_lacks_is_named(settings, spec, folder):
    rows = loans().drop(columns="town")
    path = folder / "without.parquet"
    rows.to_parquet(path)
    label = spec.label.model_copy(update={"source": str(path)})
    (finding,), _ = check(
        settings, spec.model_copy(update={"label": label}), datetime.now(UTC)
    )
    assert (
        "expected a column for each feature among the label's rows, no town" in finding
    )
    with pytest.raises((DataError, NoRequestError)):
        population(settings, spec, datetime.now(UTC))
    text = SPEC.partition("[label]")
    rest = text[2].partition("[costs]")[2]
    (folder / f"{MODEL}.toml").write_text(f'{text[0]}label = "x"\n[costs]{rest}')
    with pytest.raises(
        SettingsError, match="feature_service: expected one, or a table"
    ):
        load_spec(MODEL, folder)
