"""The SQL of docs/how-to/bi.md, on a PostgreSQL with the rows that the product wrote."""

import re
from datetime import timedelta

import psycopg
import pyarrow.compute as pc
import pytest

from core.errors import DataError
from core.project import PROJECT
from core.spec.tables import Destination, Scores
from mlflow_server.api.registry import Registry
from monitoring.monitor import monitor
from tests.conftest import AS_OF
from tests.monitoring.conftest import alerts
from tests.support.monitoring import log_lines
from tests.support.stores.postgres import postgres_server
from tests.training.conftest import SPEC
from training.batch import score_population, scores

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
WAIT = 92 * DAY
"""After it an outcome is known: horizon and lateness of the label."""
TABLES = ("scores", "predictions", "decisions")
PAGE = PROJECT / "docs" / "how-to" / "bi.md"


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    with postgres_server(tmp_path_factory.mktemp("bi") / "log") as server:
        yield server.address


def written_to(address):
    """The spec with three tables of a database."""
    changes = {
        "scores": Scores(to=f"{address}#scores"),
        "predictions": Destination(to=f"{address}#predictions"),
        "decisions": Destination(to=f"{address}#decisions"),
    }
    return SPEC.model_copy(update=changes)


def log_answers(settings, name, received, customers):
    """Write what serving logs of customers."""
    created = Registry(settings).assignment(SPEC.name).created
    answer = {"model": SPEC.name, "version": "2", "created": created}
    lines = []
    for number, customer in enumerate(customers):
        score = number / len(customers)
        scored = {"probability": score, "prediction": float(score >= 0.5)}
        about = answer | scored | {"entity": str(customer)}
        line = log_lines.answer(f"{name}-{number}", received, **about)
        lines.append(line)
    log_lines.write(settings, f"predictions-{name}.jsonl", *lines)


@pytest.mark.journey
def test_the_queries_of_the_page_run_on_rows_that_the_product_wrote(
    tracked, second, database
):
    spec = written_to(database)
    report = score_population(tracked, spec, AS_OF)
    assert report.summary().endswith(f"also in {database.partition('@')[2]}#scores")
    customers = [row[0] for row in executed(database, "SELECT customer_id FROM scores")]
    log_answers(tracked, "new", AS_OF - 2 * HOUR, customers[:40])
    # Their outcome came to be known from the orders an hour ago.
    old = AS_OF - WAIT - HOUR
    log_answers(tracked, "old", old, customers)
    lines = [
        log_lines.feedback(f"new-{number}", number % 2, AS_OF - HOUR)
        for number in range(20)
    ]
    log_lines.write(tracked, "feedback-new.jsonl", *lines)
    monitor(tracked, spec, AS_OF)
    assert alerts(tracked, SPEC.name, "not in the team's tables") == []
    before = contents(database)
    monitor(tracked, spec, AS_OF)
    assert contents(database) == before

    results = {}
    for statement in re.findall(r"```sql\n(.*?)```", PAGE.read_text(), re.DOTALL):
        for number, part in enumerate(statement.strip().split(";\n\n")):
            results[part.split()[-1], number] = executed(database, part)
    page_results = [rows for rows in results.values() if rows is not None]
    assert all(page_results), "a query without a row"
    assert executed(database, "SELECT count(*) FROM scores_today") == [(report.rows,)]
    days = {(AS_OF - 2 * HOUR).date(): (40, 20), old.date(): (report.rows, None)}
    for day, answers, known in executed(
        database, "SELECT day, answers, known_outcomes FROM prediction_days"
    ):
        expected_answers, expected_known = days[day]
        assert answers == expected_answers
        assert known == expected_known or (expected_known is None and known > 0)
    decisions = executed(database, "SELECT as_of, rule FROM decision_log")
    assert [as_of for as_of, _ in decisions] == [AS_OF]


@pytest.mark.journey
def test_a_table_that_refuses_fails_the_scoring_behind_gyres_own_table(
    tracked, second, database
):
    moment = AS_OF - 5 * DAY
    spec = written_to(database)
    with psycopg.connect(database) as connection:
        connection.execute("DROP TABLE IF EXISTS scores CASCADE")
        connection.execute("CREATE TABLE scores (name text)")
    with pytest.raises(DataError, match=r"postgres#scores: nothing was changed"):
        score_population(tracked, spec, moment)
    is_of_day = pc.field("as_of") == moment
    own_rows = scores(tracked).read(where=is_of_day).num_rows
    assert own_rows > 0
    with psycopg.connect(database) as connection:
        connection.execute("DROP TABLE scores")
    assert score_population(tracked, spec, moment).rows == own_rows
    assert executed(database, "SELECT count(*) FROM scores") == [(own_rows,)]
    assert scores(tracked).read(where=is_of_day).num_rows == own_rows


def test_a_monitoring_run_that_cannot_export_alerts_and_decides(tracked, second):
    nowhere = "postgresql://gyre:hidden@127.0.0.1:1/team"
    report = monitor(tracked, written_to(nowhere), AS_OF + HOUR)
    assert report.decision.action == "nothing"
    (alert,) = alerts(tracked, SPEC.name, "not in the team's tables")
    assert "127.0.0.1:1/team#decisions: nothing was changed" in alert["message"]
    assert "hidden" not in str(alert)


def executed(address, statement):
    """Rows of a query; None of another statement."""
    with psycopg.connect(address) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else None


def contents(address):
    return [
        sorted(map(str, executed(address, f"SELECT * FROM {name}"))) for name in TABLES
    ]
