"""Decisions as rows beside the ledger."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from mlflow_server.records import DecisionRow, Records
from mlflow_server.window_details import Bin, WindowDetails
from tests.conftest import new_settings

FIRST = DecisionRow(
    "churn", "1", datetime(2026, 11, 20, 12, tzinfo=UTC), "bad", "nothing", "first_bad_window",
    "spend: PSI 0.31", "drift of version 1", "{}", {"psi_spend": 0.31},
)  # fmt: skip
DETAILS = WindowDetails(quantiles={"spend": (1.0, 2.0, 3.0, 4.0, 5.0)})


def test_decisions_come_back_oldest_first_and_one_decided_again_replaces_its_row(
    tmp_path,
):
    second = replace(
        FIRST, as_of=FIRST.as_of + timedelta(hours=1), action="retrain", rule="drift"
    )
    other = replace(FIRST, model="other")
    with closing(Records(new_settings(tmp_path))) as records:
        for row in (FIRST, other, second, second):
            records.keep(row)
        assert records.decisions("churn") == [FIRST, second]
        assert records.decisions("churn", 1) == [second]
        assert records.decisions("other") == [other]


def test_decisions_are_in_the_order_of_what_they_are_about_not_of_when_they_were_taken(
    tmp_path,
):
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


def test_of_each_span_comes_the_one_that_acted_else_a_bad_one_else_the_newest(tmp_path):
    day = FIRST.as_of.replace(hour=0)
    hours = {
        day.replace(hour=1): ("bad", "retrain"), day.replace(hour=2): ("bad", "nothing"),
        day.replace(hour=5): ("ok", "nothing"), day.replace(hour=6): ("bad", "nothing"),
        day.replace(hour=11): ("ok", "nothing"), day.replace(hour=12): ("ok", "nothing"),
        day.replace(hour=13): ("insufficient_data", "nothing"),
    }  # fmt: skip
    with closing(Records(new_settings(tmp_path))) as records:
        for at, (verdict, action) in hours.items():
            records.keep(replace(FIRST, as_of=at, verdict=verdict, action=action))

        def chosen(**of):
            found = records.decisions_since("churn", day, **of)
            assert {row.inputs for row in found} <= {""}
            assert {row.reason for row in found} <= {FIRST.reason}
            return [row.as_of.hour for row in found]

        assert chosen() == [1, 2, 5, 6, 11, 12, 13]
        assert chosen(hours=6) == [1, 6, 13]
        assert chosen(hours=6, notable=True) == [1, 2, 6]
        assert chosen(hours=24) == [1]
        assert (
            records.decisions_since("churn", day.replace(hour=12), 24)[0].as_of.hour
            == 13
        )
        assert records.decisions_since("other", day, 24) == []
        records.keep(
            replace(FIRST, as_of=day.replace(hour=20), verdict="bad", action="rollback")
        )
        assert chosen(hours=24) == [20]
        assert chosen(hours=24, notable=True) == [1, 6, 20], (
            "a rollback hides no retraining"
        )


def test_details_of_some_moments_are_read_alone(tmp_path):
    moments = [FIRST.as_of + timedelta(hours=n) for n in range(4)]
    with closing(Records(new_settings(tmp_path))) as records:
        for n, at in enumerate(moments):
            records.keep_details("churn", at, WindowDetails(scores=(Bin(0, 1, 1, n),)))
        assert [*records.details("churn", moments[1])] == moments[1:]
        found = records.details("churn", moments[0], [moments[3], moments[1]])
        assert {at: each.scores[0].now for at, each in found.items()} == {
            moments[1]: 1,
            moments[3]: 3,
        }
        assert records.details("churn", moments[0], []) == {}
