"""Windows of the reference itself are no alarm, and windows that were changed are one."""

from __future__ import annotations

import pytest

from stack.spec import load_spec

SPEC = load_spec("customer_churn_model")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    from benchmarks.false_alarms import reference  # noqa: PLC0415  (conftest puts it on the path)

    return reference(SPEC, tmp_path_factory.mktemp("reference"))


def bad(rows, size, limits=SPEC.drift, **changed):
    from benchmarks.false_alarms import judged, share_bad  # noqa: PLC0415

    return share_bad(judged(limits, rows, size, 200, **changed))


@pytest.mark.parametrize("size", [200, 500])
def test_chance_alone_is_significant_in_at_most_one_window_of_a_hundred(rows, size):
    assert bad(rows, size) <= 0.01


def test_a_limit_that_chance_reaches_would_be_seen_here(rows):
    assert bad(rows, 200, SPEC.drift.model_copy(update={"significant": 0.08})) > 0.01


def test_what_changed_much_is_found(rows):
    from benchmarks.false_alarms import doubled, moved  # noqa: PLC0415

    assert bad(rows, 200, change=moved(rows, "score", 1.0)) > 0.95
    assert bad(rows, 1_000, change=moved(rows, "avg_order_value", 0.5)) > 0.95
    assert bad(rows, 1_000, change=doubled("customer_segment", "loyal")) > 0.5
