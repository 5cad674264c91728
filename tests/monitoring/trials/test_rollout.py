"""A rollout on the real registry and ledger, by what a log of serving's form says; its rules."""

from dataclasses import replace
from datetime import timedelta
from itertools import count

import numpy as np
import pytest

from core.spec import load_spec
from core.spec.monitoring import Rollout
from mlflow_server.api.registry import Registry
from mlflow_server.promotion.ledger import Ledger, now
from monitoring.harm import QUANTILES, Variant
from monitoring.trials.rollout import AUTHOR, Evidence, judge_step, roll_out
from tests.conftest import mlflow_server, new_settings
from tests.mlflow_server.conftest import Roles, new_model
from tests.monitoring.conftest import alerts
from tests.support.monitoring.log_lines import FAILURE, answer, write

SPEC = load_spec("customer_churn_model")
POLICY = Rollout(policy="canary")
SPREAD = tuple(np.linspace(0, 1, 101).tolist())
SAME = (0.7,) * 101


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    home = new_settings(tmp_path_factory.mktemp("rolled"))
    with mlflow_server(home):
        yield home


class World(Roles):
    """A model with version 1 in production and 2 as shadow, and the log of their answers."""

    def __init__(self, settings, spec):
        super().__init__(settings, Registry(settings), Ledger(settings), spec.name)
        self.spec = spec
        self.ids = count()
        self.promote("1")
        self.begin()

    def begin(self):
        self.promote("2", role="shadow", action="rollout")

    def answers(self, role, version, number, **change):
        """Log so many rows."""
        values = {"model": self.model, "role": role, "version": version}
        values["created"] = self.registry.assignment(self.model).created
        lines = []
        for position in range(number):
            values |= {"probability": position / number, "seconds": 0.0008} | change
            lines.append(answer(f"{self.model}-{next(self.ids)}", now(), **values))
        write(self.settings, f"predictions-1-{next(self.ids)}.jsonl", *lines)

    def run(self, minutes=11.0):
        return roll_out(self.settings, self.spec, now() + timedelta(minutes=minutes))

    @property
    def alerts(self):
        return alerts(self.settings, self.model)

    def to_25_percent(self):
        """Good answers until the challenger has 25 percent."""
        for role in ("shadow", "challenger"):
            self.answers("production", "1", 300)
            self.answers(role, "2", 150)
            assert self.run().action == "advance"
        assert self.aliases == {"production": "1", "challenger": "2"}


@pytest.fixture
def world(settings):
    change = {"name": new_model(settings, 3), "rollout": Rollout(policy="canary")}
    world = World(settings, SPEC.model_copy(update=change))
    yield world
    world.ledger.close()


@pytest.mark.journey
def test_a_version_goes_from_shadow_through_every_step_into_production(world):
    role = "shadow"
    for percent in (5, 25, 50, 100):
        world.answers("production", "1", 300)
        world.answers(role, "2", 99)
        assert "it has answered 99 of 100 rows" in world.run().summary
        world.answers(role, "2", 1)
        assert world.run(minutes=5).action == "hold"
        assert f"goes on to {percent} %: " in world.run().summary
        # What the step before has seen does not count for this one.
        assert world.run().evidence.challenger.rows == 0
        role = "challenger"
    world.answers("challenger", "2", 120)
    done = world.run()
    assert (done.action, done.version) == ("done", "2")
    assert world.aliases == {"production": "2"}
    rows = [row for row in world.rows if row.who == AUTHOR]
    assert [row.percent for row in rows] == [5, 25, 50, 100, 100]
    assert rows[-1].why.startswith("at 100 %: 0 of 120 rows failed beside 0 of 300, 95")
    assert world.run().action == "nothing"
    assert world.alerts == []


def test_a_challenger_that_fails_is_stopped_with_one_alert_and_may_be_tried_again(
    world,
):
    world.to_25_percent()
    world.answers("challenger", "2", 10)
    world.answers("challenger", "2", 8, **FAILURE)
    stopped = world.run(minutes=0)
    assert (stopped.action, world.aliases) == ("abort", {"production": "1"})
    *_, step, row = world.rows
    assert (row.role, row.from_version, row.to_version) == ("challenger", "2", None)
    assert row.why == "at 25 %: 8 of 18 predictions failed, at most 2.0% is allowed"
    assert [world.run().action for _ in range(3)] == ["nothing"] * 3
    (alert,) = world.alerts
    cause = f"rollout of version 2 stopped (ledger row {step.sequence})"
    assert alert["cause"] == cause
    assert "8 of 18 predictions failed" in alert["message"]

    world.begin()
    world.to_25_percent()  # what failed before is not held against it
    assert world.alerts == [alert]


def test_a_rollout_waits_for_a_challenger_set_by_hand_and_ends_with_a_new_production(
    world,
):
    world.answers("production", "1", 300)
    world.answers("shadow", "2", 300)
    world.promote("3", role="challenger", percent=10)
    theirs = world.run()
    assert (theirs.action, theirs.version) == ("hold", "3")
    assert "at 10 % holds: ann set this challenger" in theirs.summary
    world.release("challenger")
    assert world.run().action == "advance"
    world.promote("3")
    assert world.run().action == "nothing"
    assert world.aliases == {"production": "3"}
    assert world.alerts == []


@pytest.mark.parametrize("role", ["shadow", "challenger"])
def test_a_version_that_a_person_put_into_a_role_is_never_moved(world, role):
    """Such as one that did harm, and is looked at again."""
    world.promote("2")
    world.rollback()
    world.promote("2", role=role, percent=100)
    world.answers("production", "1", 300)
    world.answers(role, "2", 300)
    held = world.run()
    assert held.action == "hold"
    assert (
        f"ann set this {role}: promote it, or end it with gyre release" in held.summary
    )
    assert world.aliases == {"production": "1", role: "2"}
    world.release(role)
    world.begin()
    world.answers("production", "1", 300)
    world.answers("shadow", "2", 300)
    assert world.run().action == "advance"


def variant(seconds=0.010, **change):
    good = {
        "rows": 1000,
        "requests": 1000,
        "seconds": dict.fromkeys(QUANTILES, seconds),
        "scored_rows": 1000,
        "scores": SPREAD,
    }
    return Variant(**good | change)


GOOD = variant()
PASSED = Evidence(5, 60.0, GOOD, GOOD)
LAST = replace(PASSED, percent=100, production=Variant())
TOOK_OVER = replace(LAST, previous_production=GOOD)


def moved(by):
    return tuple(score + by for score in SPREAD)


def challenger(seconds=0.010, evidence=PASSED, **change):
    return replace(evidence, challenger=variant(seconds, **change))


def production(seconds=0.010, **change):
    return replace(PASSED, production=variant(seconds, **change))


@pytest.mark.parametrize(
    ("evidence", "action", "percent", "reason"),
    [
        (PASSED, "advance", 25, "0 of 1000 rows failed beside 0 of 1000, 95 % of req"),
        # Where it answers everybody, production of the step before stands for production.
        (TOOK_OVER, "done", 100, ""),
        (LAST, "hold", 100, "production has answered 0"),
        (challenger(0.021, TOOK_OVER), "abort", 0, "21.0 ms"),
        # Too little is known.
        (challenger(requests=99), "hold", 5, "it has answered 99 of 100 requests"),
        (production(scored_rows=99), "hold", 5, "production has answered 99 of 100"),
        (production(requests=2), "hold", 5, "production has answered 2 of 100 req"),
        (replace(PASSED, minutes=9.9), "hold", 5, "10 of 10 minutes"),
        # Failures: more than 2 points above production's.
        (challenger(failed_rows=20), "advance", 25, "20 of 1000 rows failed"),
        (challenger(failed_rows=21), "abort", 0, "21 of 1000 predictions failed, at"),
        (
            challenger(0.01, production(failed_rows=10), failed_rows=21),
            "advance",
            25,
            "",
        ),
        (challenger(rows=2, failed_rows=2, scored_rows=0), "hold", 5, ""),
        (challenger(rows=3, failed_rows=3, scored_rows=0), "abort", 0, "3 of 3"),
        # Latency.
        (challenger(0.020), "advance", 25, "within 20.0 ms beside 10.0 ms"),
        (challenger(0.021), "abort", 0, "requests within 21.0 ms, at most 20.0 ms"),
        # Scores.
        (challenger(scores=moved(0.405)), "advance", 25, "scores 0.41 apart"),
        (challenger(scores=moved(0.605)), "abort", 0, "0.60 away from production's"),
        (challenger(scores=moved(0.605), scored_rows=100), "hold", 5, "too few scores"),
        (challenger(scores=SAME), "abort", 0, "every one of 1000 scores is 0.7"),
    ],
)
def test_the_first_matching_rule_decides(evidence, action, percent, reason):
    step = judge_step(POLICY, evidence)
    assert (step.action, step.percent) == (action, percent)
    assert reason in step.reason


def test_the_limits_come_from_the_spec():
    for policy, evidence, action in (
        (Rollout(steps=(50,)), replace(PASSED, percent=50), "done"),
        (Rollout(errors=0), challenger(failed_rows=1), "abort"),
        (Rollout(latency=1), challenger(0.016), "abort"),
        (Rollout(scores=0.01), challenger(scores=moved(0.305)), "abort"),
        (Rollout(requests=1001), PASSED, "hold"),
        (Rollout(minutes=61), PASSED, "hold"),
    ):
        assert judge_step(policy, evidence).action == action, policy
