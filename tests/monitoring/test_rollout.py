"""A rollout on the real registry and ledger, by what a log and counters of serving's form say."""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from contextlib import closing
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count

import numpy as np
import pytest

from core.monitoring_spec import Rollout
from core.spec import load_spec
from mlflow_server.ledger import Ledger, LedgerRow, now
from mlflow_server.promotion import promote, release
from mlflow_server.records import Records
from mlflow_server.registry import Registry
from monitoring.collect import predictions
from monitoring.rollout import WHO, roll_out
from monitoring.serving_status import counts
from serving.prediction_log import AppendLog
from tests.conftest import mlflow_server, new_settings
from tests.mlflow_server.conftest import new_model

BOUNDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, np.inf)
SPEC = load_spec("customer_churn_model")
ANN = {"who": "ann", "why": "try"}


class Serving:
    """Writes the log and shows the counters of a server that answers by role."""

    def __init__(self, settings, model):
        self.model, self.random, self.ids = model, np.random.default_rng(7), count()
        self.log = AppendLog(settings.home / "serving" / "log", "predictions")
        self.log.open()
        self.failed, self.within = (
            defaultdict(int),
            defaultdict(lambda: np.zeros(len(BOUNDS))),
        )

    def answers(
        self,
        role,
        version,
        number,
        *,
        failed=0,
        seconds=0.0008,
        score=None,
        ids=None,
        ours=True,
    ):
        """Return the ids of the requests; score: of all of them, else spread."""
        self.failed[role, version] += failed
        self.within[role, version] += number * (np.array(BOUNDS) >= seconds)
        scores = (
            self.random.beta(2, 3, number) if score is None else np.full(number, score)
        )
        ids, at = (
            ids or [f"{self.model}-{next(self.ids)}" for _ in range(number)],
            now().isoformat(),
        )
        self.log.write([
            {
                "request_id": request, "model": self.model, "version": version, "role": role,
                "received": at, "as_of": at, "entity": n, "features": {"orders": 1},
                "features_from": "online", "probability": round(float(score), 6),
                "prediction": 1.0, "in_population": ours,
            }
            for n, (request, score) in enumerate(zip(ids, scores, strict=True))
        ])  # fmt: skip
        return ids

    def text(self):
        lines = []
        for (role, version), counted in self.within.items():
            labels = f'model="{self.model}",version="{version}",role="{role}"'
            lines += [
                f'gyre_prediction_seconds_bucket{{{labels},le="{bound}"}} {value}'
                for bound, value in zip((*BOUNDS[:-1], "+Inf"), counted, strict=True)
            ]
            failed = self.failed[role, version]
            lines.append(f"gyre_prediction_failures_total{{{labels}}} {failed}")
        return "\n".join(["# TYPE gyre_prediction_seconds histogram", *lines, ""])


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    made = new_settings(tmp_path_factory.mktemp("rolled"))
    with mlflow_server(made):
        yield made


class World:
    """A model with version 1 in production and 2 as shadow, behind a serving of its own."""

    def __init__(self, settings, spec):
        self.settings, self.spec, self.model = settings, spec, spec.name
        self.registry, self.ledger = Registry(settings), Ledger(settings)
        self.serving = Serving(settings, self.model)
        promote(self.registry, self.ledger, self.model, "1", **ANN)
        promote(self.registry, self.ledger, self.model, "2", **ANN, role="shadow")

    def look(self, minutes=11.0):
        return roll_out(self.settings, self.spec, now() + timedelta(minutes=minutes))

    @property
    def roles(self):
        return self.registry.aliases(self.model)

    @property
    def last(self):
        return self.ledger.rows(self.model)[-1]

    def to(self, percent):
        """Good answers until the challenger has `percent`."""
        role = "shadow"
        for _ in range((5, 25, 50, 100).index(percent) + 1):
            self.serving.answers("production", "1", 300)
            self.serving.answers(role, "2", 150)
            assert self.look().action == "advance"
            role = "challenger"
        assert self.roles == {"production": "1", "challenger": "2"}

    def alerts(self):
        with closing(Records(self.settings)) as records:
            return [row["message"] for row in records.alerts(self.model)]


@pytest.fixture
def world(settings):
    name = new_model(settings, 3)
    rollout = Rollout(policy="canary")
    made = World(settings, SPEC.model_copy(update={"name": name, "rollout": rollout}))

    class Metrics(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(made.serving.text().encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", settings.serving_port), Metrics)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield made
    server.shutdown()
    server.server_close()
    made.serving.log.close()
    made.ledger.close()


def test_a_version_goes_from_shadow_through_every_step_into_production(world):
    said = []
    for role, share in (("shadow", 300), *[("challenger", n) for n in (100, 100, 150)]):
        world.serving.answers("production", "1", 300)
        world.serving.answers(role, "2", 99)
        world.serving.answers(role, "2", 50, ours=False)
        waits = world.look()
        assert (waits.action, world.look().action) == ("hold", "hold")
        assert "it has answered 99 of 100 requests" in waits.summary
        world.serving.answers(role, "2", share - 99)
        assert world.look(minutes=5).action == "hold"
        said.append(world.look().summary)
        again = (
            world.look()
        )  # what the step before has seen does not count for this one
        assert (again.action, again.evidence.challenger.answered) == ("hold", 0)
    for summary, percent in zip(said, (5, 25, 50, 100), strict=True):
        assert f"goes on to {percent} %: " in summary
    world.serving.answers("challenger", "2", 120)
    done = world.look()
    assert (done.action, done.version) == ("done", "2")
    assert world.roles == {"production": "2", "previous": "1"}
    rows = [row for row in world.ledger.rows(world.model) if row.who == WHO]
    assert [row.percent for row in rows] == [5, 25, 50, 100, 100]
    assert all(
        json.loads(row.evidence)["challenger"]["answered"] >= 100 for row in rows
    )
    assert rows[-1].why.startswith(
        "at 100 %: 120 answered beside 300, 0 failed beside 0, 95 %"
    )
    assert world.look().action == "nothing"
    assert world.alerts() == []


def test_one_that_fails_is_out_with_a_reason_and_one_alert_and_may_be_tried_again(
    world,
):
    world.to(25)
    world.serving.answers("challenger", "2", 10, failed=8)
    stopped = world.look(minutes=0)
    assert (stopped.action, world.roles) == ("abort", {"production": "1"})
    row = world.last
    assert (row.role, row.from_version, row.to_version, row.who) == (
        "challenger",
        "2",
        None,
        WHO,
    )
    assert row.why == "at 25 %: 8 of 18 predictions failed, at most 2.0% is allowed"
    for _ in range(3):
        assert world.look().action == "nothing"
    assert "production 2" not in counts(world.settings, world.model)
    (message,) = world.alerts()
    assert (
        message
        == f"rollout of version 2 stopped (ledger row {row.sequence}): {row.why}"
    )

    promote(world.registry, world.ledger, world.model, "2", **ANN, role="shadow")
    world.to(25)  # what failed before is not held against it
    assert len(world.alerts()) == 1


def test_one_that_is_slow_and_one_whose_scores_collapse_are_out(world):
    world.to(5)
    world.serving.answers("production", "1", 300)
    world.serving.answers("challenger", "2", 150, seconds=0.02)
    assert (
        "is stopped: 95 % of predictions within 24.2 ms, at most 6.0 ms"
        in world.look().summary
    )
    promote(world.registry, world.ledger, world.model, "3", **ANN, role="shadow")
    ids = world.serving.answers("production", "1", 300)
    world.serving.answers("shadow", "3", 300, score=0.7, ids=ids)
    assert (
        "as shadow is stopped: every one of 300 scores is 0.7" in world.look().summary
    )
    stored = predictions(world.settings).read().to_pylist()
    assert {f"{one}/shadow" for one in ids} <= {row["request_id"] for row in stored}
    assert world.roles == {"production": "1"}
    assert len(world.alerts()) == 2


def test_what_was_killed_between_ledger_and_alert_is_told_by_the_next_look(world):
    by = {"who": WHO, "why": "as shadow: 3 of 3 predictions failed"}
    release(world.registry, world.ledger, world.model, "shadow", **by)
    assert world.alerts() == []
    assert [world.look().action for _ in range(2)] == ["nothing", "nothing"]
    assert len(world.alerts()) == 1


def test_a_step_killed_on_its_way_is_carried_out_once_by_the_next_look(world):
    change = ("challenger", 5, None, "2", WHO, "as shadow: …", None)
    world.ledger.insert(
        LedgerRow(world.model, 3, *change, now())
    )  # all before it was killed
    assert world.roles == {"production": "1", "shadow": "2"}
    assert "2 at 5 % holds" in world.look().summary
    assert world.roles == {"production": "1", "challenger": "2"}
    rows = world.ledger.rows(world.model)
    assert [(row.role, row.to_version) for row in rows[2:]] == [
        ("challenger", "2"),
        ("shadow", None),
    ]
    assert all(row.applied_at for row in rows)


def test_it_waits_while_serving_is_silent_and_keeps_off_what_is_not_its_own(world):
    world.serving.answers("production", "1", 300)
    world.serving.answers("shadow", "2", 300)
    silent = world.settings.model_copy(update={"serving_port": 1})
    held = roll_out(silent, world.spec, now() + timedelta(minutes=11))
    assert (held.action, "does not answer" in held.summary) == ("hold", True)
    direct = world.spec.model_copy(update={"rollout": Rollout()})
    assert roll_out(world.settings, direct, now()).action == "nothing"
    promote(
        world.registry,
        world.ledger,
        world.model,
        "3",
        **ANN,
        role="challenger",
        percent=10,
    )
    theirs = world.look()
    assert (theirs.action, theirs.version) == ("hold", "3")
    assert "at 10 % holds: ann put it there" in theirs.summary
    release(world.registry, world.ledger, world.model, "challenger", **ANN)
    assert world.look().action == "advance"


def test_a_rollout_is_over_when_production_changes_and_begins_anew_as_shadow(world):
    world.to(50)
    promote(world.registry, world.ledger, world.model, "3", **ANN)
    assert world.look().action == "nothing"
    assert world.roles == {"production": "3", "previous": "1"}
    assert world.alerts() == []
