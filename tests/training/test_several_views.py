"""One service of two datasets and two entities: trained, served, compared, built again."""

from __future__ import annotations

import json
import shutil
import subprocess
from datetime import datetime

import pytest

from core.settings import CLONE
from tests.cli.clone import outer_environment
from tests.preloaded import commands_folder

REBUY = CLONE / "tests" / "training" / "rebuy"
STORE = "feature_repo/feature_store.yaml"
OUTSIDE = """
from feast import FeatureView
outside = FeatureView(
    name="outside", entities=[customer], schema=[Field(name="worth", dtype=Float64)],
    source=customer_purchases.batch_source,
)
rebuy_v1 = FeatureService(
    name="rebuy_v1", features=[outside, """
CHECK = """
from datetime import UTC, datetime
from core.settings import Settings
from core.spec import load_spec
from training.check import check
print(*check(Settings(), load_spec("rebuy"), datetime.now(UTC))[0], sep="\\n")
"""


def run(project, *command, home):
    environment = outer_environment() | {
        "GYRE_PROJECT": str(project),
        "GYRE_HOME": str(home),
        "PYTHONPATH": str(CLONE),
    }
    done = subprocess.run(
        [commands_folder() / "python", *command], cwd=project, env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def project(tmp_path):
    """The use case in a project of its own."""
    folder = shutil.copytree(REBUY, tmp_path / "project")
    shutil.copy(CLONE / STORE, folder / STORE)
    return folder


def test_what_does_not_fit_together_is_named_before_any_training(project, tmp_path):
    edits = (
        ("models/rebuy.toml", ', product_id = "int64"', ""),
        (
            "feature_repo/datasets/purchases.py",
            'rebuy_v1 = FeatureService(\n    name="rebuy_v1", features=[',
            OUTSIDE,
        ),
    )
    for file, old, new in edits:
        text = (project / file).read_text()
        assert old in text
        (project / file).write_text(text.replace(old, new))
    lines = run(project, "-c", CHECK, home=tmp_path / "home").splitlines()
    starts = (
        "rebuy.toml: entity_key: expected {'customer_id': 'int64', 'product_id': 'int64'}, found ",
        "rebuy.toml: feature_service: rebuy_v1: expected views of a Dataset in feature_repo/",
    )
    for start in starts:
        assert [line for line in lines if line.startswith(start)], lines


@pytest.mark.nightly
def test_features_of_two_datasets_and_two_entities_go_through_the_whole_loop(
    project, tmp_path
):
    work = tmp_path / "work"
    work.mkdir()
    module = "tests.training.rebuy_chain"
    output = run(project, "-m", module, str(work), home=tmp_path / "none")
    results = json.loads(output)
    # No training before both have rows; then the snapshots that both are known at.
    for key, name in (("no_rows", "purchases"), ("no_visits", "visits")):
        assert results[key] == f"{name}: no rows yet; run: gyre ingest {name}"
    behind = results["behind"]
    caught_up = results["caught_up"]
    assert (behind["version"], caught_up["version"]) == ("1", "2")
    until = datetime.fromisoformat(caught_up["planned_as_of"])
    days = (until - datetime.fromisoformat(behind["planned_as_of"])).days
    assert days == 49  # 60 behind, 10 of the label's horizon
    assert results["learnable"] == [False, True]
    assert results["nothing_new"].startswith("nothing new to learn")
    # Lineage pins both tables.
    assert behind["table.raw.purchases"] == caught_up["table.raw.purchases"]
    assert behind["table.raw.visits"] != caught_up["table.raw.visits"]
    assert all(": reproduced" in text for text in results["reproduced"])
    assert results["datasets"] == ["purchases", "visits"]
    entities, features, differences = results["parity"]
    assert entities > 100
    assert features == 5
    assert differences == []
    assert results["check"] == []
    answers = results["answers"]
    assert {answer["features_from"] for answer in answers} == {"online"}
    assert {answer["model_version"] for answer in answers} == {"2"}
    assert results["unknown_product"]["features_from"] == "defaults"
    assert results["unknown_pair"] == 404
    skew = results["monitor"]["skew"]
    assert skew["skew/vectors"] > 150
    assert skew["skew/share"] == 0, results["monitor"]
    words = " ".join(results["one_is_late"]["words"])
    assert "visits: features are not complete since" in words
    assert "purchases: features are not complete" not in words
