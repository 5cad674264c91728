"""One service of two datasets and two entities: trained, served, compared, built again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from datetime import datetime

import pytest

from core.settings import CLONE
from tests.preloaded import commands_folder

REBUY = CLONE / "tests" / "training" / "rebuy"
STORE = "feature_repo/feature_store.yaml"
CHAIN = ["-m", "tests.training.rebuy_chain"]
OUTSIDE = """
from feast import FeatureView
outside = FeatureView(
    name="outside", entities=[customer], schema=[Field(name="worth", dtype=Float64)],
    source=customer_purchases.batch_source,
)
rebuy_v1 = FeatureService("""
CHECK = """
from datetime import UTC, datetime
from core.settings import Settings
from core.spec import load_spec
from training.check import check
print(*check(Settings(), load_spec("rebuy"), datetime.now(UTC))[0], sep="\\n")
"""


def run(project, *command, home):
    # Feast, once imported by a test, turns on Prometheus's multi-process mode for all children.
    own = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("PROMETHEUS_", "GYRE_"))
    }
    own |= {
        "GYRE_PROJECT": str(project),
        "GYRE_HOME": str(home),
        "PYTHONPATH": str(CLONE),
    }
    done = subprocess.run(
        [commands_folder() / "python", *command], cwd=project, env=own, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def project(tmp_path):
    """The use case in a project of its own."""
    folder = shutil.copytree(REBUY, tmp_path / "project")
    shutil.copy(CLONE / STORE, folder / STORE)
    return folder


@pytest.mark.parametrize(
    ("file", "old", "new", "finding"),
    [
        ("models/rebuy.toml", ', product_id = "int64"', "",
         ("rebuy.toml: entity_key: expected {'customer_id': 'int64', 'product_id': 'int64'}, found "
         "{'customer_id': 'int64'}")),
        ("feature_repo/datasets/purchases.py", "rebuy_v1 = FeatureService(", OUTSIDE,
         ("rebuy.toml: feature_service: rebuy_v1: expected views of a Dataset in "
         "feature_repo/datasets, found outside of none")),
        ("feature_repo/expectations/visits.json", '"product_id"', '"produkt_id"',
         ("feature_repo/expectations/visits.json: rule 2: expect_column_values_to_not_be_null: "
         "expected a column of the schema")),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_named_before_any_training(
    project, tmp_path, file, old, new, finding
):
    text = (project / file).read_text()
    assert old in text
    changed = text.replace(old, new)
    if new is OUTSIDE:
        changed = changed.replace(
            "product_visits, interest", "product_visits, interest, outside"
        )
    (project / file).write_text(changed)
    found = run(project, "-c", CHECK, home=tmp_path / "home").splitlines()
    assert [line for line in found if line.startswith(finding)], found


@pytest.mark.nightly
def test_features_of_two_datasets_and_two_entities_go_round_the_whole_loop(
    project, tmp_path
):
    work = tmp_path / "work"
    work.mkdir()
    said = json.loads(run(project, *CHAIN, str(work), home=tmp_path / "none"))
    # No training before both have rows; then the snapshots that both are known at.
    assert (
        said["no_rows"]
        == "TrainingError: purchases: no rows yet; run: gyre ingest purchases"
    )
    assert (
        said["no_visits"]
        == "TrainingError: visits: no rows yet; run: gyre ingest visits"
    )
    behind, caught_up = said["behind"], said["caught_up"]
    assert [behind["version"], caught_up["version"]] == ["1", "2"], (behind, caught_up)
    ends = [
        datetime.fromisoformat(run["tags"]["planned_as_of"])
        for run in (behind, caught_up)
    ]
    assert (ends[1] - ends[0]).days == 49  # 60 behind, 10 of the label's horizon
    # Something new in either is something new; in neither, nothing.
    assert (said["waits"], said["comes"]) == (False, True)
    assert said["nothing_new"].startswith("nothing new to learn")
    # Lineage: both tables pinned.
    for name in ("purchases", "visits"):
        tags = [run["tags"][f"table.raw.{name}"] for run in (behind, caught_up)]
        assert len(set(tags)) == (1 if name == "purchases" else 2)
    assert all(": reproduced" in text for text in said["reproduced"]), said[
        "reproduced"
    ]
    assert said["frame"][1] == dict.fromkeys(said["frame"][1], 0)
    # Whose members nobody can list: the label's rows are the population.
    assert said["members"] == "1"
    assert said["unlisted"].startswith(
        "NoRequestError: pairs: no view of rebuy_v1 has all of cus"
    )
    # Who reads what, and parity of every entity of every view.
    assert said["datasets"] == said["imported"] == ["purchases", "visits"]
    pairs, customers, products = said["entities"]
    assert (customers, products) == (said["customers"], 25)
    assert said["parity"] == [pairs * 5, []]
    assert said["check"] == [[], said["check"][1]]
    judge_answers(said)


def judge_answers(said):
    """Answers by both keys, and what the monitor says of them."""
    origins = {answer["features_from"] for answer in said["answers"]}
    assert origins == {"online"}
    assert {answer["model_version"] for answer in said["answers"]} == {"2"}
    assert said["unknown_product"]["features_from"] == "defaults"
    assert said["nobody"][0] == 404
    skew = said["monitor"]["skew"]
    assert skew["skew/vectors"] > 150
    assert skew["skew/share"] == 0, said["monitor"]
    late = " ".join(said["one_is_late"]["words"])
    assert "visits: features are not complete since" in late
    assert "purchases: features are not complete" not in late
    assert set(said["freshness"]) == {"purchases", "visits"}
    changed = (
        "DefinitionChangedError: product_visits (visits_7d, minutes_30d) changed: "
    )
    assert said["changed"].startswith(changed)
    assert "version 2 of rebuy (production) was trained" in said["changed"]
