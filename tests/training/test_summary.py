"""Two versions side by side, as `gyre compare MODEL A B` shows them."""

from mlflow_server.api.comparison import compare_versions
from tests.training.conftest import SPEC
from training.summary import summary


def test_two_versions_stand_side_by_side_and_what_differs_is_marked(
    tracked, first, second
):
    versions = (first.version, second.version)
    rows = compare_versions(tracked, SPEC.name, *versions)
    for row in rows:
        assert [*row] == ["fact", *versions, "differs"]
    facts = {row["fact"]: row for row in rows}
    assert {fact.split()[0] for fact in facts} == {
        "metric",
        "parameter",
        "feature",
        "gate",
    }
    for version in versions:
        metrics = summary(tracked, SPEC, version).evaluation.challenger
        for name, value in metrics.items():
            assert facts[f"metric {name}"][version] == round(value, 6)
    assert facts["metric log_loss"]["differs"]


def test_a_version_does_not_differ_from_itself(tracked, first):
    rows = compare_versions(tracked, SPEC.name, first.version, first.version)
    assert rows
    assert not any(row["differs"] for row in rows)
