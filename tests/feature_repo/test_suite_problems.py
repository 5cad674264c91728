"""A suite that Great Expectations cannot read stops the ingest, and each rule at fault is named."""

import pytest

from core.errors import DataError
from feature_repo.features import raw_table
from feature_repo.ingest import ingest
from feature_repo.quarantine import quarantine_table
from feature_repo.validation import DatasetRules, suite_problems
from tests.conftest import AS_OF, new_settings
from tests.feature_repo.test_ingest import ORDERS

IN_SET = "expect_column_values_to_be_in_set"
CDS = {"column": "number_of_cds", "value_set": [1]}
RULE = {"type": IN_SET, "kwargs": CDS}
WRONG_RULES = [
    (RULE | {"type": f"{IN_SET}t"}, f"{IN_SET}t not found"),
    (RULE | {"kwargs": CDS | {"mosty": 0.9}}, "mosty extra fields not permitted"),
    ("a text", 'found "a text"'),
]


def test_every_rule_that_cannot_be_built_is_named(suite):
    suite(RULE, *[rule for rule, _ in WRONG_RULES])
    problems = suite_problems(ORDERS)
    assert len(problems) == len(WRONG_RULES)
    for number, (_, expected) in enumerate(WRONG_RULES):
        place = f"expectations/orders.json: rule {number + 2}: "
        assert problems[number].startswith(place)
        assert expected in problems[number]
    with pytest.raises(DataError) as error:
        DatasetRules(ORDERS)
    assert all(problem in str(error.value) for problem in problems)


@pytest.mark.parametrize("text", ['{"expectations": ', '{"expect": []}', "[]"])
def test_an_unreadable_suite_is_reported_in_one_line_and_its_ingest_changes_nothing(
    suite, tmp_path, text
):
    suite(text=text)
    settings = new_settings(tmp_path / "home")
    with pytest.raises(DataError) as error:
        ingest(settings, "orders", AS_OF)
    message = str(error.value)
    assert "expectations/orders.json: expected Great Expectations' JSON" in message
    assert "\n" not in message
    tables = (raw_table(settings, ORDERS), quarantine_table(settings, ORDERS))
    assert [table.version for table in tables] == [-1, -1]
