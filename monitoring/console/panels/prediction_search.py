"""`python -m monitoring.console.panels.prediction_search`: a question on stdin, its answer on stdout.

It is a process of its own, which gives back the memory of DuckDB, pandas and Feast when it ends.
"""

import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
from pydantic_core import to_json

from core.errors import GyreError
from core.settings import Settings, load_settings
from core.spec import ModelSpec, entity_of, load_spec
from core.timestamps import BEGINNING
from mlflow_server.api.registry import Registry
from monitoring.log.collect import waiting_rows
from monitoring.log.tables import join_outcomes, query_log, request_of_row
from stack.serving_client import ask_serving

MOST_ROWS = 20
RECENT = timedelta(days=7)
"""Age of the predictions that are listed where none is named."""
EXPLAIN_SECONDS = 10
CONDITIONS = {
    "model": "role <> 'shadow'",
    "entity": "entity = getvariable('text')",
    "request_id": "request_id = getvariable('text') "
    "OR starts_with(request_id, getvariable('text') || '/')",
}
"""The condition of each question. The text of a person is a variable, and never a part of a query."""
ROWS = """
FROM (
  FROM logged UNION ALL BY NAME
  FROM waiting WHERE model = getvariable('model') AND created = getvariable('created'))
WHERE {} ORDER BY received DESC, length(request_id), request_id LIMIT {}"""


def search(model: str, field: str, text: str) -> dict[str, Any]:
    """Return the newest predictions that a question is about.

    Args:
        model: Name of the model.
        field: request_id, entity or model: which of these has the text.
        text: The value.

    Returns:
        `rows` as the table `predictions` has them, each with `outcome` (None: not known);
        `explanation` of the first row, or `why` it has none; and `outcomes`, why raw data has none.
        Of a model there is no explanation, and outcomes are those of feedback alone.

    Raises:
        GyreError: A store does not answer.

    """
    settings = load_settings()
    spec = load_spec(model)
    now = datetime.now(UTC)
    is_list = field == "model"
    logged_text = request_of_row(text) if field == "request_id" else text
    line_part = to_json({field: logged_text})[1:-1]
    waiting = waiting_rows(settings, line_part, MOST_ROWS)
    assignment = Registry(settings).assignment(model)
    since = now - RECENT if is_list else BEGINNING
    with query_log(settings, assignment, since, now) as connection:
        connection.register("waiting", waiting)
        connection.execute("SET VARIABLE text = $1", [text])
        # A row may be in the table and still in the log.
        query = ROWS.format(CONDITIONS[field], 2 * MOST_ROWS)
        answers = connection.execute(query).to_arrow_table()
    rows = {row["request_id"]: row for row in answers.to_pylist()}
    answer: dict[str, Any] = {}
    outcomes = join_outcomes(settings, spec, now).known
    if rows and spec.has_labels and not is_list:
        from monitoring.log.actuals import outcomes_of  # noqa: PLC0415  (Feast: seconds)

        try:
            values = outcomes_of(settings, spec, answers, now).tolist()
            outcomes = dict(zip(answers["request_id"].to_pylist(), values, strict=True))
        except GyreError as exc:
            answer["outcomes"] = f"{exc}"
    for row_id, row in rows.items():
        row["outcome"] = outcomes.get(row_id)
        for column in ("features", "request_data"):
            row[column] = json.loads(row[column])
    shown_rows = [*rows.values()][:MOST_ROWS]
    answer["rows"] = shown_rows
    if shown_rows and not is_list:
        try:
            answer["explanation"] = _explanation(settings, spec, shown_rows[0])
        except (GyreError, ValueError, httpx.HTTPError) as exc:
            answer["why"] = f"{exc}"
    return answer


def _explanation(
    settings: Settings, spec: ModelSpec, row: Mapping[str, Any]
) -> dict[str, Any]:
    """Ask serving to explain a prediction by its recorded features; it logs nothing."""
    if row["error"]:
        raise ValueError("the prediction failed")
    key = entity_of(spec.entity_key, row["entity"]) if row["entity"] else {}
    response = ask_serving(
        settings,
        f"/models/{spec.name}/explain",
        key | row["request_data"] | {"features": row["features"]},
        EXPLAIN_SECONDS,
    )
    if response.is_error:
        raise ValueError(f"serving answers {response.status_code}: {response.text}")
    explanation: dict[str, Any] = response.json()
    version = explanation["model_version"]
    if version != row["version"]:
        raise ValueError(f"version {version} answers this request now")
    return explanation


if __name__ == "__main__":
    try:
        ANSWER = search(*json.load(sys.stdin))
    except Exception as exc:  # noqa: BLE001  (whatever it is, the page says it in one line)
        sys.exit(" ".join(f"{exc}".split()) or type(exc).__name__)
    sys.stdout.buffer.write(to_json(ANSWER, inf_nan_mode="null"))
