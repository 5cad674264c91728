"""Another use case is three files: next-quarter spend, a number, in a copy of the project."""

import json
import re

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from feature_engine.ingest.source import pull
from tests.conftest import AS_OF, new_settings
from tests.support.tools.clone import Copy, finished
from tests.training.conftest import ORDERS

pytestmark = pytest.mark.journey


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What spend_chain.py prints in a copy with the three files added."""
    folder = tmp_path_factory.mktemp("spend")
    project = folder / "project"
    settings = new_settings(project / ".gyre")
    rows = pull(settings, ORDERS, AS_OF).read_all()
    few = rows.filter(pc.less(rows["customer_id"], 3000))
    pq.write_table(few, folder / "spend.parquet")
    copy = Copy(project, settings)
    copy.run("cp -R tests/training/spend/. .")
    command = f"python -m tests.training.spend_chain {folder}"
    return json.loads(finished(command, project, copy.environment).stdout)


def test_a_model_of_numbers_is_chosen_by_rmse_and_replaces_the_old_one_by_its_gates(
    results,
):
    params = results["params"]
    assert params["chosen_by"] == "forward folds, rmse"
    assert "threshold" not in params
    metrics = results["metrics"]
    losses = [metrics[f"fold/rmse_{n}"] for n in ("ridge", "hist_gradient_boosting")]
    assert metrics[f"fold/rmse_{params['estimator']}"] == min(losses)
    assert {"fold/mae_ridge", "fold/mae_hist_gradient_boosting"} < metrics.keys()
    assert metrics["test/rmse"] < metrics["baseline/rmse"] < metrics["champion/rmse"]
    assert metrics["minus_champion/rmse_upper"] < 0
    assert {"test/mae", "test/r2", "test/ece"} < metrics.keys()
    assert "test/auc" not in metrics


def test_the_model_card_of_numbers_has_no_words_of_classes(results):
    card = re.sub(r"base64,[^\"]+", "", results["card"])
    expected = (
        "All 4 gates passed", "the number that <code>spend_90d</code> will be", "version 1",
        "mean prediction",
    )  # fmt: skip
    assert [text for text in expected if text not in card] == []
    of_classes = ("threshold", "probabilit", "fairness", "AUC", "Brier", "costs")
    assert [word for word in of_classes if word in card] == []


def test_the_served_answer_is_the_number_and_has_no_probability(results):
    answer = results["served"]
    number = answer["prediction"]
    assert "probability" not in answer
    assert number == float(f"{number:.6g}") > 0
    instance = results["kserve"]
    assert instance["score"] == instance["prediction"] == number
    log = {"prediction": number, "probability": None, "probabilities": None}
    assert results["logged"] == log
    rmse = results["metrics"]["test/rmse"]
    errors = np.subtract(results["predicted"], results["labels"])
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(rmse, rel=1e-6)
    assert results["feedback"] == [{"recorded": 1000, "logged": True}, 422]


def test_the_monitor_judges_outcomes_by_rmse_beyond_chance(results):
    by_chance = results["by_chance"]
    rmse = results["metrics"]["test/rmse"]
    # Of 1,000 rows with a heavy tail.
    assert by_chance["figures"]["online/rmse"] > 1.05 * rmse
    assert not [words for words in by_chance["bad"] if "rmse" in words]
    worse = results["worse"]["bad"]
    assert [words for words in worse if f", was {rmse:.3f}" in words]
