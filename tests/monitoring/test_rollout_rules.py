"""What follows for a version on its way, rule by rule: nothing of it needs a server."""

from dataclasses import replace

import numpy as np
import pytest

from core.monitoring_spec import Rollout
from monitoring.harm import QUANTILES, Variant
from monitoring.rollout import Evidence, judge_step

POLICY = Rollout(policy="canary")
SPREAD = tuple(np.linspace(0, 1, 101).tolist())
SAME = (0.7,) * 101


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
        (replace(PASSED, percent=10), "advance", 25, ""),  # the steps were others then
        # Where it answers everybody, production of the step before stands for production.
        (TOOK_OVER, "done", 100, ""),
        (LAST, "hold", 100, "production has answered 0"),
        (challenger(0.021, TOOK_OVER), "abort", 0, "21.0 ms"),
        # Too little is known.
        (challenger(scored_rows=99), "hold", 5, "it has answered 99 of 100 rows"),
        (challenger(requests=99), "hold", 5, "it has answered 99 of 100 requests"),
        (production(scored_rows=99), "hold", 5, "production has answered 99 of 100"),
        (production(requests=2), "hold", 5, "production has answered 2 of 100 req"),
        (replace(PASSED, minutes=9.9), "hold", 5, "10 of 10 minutes"),
        # Failures: more than 2 points above production's, as soon as nothing can mend them.
        (challenger(failed_rows=20), "advance", 25, "20 of 1000 rows failed"),
        (challenger(failed_rows=21), "abort", 0, "21 of 1000 predictions failed, at"),
        (replace(PASSED, challenger=Variant(rows=2, failed_rows=2)), "hold", 5, ""),
        (
            replace(PASSED, challenger=Variant(rows=3, failed_rows=3)),
            "abort",
            0,
            "3 of",
        ),
        # Latency.
        (challenger(0.020), "advance", 25, "within 20.0 ms beside 10.0 ms"),
        (challenger(0.021), "abort", 0, "requests within 21.0 ms, at most 20.0 ms"),
        (challenger(0.0055, production(0.001)), "advance", 25, ""),
        # Scores.
        (challenger(scores=moved(0.405)), "advance", 25, "scores 0.41 apart"),
        (challenger(scores=moved(0.605)), "abort", 0, "0.60 from those of production"),
        (challenger(scores=moved(0.605), scored_rows=100), "hold", 5, "too few to say"),
        (challenger(scores=SAME), "abort", 0, "every one of 1000 scores is 0.7"),
    ],
)
def test_the_first_matching_rule_decides(evidence, action, percent, reason):
    step = judge_step(POLICY, evidence)
    assert (step.action, step.percent) == (action, percent)
    assert reason in step.reason


def test_the_limits_come_from_the_spec():
    last = replace(PASSED, percent=50)
    far = challenger(scores=moved(0.305))
    for policy, evidence, action in (
        (Rollout(steps=(50,)), last, "done"),
        (Rollout(errors=0), challenger(failed_rows=1), "abort"),
        (Rollout(latency=1), challenger(0.016), "abort"),
        (Rollout(scores=0.01), far, "abort"),
        (Rollout(requests=1001), PASSED, "hold"),
        (Rollout(minutes=61), PASSED, "hold"),
    ):
        assert judge_step(policy, evidence).action == action, policy
