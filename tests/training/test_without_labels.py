"""A model of a team, of which there is no label: its spec from its signature, and a reference alone."""

from datetime import UTC, datetime

import pytest

from core.spec import load_spec
from mlflow_server.api.registry import Registry
from mlflow_server.api.tracking import Tracking
from monitoring.log.external import take_predictions
from monitoring.monitor import monitor
from tests.conftest import mlflow_server, new_settings
from tests.support.tools.preloaded import commands_folder
from tests.support.training.adoptions import take
from tests.support.training.loans import (
    MODEL,
    gyre,
    loans,
    make_project,
    save_model,
    scored,
    with_table,
)
from training.check import check
from training.evaluation.reference import load_reference
from training.summary import summary

pytestmark = pytest.mark.journey


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A project with a table of loans, and a model that a team saved."""
    folder = tmp_path_factory.mktemp("project")
    make_project(folder)
    (folder / "models" / f"{MODEL}.toml").unlink()
    save_model(folder / "saved")
    return folder


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    settings = new_settings(tmp_path_factory.mktemp("home"))
    with mlflow_server(settings):
        yield settings


def new(settings, folder, *options):
    """Return the finished process of a command that writes a spec for the model."""
    arguments = ["new", MODEL, "--model", "saved", *options]
    return gyre(settings, folder, *arguments, program=commands_folder() / "gyre")


def test_a_spec_is_written_from_a_signature_and_a_table_and_fits(settings, folder):
    missing = new(settings, folder)
    assert "--model: expected --from beside it" in missing.stderr
    options = ["--from", "loans.parquet", "--entity", "loan_id"]
    wrong = new(settings, folder, *options, "--outcome", "income")
    expected = "a column with the label ('' if there is none): defaulted; found income"
    assert f"--outcome: expected {expected}" in " ".join(wrong.stderr.split())
    assert not (folder / "models" / f"{MODEL}.toml").exists()
    # The one other column of times, and the one column that is left.
    done = new(settings, folder, *options)
    assert done.returncode == 0, done.stderr
    assert f"gyre adopt {MODEL} saved" in done.stdout
    spec = load_spec(MODEL, folder / "models")
    assert spec.features == {"income": "double", "children": "int64", "town": "string"}
    assert spec.label.source == "loans.parquet"
    label = spec.label.model_copy(update={"source": str(folder / "loans.parquet")})
    spec = spec.model_copy(update={"label": label})
    assert check(settings, spec, datetime.now(UTC))[0] == []
    again = new(settings, folder, *options)
    assert "there already, nothing was written" in " ".join(again.stderr.split())


def test_without_labels_it_is_not_measured_and_its_predictions_are_compared(
    settings, folder, tmp_path
):
    rows = loans().drop(columns="defaulted")
    rows.to_parquet(tmp_path / "loans.parquet")
    file = folder / "models" / f"{MODEL}.toml"
    file.unlink(missing_ok=True)
    options = ["--from", str(tmp_path / "loans.parquet")]
    options += ["--entity", "loan_id", "--outcome", ""]
    done = new(settings, folder, *options)
    assert done.returncode == 0, done.stderr
    text = file.read_text()
    text = text.replace(
        "[serving]", "[monitoring]\nfewest = 50\n\n[serving]\nexternal = true"
    )
    (tmp_path / file.name).write_text(text)
    spec = load_spec(MODEL, tmp_path)
    assert check(settings, spec, datetime.now(UTC))[0] == []
    report = take(settings, spec, str(folder / "saved"))
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
    usual_rows = with_table(spec, tmp_path / "usual.parquet")
    assert take_predictions(settings, usual_rows, "1").new_count
    usual = monitor(settings, spec, datetime.now(UTC))
    assert usual.figures["psi/income"] < 0.25
    assert usual.verdict == "ok", usual.words
    scored(factor=4).assign(
        request_id=lambda rows: "d" + rows["loan_id"].astype(str)
    ).to_parquet(tmp_path / "drifted.parquet")
    drifted = with_table(spec, tmp_path / "drifted.parquet")
    assert monitor(settings, drifted, datetime.now(UTC)).figures["psi/income"] > 0.25
