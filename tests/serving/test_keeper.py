"""What the keeper refuses, and when it tries again."""

from __future__ import annotations

from serving.keeper import MOST_SECONDS, RETRY_SECONDS, Refusal


def test_what_is_refused_for_one_reason_is_tried_ever_more_rarely_and_anew_for_another() -> None:
    before, waits = None, []
    for reason in [*["gone"] * 6, "altered"]:
        before = Refusal.of(reason, before, 100.0)
        waits.append(before.until - 100.0)
    assert waits == [RETRY_SECONDS, 20, 40, MOST_SECONDS, MOST_SECONDS, MOST_SECONDS, RETRY_SECONDS]
