"""What follows for a version on its way, rule by rule: nothing of it needs a server."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from core.monitoring_spec import Rollout
from monitoring.rollout import Evidence, Variant, decide, distance
from monitoring.serving_status import Counted

POLICY = Rollout(policy="canary")
SPREAD = tuple(np.linspace(0, 1, 101).tolist())
ONE = Variant(1000, 0, 0.010, SPREAD)
PASSED = Evidence(5, 60.0, ONE, ONE)
NOBODY = Variant(0, 0, None, ())


def moved(by: float) -> tuple[float, ...]:
    return tuple(score + by for score in SPREAD)


def ours(**change) -> Evidence:
    return replace(PASSED, challenger=replace(ONE, **change))


def theirs(**change) -> Evidence:
    return replace(PASSED, production=replace(ONE, **change))


@pytest.mark.parametrize(
    ("seen", "action", "percent", "reason"),
    [
        (PASSED, "advance", 25, "1000 answered beside 1000, 0 failed beside 0, 95 % within 10.0"),
        (replace(PASSED, percent=0), "advance", 5, "scores 0.00 apart"),
        (replace(PASSED, percent=25), "advance", 50, ""),
        (replace(PASSED, percent=50), "advance", 100, ""),
        (replace(PASSED, percent=10), "advance", 25, ""),  # the steps were others then
        (replace(PASSED, percent=100, production=NOBODY, before=ONE), "done", 100, ""),
        (replace(PASSED, percent=100, production=NOBODY), "hold", 100, "production has answered 0"),
        # too little is known
        (replace(PASSED, challenger=NOBODY), "hold", 5, "it has answered 0 of 100 requests"),
        (ours(answered=99), "hold", 5, "it has answered 99 of 100 requests"),
        (ours(answered=100), "advance", 25, ""),
        (theirs(answered=99), "hold", 5, "production has answered 99 of 100 requests"),
        (ours(seconds=None), "hold", 5, "nothing is known of how long it takes"),
        (theirs(seconds=None), "hold", 5, "nothing is known of how long production takes"),
        (replace(PASSED, minutes=9.9), "hold", 5, "10 of 10 minutes"),
        (replace(PASSED, minutes=-5.0), "hold", 5, "minutes"),
        (replace(PASSED, minutes=10.0), "advance", 25, ""),
        # failures: more than 2 points above production's, as soon as nothing can mend them
        (ours(answered=980, failed=20), "advance", 25, "20 failed beside 0"),
        (ours(answered=979, failed=21), "abort", 0, "21 of 1000 predictions failed, at most 2.0%"),
        (ours(answered=0, failed=2), "hold", 5, "it has answered 0"),
        (ours(answered=0, failed=3), "abort", 0, "3 of 3 predictions failed"),
        (replace(ours(answered=900, failed=100), production=replace(ONE, answered=900, failed=100)),
         "advance", 25, "100 failed beside 100"),
        # latency
        (ours(seconds=0.020), "advance", 25, "95 % within 20.0 ms beside 10.0 ms"),
        (ours(seconds=0.021), "abort", 0, "95 % of predictions within 21.0 ms, at most 20.0 ms"),
        (replace(ours(seconds=0.0055), production=replace(ONE, seconds=0.001)), "advance", 25, ""),
        (replace(ours(seconds=0.0065), production=replace(ONE, seconds=0.001)),
         "abort", 0, "6.0 ms"),
        (ours(answered=99, seconds=1.0), "hold", 5, ""),
        # scores
        (ours(scores=moved(0.405)), "advance", 25, "scores 0.41 apart"),
        (ours(scores=moved(0.605)), "abort", 0, "its scores are 0.60 from production's, 0.5 is"),
        (ours(scores=moved(0.605), answered=100), "hold", 5, "too few to say"),
        (ours(scores=moved(0.905), answered=100), "abort", 0, "0.90 from"),
        (ours(scores=(0.7,) * 101), "abort", 0, "every one of 1000 scores is 0.7"),
        (ours(scores=(0.7,) * 101, answered=99), "hold", 5, ""),
        (replace(ours(scores=(0.7,) * 101), production=replace(ONE, scores=(0.7,) * 101)),
         "advance", 25, ""),
        # where it answers everybody, production of the step before stands for production
        (replace(ours(seconds=0.021), percent=100, production=NOBODY, before=ONE),
         "abort", 0, "21.0 ms"),
    ],
)  # fmt: skip
def test_the_first_rule_that_fits_decides(seen, action, percent, reason):
    verdict = decide(POLICY, seen)
    assert (verdict.action, verdict.percent) == (action, percent)
    assert reason in verdict.reason


def test_the_limits_are_the_specs():
    assert decide(Rollout(steps=(50,)), replace(PASSED, percent=50)).action == "done"
    assert decide(Rollout(errors=0), ours(failed=1)).action == "abort"
    assert decide(Rollout(latency=1), ours(seconds=0.016)).action == "abort"
    assert decide(Rollout(scores=0.01), ours(scores=moved(0.305))).action == "abort"
    assert decide(Rollout(requests=1001), PASSED).action == "hold"
    assert decide(Rollout(minutes=61), PASSED).action == "hold"


some = st.builds(
    Variant,
    st.integers(0, 500),
    st.integers(0, 50),
    st.none() | st.floats(0.0001, 1),
    st.lists(st.floats(0, 1), min_size=101, max_size=101).map(
        lambda row: tuple(sorted(row))
    ),
)


@given(
    st.sampled_from([0, 5, 25, 50, 100]),
    st.floats(0, 1e6),
    some,
    some,
    st.none() | some,
)
def test_no_step_is_passed_below_the_least_requests_or_skipped(
    percent, minutes, us, them, before
):
    verdict = decide(POLICY, Evidence(percent, minutes, them, us, before))
    if verdict.action in {"advance", "done"}:
        compared = before if percent == 100 and before else them
        assert min(us.answered, compared.answered) >= 100
        assert minutes >= POLICY.minutes
        assert distance(us, compared) <= POLICY.scores
    steps = (0, *POLICY.steps)
    if verdict.action == "advance":
        assert steps.index(verdict.percent) == steps.index(percent) + 1
    if verdict.action == "done":
        assert percent == 100


@given(some, some)
def test_distance_is_what_scipy_says_of_the_same_samples(one, other):
    assert distance(one, other) == pytest.approx(
        ks_2samp(one.scores, other.scores).statistic
    )


def test_two_samples_of_one_distribution_are_never_surely_apart():
    random, aborted = np.random.default_rng(7), 0
    for _ in range(300):
        both = [
            Variant(
                100, 0, 0.01, tuple(np.percentile(random.beta(2, 3, 100), range(101)))
            )
            for _ in range(2)
        ]
        verdict = decide(Rollout(scores=0.05), Evidence(5, 60, *both))
        aborted += verdict.action == "abort"
    assert aborted <= 6


def test_counters_are_read_since_a_moment_and_from_zero_where_serving_began_anew():
    def counted(failed, one, two, every):
        return Counted(failed, every, ((0.001, one), (0.002, two)))

    earlier, later = counted(2, 10, 20, 20), counted(5, 10, 30, 40)
    assert later.since(earlier) == counted(3, 0, 10, 20)
    assert later.since(Counted()) == later
    assert counted(0, 1, 2, 3).since(earlier) == counted(0, 1, 2, 3)
    assert counted(0, 50, 100, 100).quantile(0.95) == pytest.approx(0.0019)
    assert counted(0, 100, 100, 100).quantile(0.5) == pytest.approx(0.0005)
    assert counted(0, 50, 90, 100).quantile(0.95) == 0.002  # beyond the last bound
    assert counted(0, 0, 0, 0).quantile(0.95) is None
    assert Counted().quantile(0.95) is None
