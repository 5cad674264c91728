"""A model of a team, of which there is no label: its spec from its signature, and a reference alone."""

import subprocess
import sys
import warnings
from datetime import UTC, datetime

import mlflow.sklearn
import pytest
from mlflow.models import infer_signature
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from core.spec import load_spec
from mlflow_server.api.registry import Registry
from mlflow_server.api.tracking import Tracking
from monitoring.log.external import take_predictions
from monitoring.monitor import monitor
from stack.environment import process_environment
from tests.conftest import BIN, mlflow_server, new_settings
from tests.monitoring.test_watched_only import scored, with_table
from tests.support.training.loans import MODEL, loans, make_project
from training.adopt import adopt
from training.check import check
from training.evaluation.reference import load_reference
from training.summary import summary

FEATURES = ["income", "children", "town"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A project with a table of loans, and a model that a team saved."""
    folder = tmp_path_factory.mktemp("project")
    make_project(folder)
    (folder / "models" / f"{MODEL}.toml").unlink()
    rows = loans()
    columns = ColumnTransformer(
        [
            ("numbers", StandardScaler(), FEATURES[:2]),
            ("town", OneHotEncoder(), ["town"]),
        ]
    )
    model = make_pipeline(columns, LogisticRegression(max_iter=1000))
    model.fit(rows[FEATURES], rows["defaulted"].astype(int))
    with warnings.catch_warnings(action="ignore"):  # MLflow warns of itself
        mlflow.sklearn.save_model(
            model,
            folder / "saved",
            signature=infer_signature(rows[FEATURES], rows["income"]),
            serialization_format="skops",
        )
    return folder


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    settings = new_settings(tmp_path_factory.mktemp("home"))
    with mlflow_server(settings):
        yield settings


def gyre(settings, folder, *arguments):
    environment = process_environment(settings) | {"GYRE_PROJECT": str(folder)}
    command = [sys.executable, BIN / "gyre", *arguments]
    return subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        check=False,
        text=True,
    )


def test_a_spec_is_written_from_a_signature_and_a_table_and_fits(settings, folder):
    missing = gyre(settings, folder, "new", MODEL, "--model", "saved")
    assert "--model: expected beside it --from" in missing.stderr
    options = ["--model", "saved", "--from", "loans.parquet", "--entity", "loan_id"]
    wrong = gyre(settings, folder, "new", MODEL, *options, "--outcome", "income")
    assert "--outcome: expected a column with the label: defaulted; found income" in (
        " ".join(wrong.stderr.split())
    )
    assert not (folder / "models" / f"{MODEL}.toml").exists()
    # The one other column of times, and the one column that is left.
    done = gyre(settings, folder, "new", MODEL, *options)
    assert done.returncode == 0, done.stderr
    assert f"gyre adopt {MODEL} saved" in done.stdout
    spec = load_spec(MODEL, folder / "models")
    assert spec.features == {"income": "double", "children": "int64", "town": "string"}
    assert spec.label.source == "loans.parquet"
    label = spec.label.model_copy(update={"source": str(folder / "loans.parquet")})
    spec = spec.model_copy(update={"label": label})
    assert check(settings, spec, datetime.now(UTC))[0] == []
    again = gyre(settings, folder, "new", MODEL, *options)
    assert "there already, nothing was written" in " ".join(again.stderr.split())


def test_without_labels_it_is_not_measured_and_its_predictions_are_compared(
    settings, folder, tmp_path
):
    rows = loans().drop(columns="defaulted")
    rows.to_parquet(tmp_path / "loans.parquet")
    file = folder / "models" / f"{MODEL}.toml"
    text = file.read_text()
    text = text.replace('name = "defaulted"', 'name = ""').partition("[[gates]]")[0]
    text = text.replace('source = "loans', f'source = "{tmp_path}/loans')
    text = text.replace(
        "[serving]", "[monitoring]\nfewest = 50\n\n[serving]\nexternal = true"
    )
    (tmp_path / file.name).write_text(text)
    spec = load_spec(MODEL, tmp_path)
    now = datetime.now(UTC)
    assert check(settings, spec, now)[0] == []
    report = adopt(
        settings, spec, str(folder / "saved"), now, key="k", reason="r", who="t"
    )
    assert "version 1 is in production" in report.outcome
    assert (
        "Not measured: its table has no labels." in summary(settings, spec).markdown()
    )
    metrics = Tracking(settings).run(report.run_id).metrics
    assert "test/onnx_difference" in metrics
    assert "test/log_loss" not in metrics
    reference = load_reference(settings, Registry(settings).version(MODEL, "1"))
    assert len(reference.rows) > 50
    assert reference.rows["label"].isna().all()

    scored().assign(request_id=lambda rows: rows["loan_id"].astype(str)).to_parquet(
        tmp_path / "usual.parquet"
    )
    assert take_predictions(settings, with_table(spec, tmp_path / "usual.parquet"), "1")
    usual = monitor(settings, spec, datetime.now(UTC))
    assert usual.figures["psi/income"] < 0.25
    assert usual.verdict == "ok", usual.words
    scored(factor=4).assign(
        request_id=lambda rows: "d" + rows["loan_id"].astype(str)
    ).to_parquet(tmp_path / "drifted.parquet")
    drifted = with_table(spec, tmp_path / "drifted.parquet")
    assert monitor(settings, drifted, datetime.now(UTC)).figures["psi/income"] > 0.25
