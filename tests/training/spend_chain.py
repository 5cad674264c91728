"""Inside a project with the second use case: from its orders to the verdict of the monitor.

test_spend.py runs it and checks what it prints.
"""

from datetime import timedelta

from core.spec import load_spec
from core.spec.training import Limit
from monitoring.monitor import monitor
from tests.conftest import AS_OF, mlflow_server
from tests.support.training.chains import (
    ask,
    client,
    learn,
    print_results,
    read_log,
    results,
    settings_of,
)

SPEC = load_spec("next_quarter_spend")
LENIENT = Limit(metric="rmse", rule="at_most", value=1000)
LENIENT_SPEC = SPEC.model_copy(update={"gates": (LENIENT,)})


def serve(settings, run_id):
    """Ask for every member, and report what came true of 1,000, then other than it came."""
    with client(settings, SPEC) as http:
        feedback = ask(http, settings, SPEC, run_id)
        recorded = http.post("/feedback", json=feedback[:1000])
        infinite = '{"request_id": "a", "actual": 1e999}'
        refused = http.post("/feedback", content=infinite)
        results["feedback"] = [recorded.json(), refused.status_code]
        results["by_chance"] = verdict(settings, AS_OF)
        worse = [row | {"actual": row["actual"] + 500} for row in feedback[1000:]]
        http.post("/feedback", json=worse)
    results["worse"] = verdict(settings, AS_OF + timedelta(hours=1))
    read_log(settings)


def verdict(settings, as_of):
    report = monitor(settings, SPEC, as_of)
    words = [result.words for result in report.results if result.status == "bad"]
    return {"bad": words, "figures": report.figures}


if __name__ == "__main__":
    home = settings_of("spend")
    with mlflow_server(home):
        run_id = learn(home, SPEC, LENIENT_SPEC, AS_OF - timedelta(days=180))
        serve(home, run_id)
    print_results()
