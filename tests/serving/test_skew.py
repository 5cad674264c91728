"""A value that somebody changed in Redis, served by the real server, is named by the next look."""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from redis import Redis

from monitoring.monitor import monitor
from tests.serving.conftest import SPEC, contract

if TYPE_CHECKING:
    from tests.serving.conftest import Rig, Served

ONE, OTHER = 5, 4


def test_a_planted_value_is_alerted_of_with_customer_and_feature(
    rig: Rig, served: Served
) -> None:
    view = contract().lookup.views[0]
    one, other = (
        view.prefix + struct.pack("<IIq", 4, 8, number) + view.suffix
        for number in (ONE, OTHER)
    )
    field = next(f.field for f in view.features if f.name == "lifetime_value")
    redis = Redis(port=rig.settings.redis_port)
    before, foreign = redis.hget(one, field), redis.hget(other, field)
    assert None not in {before, foreign}
    assert before != foreign
    redis.hset(one, field, foreign)

    def ask(number: int) -> dict[str, Any]:
        answer: dict[str, Any] = rig.predict_online(served.client, number).json()
        return answer

    try:
        answers = {number: ask(number) for number in (ONE, OTHER)}
    finally:
        redis.hset(one, field, before)
        redis.close()
    found = monitor(rig.settings, SPEC, datetime.now(UTC))
    given = {row["request_id"]: row["features"] for row in rig.rows()}
    value = given[answers[ONE]["request_id"]]["lifetime_value"]
    (told,) = (
        note for note in found.notes if note.startswith("skew of lifetime_value: ")
    )
    assert told.startswith(f"skew of lifetime_value: customer_id {ONE} at ")
    assert f"online {value!r}, offline " in told
    assert not any(f"customer_id {OTHER} " in note for note in found.notes)
    assert found.figures["skew_mismatched"] >= 1
    assert found.verdict != "bad"  # skew is no drift
    log = rig.settings.home / "logs" / "alerts.log"
    cause = f"skew of version {found.version}: lifetime_value"
    assert log.read_text().count(cause) == 1
    assert told in monitor(rig.settings, SPEC, datetime.now(UTC)).notes
    assert log.read_text().count(cause) == 1
