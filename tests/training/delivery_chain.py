"""Inside a project with a multiclass model: from parcels to the verdict of the monitor.

test_multiclass.py runs it and checks what it prints.
"""

from datetime import UTC, datetime, timedelta

from core.spec import load_spec
from core.spec.training import Training
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
from training.batch import score_population, scores
from training.check import check

SPEC = load_spec("delivery")
WEAK = Training(function=SPEC.training.function, parameters={"leaves": [4], "trees": 2})
WEAK_SPEC = SPEC.model_copy(update={"training": WEAK})


def score(settings):
    """Score every member of the population."""
    results["batch"] = score_population(settings, SPEC, AS_OF).rows
    columns = ["prediction", "probability", "probabilities"]
    results["batch_row"] = scores(settings).read(columns=columns).to_pylist()[0]


def serve(settings, run_id):
    """Ask for every courier, and report what came true: as names, but one as a position."""
    with client(settings, SPEC) as http:
        feedback = ask(http, settings, SPEC, run_id)
        feedback[0]["actual"] = "lost"
        for row in feedback[2:]:
            row["actual"] = SPEC.classes[row["actual"]]
        results["feedback"] = http.post("/feedback", json=feedback).json()
        report = monitor(settings, SPEC, datetime.now(UTC))
    results["figures"] = report.figures
    results["verdict"] = [report.verdict, report.words]
    results["left_out"] = report.outcomes_left_out
    read_log(settings)


if __name__ == "__main__":
    home = settings_of("parcels")
    with mlflow_server(home):
        results["check"], _ = check(home, SPEC, AS_OF)
        run_id = learn(home, SPEC, WEAK_SPEC, AS_OF - timedelta(days=21))
        score(home)
        serve(home, run_id)
    print_results()
