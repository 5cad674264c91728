"""What serving's workers read of roles, without MLflow and without a database."""

import pytest

from mlflow_server.roles import TRAFFIC_TAG, Deployed


@pytest.mark.parametrize(
    ("tag", "percent"),
    [("2:5", 5), ("2:100", 100), ("3:5", 0), ("2:0", 0), ("2:101", 0), ("2:05", 0),
     ("2:5.0", 0), (" 2:5", 0), ("2:5\n", 0), ("2:\u0665", 0), ("2", 0), ("", 0),
     ("2:5:5", 0)],
)  # fmt: skip
def test_a_traffic_tag_counts_only_with_the_version_and_a_whole_percent(tag, percent):
    tags = {TRAFFIC_TAG: tag}
    assert Deployed({"challenger": "2"}, tags).percent("challenger") == percent
    assert Deployed({}, tags).percent("challenger") == 0
