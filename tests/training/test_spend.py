"""Another use case is three files: next-quarter spend, a number, in a project of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from core.settings import PROJECT
from feature_repo.source import pull
from tests.conftest import AS_OF, new_settings
from tests.preloaded import commands_folder
from tests.training.conftest import ORDERS

THREE = PROJECT / "tests" / "training" / "spend"
ROOMS = ("cli", "feature_repo", "mlflow_server", "models", "monitoring", "serving",
         "core", "stack", "tests", "training", "requirements.lock")  # fmt: skip


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What the whole chain (spend_chain.py) said in a copy with the three files added."""
    folder = tmp_path_factory.mktemp("second")
    project, source = folder / "project", folder / "orders.parquet"
    project.mkdir()
    for room in ROOMS:
        copy = shutil.copytree if (PROJECT / room).is_dir() else shutil.copy
        copy(PROJECT / room, project / room)
    shutil.copytree(THREE, project, dirs_exist_ok=True)
    rows = pull(new_settings(folder / "none"), ORDERS, AS_OF).read_all()
    pq.write_table(rows.filter(pc.less(rows["customer_id"], 3000)), source)
    command = [commands_folder() / "python", "-m", "tests.training.spend_chain"]
    # Feast, once imported by a test, turns on Prometheus's multi-process mode for all children.
    own = {k: v for k, v in os.environ.items() if not k.startswith("PROMETHEUS_")}
    done = subprocess.run(
        [*command, str(folder / "home"), str(source)], cwd=project, capture_output=True,
        text=True, check=False, env=own | {"PYTHONPATH": str(project)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_a_model_of_numbers_is_chosen_by_rmse_and_replaces_the_old_one_by_its_gates(
    said,
):
    assert [report["version"] for report in said["trained"]] == ["1", "2"]
    assert said["trained"][1]["outcome"] == "version 2 is in production, in place of 1"
    metrics, params = said["run"]["metrics"], said["run"]["params"]
    assert params["chosen_by"] == "search of 4 trials on forward folds, rmse"
    assert {"threshold", "threshold_by"}.isdisjoint(params)
    trials = [trial["fold/rmse"] for trial in said["trials"]]
    assert len(trials) == 4
    assert metrics[f"fold/rmse_{params['estimator']}"] == min(trials)
    assert metrics["test/rmse"] < metrics["baseline/rmse"] < metrics["champion/rmse"]
    assert metrics["minus_champion/rmse_upper"] < 0
    low, high = metrics["interval/rmse_low"], metrics["interval/rmse_high"]
    assert low < metrics["test/rmse"] < high
    measured = {
        name for name in metrics if name.startswith("test/") and "_" not in name
    }
    assert measured == {
        "test/rmse",
        "test/mae",
        "test/r2",
        "test/ece",
    }


def test_its_proof_has_no_flips_and_its_version_can_be_built_again(said):
    proof = said["proof"]
    assert (proof["passed"], proof["flips"]) == (True, None)
    assert proof["largest_difference"] < 1e-5
    same, summary = said["reproduced"]
    assert same, summary


def test_its_page_its_pictures_and_its_description_speak_of_numbers(said):
    card, found = said["card"], said["evaluation"]
    drawn = {
        "calibration.png",
        "feature_importance.png",
        "predicted_against_actual.png",
    }
    assert set(said["plots"]) == drawn
    assert card.count("data:image/png;base64,") == 3
    expected = (
        "All 3 gates passed", "the number that <code>spend_90d</code> will be", "version 1",
        f"[{found['intervals']['r2']['low']:.4f}, ", "mean prediction", "relative difference",
    )  # fmt: skip
    assert [text for text in expected if text not in card] == []
    words = re.sub(r"base64,[^\"]+", "", card)
    of_classes = ("threshold", "probabilit", "fairness", "AUC", "Brier", "costs")
    assert [word for word in of_classes if word in words] == []
    assert "rmse " in said["description"]
    assert [segment["value"] for segment in found["segments"]] == ["several", "single"]
    assert "largest_gap" not in found["figures"]


def test_the_served_answer_is_the_number_and_has_no_probability(said):
    (answer,), (instance,) = said["served"], said["kserve"]
    fields = ["customer_id", "basket", "prediction", "model_version", "request_id", "features_from",
              "in_population", "logged"]  # fmt: skip
    assert list(answer) == fields
    assert answer["prediction"] == float(f"{answer['prediction']:.6g}") > 0
    assert answer["logged"] is True
    assert instance["score"] == instance["prediction"] == answer["prediction"]
    assert said["logged"] == {"probability": None, "prediction": answer["prediction"]}
    assert said["rmse_of_answers"] == pytest.approx(
        said["run"]["metrics"]["test/rmse"], rel=1e-6
    )
    assert said["feedback"] == [{"recorded": 1000, "logged": True}, 422]


def test_the_monitor_judges_what_came_true_by_rmse_beyond_chance(said):
    by_chance, worse = said["monitor"]
    was = said["run"]["metrics"]["test/rmse"]
    # Of 1,000 rows with a heavy tail.
    assert by_chance["figures"]["online/rmse"] > 1.05 * was
    assert not [words for words in by_chance["bad"] if "rmse" in words]
    assert [words for words in worse["bad"] if f", was {was:.3f}" in words]
    assert "online/ece" not in by_chance["figures"]
    assert said["replay"]["rmse"] == said["run"]["metrics"]["champion/rmse"]


@pytest.mark.parametrize(
    ("case", "told"),
    [
        ("text", "label text: expected double, as a regression has it, found string"),
        ("one", "training rows is the same; every label of the "),
        ("infinite", "label infinite: expected a number up to 3.4e+38, found inf"),
        (
            "parameters",
            "estimator boosting: value -1 for Parameter learning_rate should be gre",
        ),
    ],
)
def test_what_cannot_be_learnt_is_one_line_and_the_outcome_of_a_failed_run(
    said, case, told
):
    line, status, outcome = said["refused"][case]
    assert told in line
    assert "\n" not in line
    assert (status, outcome) == ("FAILED", line)
