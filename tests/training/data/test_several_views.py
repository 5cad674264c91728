"""One service of two datasets and two entities: trained, served, compared, built again."""

import pytest

from tests.support.training.chains import in_project, own_project


@pytest.mark.nightly
def test_features_of_two_datasets_and_two_entities_go_through_the_whole_loop(tmp_path):
    project = own_project(tmp_path, "rebuy")
    in_project(project, f"python -m tests.training.rebuy_chain {tmp_path}")
