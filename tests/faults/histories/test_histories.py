"""Random histories: after kills, stops, full disks and clocks a stack holds what a model says."""

from datetime import UTC, datetime

import pytest

from tests.faults.histories.draw import draw
from tests.faults.histories.model import Model
from tests.faults.histories.run import Histories
from tests.faults.histories.shrink import shrink
from tests.faults.histories.steps import OPERATIONS, Step, read_steps

SHORT = 9
"""Steps of a short history."""
LONG = 25
FIRST = datetime.now(UTC).toordinal() * 10
"""The first seed of a night: each night draws anew."""


@pytest.fixture(scope="module")
def histories():
    with Histories() as histories:
        yield histories
        histories.report()


@pytest.mark.parametrize("seed", [1, 2])
def test_a_short_history_ends_as_the_model_says(histories, seed):
    name = f"seed {seed}"
    histories.run(name, draw(seed, SHORT))
    assert name not in histories.failures


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(FIRST, FIRST + 10))
def test_a_long_history_ends_as_the_model_says(histories, seed):
    name = f"seed {seed}"
    histories.run(name, draw(seed, LONG), tries=20)
    assert name not in histories.failures


def test_every_kind_of_step_is_drawn_and_read_as_it_is_printed():
    steps = draw(3, 400)
    assert {step.do for step in steps} == {*OPERATIONS}
    text = "\n".join(f"    1.2 s {step}" for step in steps)
    assert read_steps(text) == steps
    assert draw(3, 400) == steps


def test_a_failing_history_is_shrunk_to_the_steps_that_it_needs():
    steps = [Step("events", number=number) for number in range(25)]

    def fails(some_steps):
        return {4, 17} <= {step.number for step in some_steps}

    assert [step.number for step in shrink(steps, fails)] == [4, 17]


def test_the_model_tells_a_stack_that_is_wrong():
    model = Model()
    model.delivers([[1, 1, 10.0]])
    model.sends([[1, 1, 20.0], [1, 1, 30.0], [2, 2, 9_000.0]])
    model.delivers([[1, 1, 20.0]])
    assert model.compare({1: (1, 30.0)}) == []
    assert model.compare({1: (1, 20.0)})
    assert model.compare({})
    assert model.compare({1: (1, 30.0), 3: (1, 1.0)})
    assert model.compare_quarantine([(2, 2, 9_000.0)]) == []
    assert model.compare_quarantine([(2, 2, 9_000.0)] * 2)
    assert model.compare_quarantine([])
    # A request without an answer: both are right, then only what was seen.
    model.sends([[1, 1, 75.0]], is_sure=False)
    assert model.compare({1: (1, 75.0)}) == []
    assert model.compare({1: (1, 30.0)})
