"""Promotions from several processes at once, and some that are killed on the way."""

import pytest

from tests.faults.jobs import program
from tests.mlflow_server.conftest import Roles, new_model


class Contest(Roles):
    """A model whose version 1 is in production, and processes that promote others."""

    def run(self, *versions, dies=None):
        """Promote all at once; return what each process answered, None if it was killed."""
        job = {
            "settings": self.settings.model_dump(mode="json"),
            "model": self.model,
            "replaces": self.aliases["production"],
            "dies": dies,
        }
        answers = self.processes([job | {"version": version} for version in versions])
        return dict(zip(versions, answers, strict=True))

    @property
    def in_production(self):
        """The version with the alias, and all with the stage."""
        versions = self.stages.items()
        with_stage = [version for version, stage in versions if stage == "Production"]
        return self.aliases["production"], with_stage


@pytest.fixture(scope="module")
def processes():
    with program("-m", "tests.faults.registry.promoting_processes") as answers:
        yield answers


@pytest.fixture
def contest(processes, settings, registry, ledger):
    contest = Contest(settings, registry, ledger, new_model(settings, 9))
    contest.processes = processes
    contest.promote("1")
    return contest


@pytest.mark.parametrize(
    ("processes_at_once", "rounds"),
    [(4, 1), pytest.param(8, 200, marks=pytest.mark.nightly)],
)
def test_exactly_one_of_several_simultaneous_promotions_wins(
    contest, processes_at_once, rounds
):
    """6: the others are told who won; rows before it stay; ledger, alias and stage agree."""
    for _ in range(rounds):
        before = contest.rows
        current = before[-1].to_version
        versions = [f"{number}" for number in range(1, 10) if f"{number}" != current]
        answers = contest.run(*versions[:processes_at_once])
        *earlier, last = contest.rows
        winner = last.to_version
        assert answers.pop(winner) == "won"
        refusal = f"version {winner} (by process {winner}"
        assert all(refusal in answer for answer in answers.values()), answers
        assert earlier == before
        assert (last.sequence, last.from_version) == (len(before) + 1, current)
        assert last.applied_at
        assert contest.in_production == (winner, [winner])


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_promotion_killed_before_or_after_the_alias_is_completed_later(contest, when):
    """7: SIGKILL between ledger row and alias, and between alias and stage."""
    assert contest.run("2", dies=when) == {"2": None}
    assert contest.in_production == ("1" if when == "before" else "2", ["1"])
    assert [bool(row.applied_at) for row in contest.rows] == [True, False]
    rows = contest.reconcile()
    assert (rows[1].who, len(rows)) == ("process 2", 2)
    assert rows[1].applied_at
    assert contest.in_production == ("2", ["2"])
    assert contest.reconcile() == rows


def test_a_change_by_hand_after_a_killed_promotion_stays(contest):
    """7, 8."""
    contest.run("2", dies="before")
    contest.registry.set_alias(contest.model, "production", "4")
    rows = contest.reconcile()
    changes = [(row.to_version, row.who, bool(row.applied_at)) for row in rows[1:]]
    assert changes == [("2", "process 2", False), ("4", "mlflow-ui", True)]
    assert contest.in_production == ("4", ["4"])
