"""Decisions as rows beside the ledger."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from mlflow_server.records import DecisionRow, Records
from mlflow_server.window_details import WindowDetails
from tests.conftest import new_settings

FIRST = DecisionRow(
    "churn", "1", datetime(2026, 11, 20, 12, tzinfo=UTC), "bad", "nothing", "first_bad_window",
    "spend: PSI 0.31", "drift of version 1", "{}", {"psi_spend": 0.31},
)  # fmt: skip
DETAILS = WindowDetails(quantiles={"spend": (1.0, 2.0, 3.0, 4.0, 5.0)})


def test_decisions_come_back_oldest_first_and_one_decided_again_replaces_its_row(tmp_path):
    second = replace(FIRST, as_of=FIRST.as_of + timedelta(hours=1), action="retrain", rule="drift")
    other = replace(FIRST, model="other")
    with closing(Records(new_settings(tmp_path))) as records:
        for row in (FIRST, other, second, second):
            records.keep(row)
        assert records.decisions("churn") == [FIRST, second]
        assert records.decisions("churn", 1) == [second]
        assert records.decisions("other") == [other]


def test_decisions_are_in_the_order_of_what_they_are_about_not_of_when_they_were_taken(tmp_path):
    earlier = replace(FIRST, as_of=FIRST.as_of - timedelta(microseconds=1))
    with closing(Records(new_settings(tmp_path))) as records:
        for row in (FIRST, earlier):
            records.keep(row)
        assert records.decisions("churn") == [earlier, FIRST]
        assert records.decisions("churn", 1) == [FIRST]


def test_old_decisions_that_did_nothing_are_forgotten(tmp_path):
    hour = timedelta(hours=1)
    with closing(Records(new_settings(tmp_path))) as records:
        for n in range(20):
            records.keep(replace(FIRST, as_of=FIRST.as_of - n * hour))
        acted = replace(FIRST, as_of=FIRST.as_of - 500 * hour, action="retrain")
        records.keep(acted)
        for row in (acted, FIRST):
            records.keep_details("churn", row.as_of, DETAILS)
        assert records.forget_decisions(FIRST.as_of - 15 * hour) == 4 + 1
        assert records.forget_decisions(FIRST.as_of - 15 * hour) == 0
        left = records.decisions("churn")
        assert (left[0], len(left)) == (acted, 17)
        assert records.details("churn", acted.as_of) == {FIRST.as_of: DETAILS}
