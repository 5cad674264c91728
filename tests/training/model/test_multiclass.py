"""A model of many classes, through the loop in a project of its own."""

import json
from datetime import timedelta

import numpy as np
import pandas as pd
import pytest

from tests.conftest import AS_OF
from tests.support.training.chains import in_project, own_project

CLASSES = ["early", "on_time", "late"]


def write_parcels(path):
    """300 couriers, each with a usual delay, some parcels a week for 120 days."""
    random = np.random.default_rng(5)
    days = 120
    couriers = 300
    count = days * couriers
    delay = np.repeat(random.normal(0, 4, couriers), days)
    seconds = 86_400 * np.tile(np.arange(days), couriers)
    seconds += random.integers(0, 86_400, count)
    start = AS_OF - timedelta(days=days)
    columns = {
        "parcel": np.arange(count),
        "courier": np.repeat(np.arange(couriers), days),
        "delivered_at": start + pd.to_timedelta(seconds, "s"),
        "minutes_late": (delay + random.normal(0, 6, count)).round(2),
        "region": np.repeat(random.choice(["north", "south"], couriers), days),
    }
    rows = pd.DataFrame(columns)[random.random(count) < 0.6]
    rows.to_parquet(path, index=False, coerce_timestamps="us")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What delivery_chain.py prints in a project that is a folder of its own."""
    folder = tmp_path_factory.mktemp("deliveries")
    write_parcels(folder / "parcels.parquet")
    project = own_project(folder, "deliveries")
    command = f"python -m tests.training.delivery_chain {folder}"
    return json.loads(in_project(project, command))


@pytest.mark.nightly
def test_a_model_of_three_classes_is_checked_trained_promoted_and_reproduced(results):
    assert results["check"] == []
    metrics = results["metrics"]
    assert metrics["test/log_loss"] < metrics["baseline/log_loss"] < np.log(3) + 0.01
    assert metrics["test/f1"] > metrics["baseline/f1"] > 0
    assert metrics["training/leaves"] in {4, 8}
    assert {"test/auc", "test/cost", "test/threshold"}.isdisjoint(metrics)
    words = "the probability of each <code>next_14d</code>: early, on_time, late"
    assert words in results["card"]


@pytest.mark.nightly
def test_every_answer_has_the_name_and_the_probability_of_each_class(results):
    answer = results["served"]
    probabilities = answer["probabilities"]
    assert list(probabilities) == CLASSES
    scores = [*probabilities.values()]
    assert sum(scores) == pytest.approx(1, abs=2e-6)
    position = int(np.argmax(scores))
    assert answer["prediction"] == CLASSES[position]
    assert answer["probability"] == max(scores)
    assert results["logged"] == {
        "prediction": position, "probability": max(scores), "probabilities": scores
    }  # fmt: skip
    instance = results["kserve"]
    assert (instance["score"], instance["prediction"]) == (scores, CLASSES[position])
    row = results["batch_row"]
    assert results["batch"] >= 290
    assert row["prediction"] == int(np.argmax(row["probabilities"]))


@pytest.mark.nightly
def test_outcomes_are_names_or_positions_and_the_monitor_measures_by_them(results):
    outcomes = [CLASSES[label] for label in results["labels"]]
    figures = results["figures"]
    assert results["feedback"] == {"recorded": len(outcomes), "logged": True}
    assert results["left_out"] == {"no outcome of its task": 1}
    pairs = zip(results["predicted"][1:], outcomes[1:], strict=True)
    accuracy = np.mean([predicted == outcome for predicted, outcome in pairs])
    assert figures["online/accuracy"] == pytest.approx(accuracy)
    loss = results["metrics"]["test/log_loss"]
    assert figures["online/log_loss"] == pytest.approx(loss, abs=0.02)
    assert {"online/f1", "psi/score", "psi/predicted_class"} <= figures.keys()
    verdict, words = results["verdict"]
    assert verdict == "ok", words
