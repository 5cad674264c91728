"""When a model has the DAG that scores it at night."""

from core.spec import load_spec
from core.spec.tables import Scores
from dags.score import plan

SPEC = load_spec("customer_churn_model")


def test_a_model_is_scored_at_night_with_a_population_or_where_its_spec_says_so():
    assert plan(SPEC) is not None
    without = SPEC.model_copy(update={"population": None})
    assert plan(without) is None
    scores = Scores.model_validate({"from": "tomorrow.parquet"})
    assert plan(without.model_copy(update={"scores": scores})) is not None
