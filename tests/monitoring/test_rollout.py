"""A rollout on the real registry and ledger, by what a log of serving's form says."""

import json
from contextlib import closing
from datetime import timedelta
from itertools import count

import pytest

from core.monitoring_spec import Rollout
from core.spec import load_spec
from mlflow_server.alerts import Alerts
from mlflow_server.ledger import Ledger, LedgerRow, now
from mlflow_server.promotion import promote, release
from mlflow_server.registry import Registry
from monitoring.rollout import AUTHOR, roll_out
from tests.conftest import mlflow_server, new_settings
from tests.mlflow_server.conftest import new_model
from tests.monitoring.log import FAILURE, answer, write

SPEC = load_spec("customer_churn_model")
ANN = {"who": "ann", "why": "try"}


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    home = new_settings(tmp_path_factory.mktemp("rolled"))
    with mlflow_server(home):
        yield home


class World:
    """A model with version 1 in production and 2 as shadow, and the log of their answers."""

    def __init__(self, settings, spec):
        self.settings = settings
        self.spec = spec
        self.model = spec.name
        self.registry = Registry(settings)
        self.ledger = Ledger(settings)
        self.ids = count()
        self.promote("1")
        self.promote("2", role="shadow")

    def promote(self, version, **change):
        promote(self.registry, self.ledger, self.model, version, **ANN, **change)

    def answers(self, role, version, number, failed=0, **change):
        """Log so many rows, of which the last ones failed."""
        lines = []
        for position in range(number):
            line = answer(
                f"{self.model}-{next(self.ids)}",
                now(),
                model=self.model,
                role=role,
                version=version,
                probability=position / number,
                seconds=0.0008,
                **change,
            )
            if position >= number - failed:
                line |= FAILURE
            lines.append(line)
        write(self.settings, f"predictions-1-{next(self.ids)}.jsonl", *lines)

    def run(self, minutes=11.0):
        return roll_out(self.settings, self.spec, now() + timedelta(minutes=minutes))

    @property
    def roles(self):
        return self.registry.aliases(self.model)

    def to_25_percent(self):
        """Good answers until the challenger has 25 percent."""
        for role in ("shadow", "challenger"):
            self.answers("production", "1", 300)
            self.answers(role, "2", 150)
            assert self.run().action == "advance"
        assert self.roles == {"production": "1", "challenger": "2"}

    def alerts(self):
        """Return the messages that went out."""
        with closing(Alerts(self.settings)) as alerts:
            rows = alerts.rows(self.model, delivered=True)
            return [row["message"] for row in rows]


@pytest.fixture
def world(settings):
    change = {"name": new_model(settings, 3), "rollout": Rollout(policy="canary")}
    world = World(settings, SPEC.model_copy(update=change))
    yield world
    world.ledger.close()


def test_a_version_goes_from_shadow_through_every_step_into_production(world):
    role = "shadow"
    for percent in (5, 25, 50, 100):
        world.answers("production", "1", 300)
        world.answers(role, "2", 99)
        world.answers(role, "2", 50, in_population=False)
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
    assert world.roles == {"production": "2"}
    rows = [row for row in world.ledger.rows(world.model) if row.who == AUTHOR]
    assert [row.percent for row in rows] == [5, 25, 50, 100, 100]
    assert {row.action for row in rows} == {"rollout"}
    assert json.loads(rows[-1].evidence)["challenger"]["rows"] == 120
    assert rows[-1].why.startswith("at 100 %: 0 of 120 rows failed beside 0 of 300, 95")
    assert world.run().action == "nothing"
    assert world.alerts() == []


def test_a_challenger_that_fails_is_stopped_with_one_alert_and_may_be_tried_again(
    world,
):
    world.to_25_percent()
    world.answers("challenger", "2", 18, failed=8)
    stopped = world.run(minutes=0)
    assert (stopped.action, world.roles) == ("abort", {"production": "1"})
    *_, step, row = world.ledger.rows(world.model)
    assert (row.role, row.from_version, row.to_version) == ("challenger", "2", None)
    assert (row.who, row.action) == (AUTHOR, "release")
    assert row.why == "at 25 %: 8 of 18 predictions failed, at most 2.0% is allowed"
    assert [world.run().action for _ in range(3)] == ["nothing"] * 3
    (message,) = world.alerts()
    incident = f"rollout of version 2 stopped (ledger row {step.sequence})"
    assert message == f"{incident}: {row.why.removeprefix('at 25 %: ')}"

    world.promote("2", role="shadow")
    world.to_25_percent()  # what failed before is not held against it
    assert len(world.alerts()) == 1


def test_the_next_run_completes_the_step_of_a_killed_run_once(world):
    """It had noted an alert, and the row of a step."""
    with closing(Alerts(world.settings)) as alerts:
        alerts.note(world.model, "rollout of version 2 stopped", "it fails", now())
    row = LedgerRow(world.model, 3, "challenger", 5, None, "2", AUTHOR, "", None, now())
    world.ledger.insert(row)
    assert world.alerts() == []
    assert world.roles == {"production": "1", "shadow": "2"}
    assert "2 at 5 % holds" in world.run().summary
    assert world.alerts() == ["it fails"]
    assert world.roles == {"production": "1", "challenger": "2"}
    rows = world.ledger.rows(world.model)[2:]
    ends = [("challenger", "2"), ("shadow", None)]
    assert [(row.role, row.to_version) for row in rows] == ends
    assert all(row.applied_at for row in rows)


def test_a_rollout_waits_for_a_challenger_set_by_hand_and_ends_with_a_new_production(
    world,
):
    world.answers("production", "1", 300)
    world.answers("shadow", "2", 300)
    world.promote("3", role="challenger", percent=10)
    theirs = world.run()
    assert (theirs.action, theirs.version) == ("hold", "3")
    assert "at 10 % holds: ann set this challenger" in theirs.summary
    release(world.registry, world.ledger, world.model, "challenger", **ANN)
    assert world.run().action == "advance"
    world.promote("3")
    assert world.run().action == "nothing"
    assert world.roles == {"production": "3"}
    assert world.alerts() == []
