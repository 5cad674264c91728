"""One service of two datasets and two entities: trained, served, compared, built again."""

from shlex import quote

import pytest

from tests.training.chains import in_project, own_project

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


@pytest.fixture
def project(tmp_path):
    return own_project(tmp_path, "rebuy")


def test_a_mismatch_of_spec_and_datasets_is_named_before_any_training(project):
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
    lines = in_project(project, f"python -c {quote(CHECK)}").splitlines()
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
    in_project(project, f"python -m tests.training.rebuy_chain {tmp_path}")
