"""Functions for notebooks: they return data and results of the loop as DataFrames.

Settings are read at each call: those of the installation that GYRE_HOME names, or of a team's stack
by the addresses in GYRE_ settings.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, get_type_hints

import httpx
import pandas as pd
import pyarrow as pa

from core.errors import StackError
from core.settings import load_settings
from core.spec import load_spec
from core.spec.training import Estimator
from core.timestamps import parse_timestamp
from mlflow_server.api.comparison import GATES
from mlflow_server.api.registry import Registry
from mlflow_server.api.tracking import Tracking
from mlflow_server.promotion.ledger import Ledger, LedgerRow
from monitoring.check import CheckResult
from monitoring.decisions.store import DecisionRow, newest_decisions, stored_checks
from monitoring.log.actuals import outcomes_of
from monitoring.log.tables import TIMESTAMP, query_log
from monitoring.log.window import feature_types
from stack.serving_client import ask_serving
from training.artifacts import artifact_bytes
from training.data.frame import snapshot_rows
from training.data.requests import request_frame
from training.evaluation.results import Evaluation, load_evaluation
from training.model.scoring import scored_rows
from training.planning import planned_frame
from training.stages.evaluate import compare, run_metrics
from training.stages.gate import apply_gates
from training.stages.train import served_file, train_model, with_usable_folds

MOST_DECISIONS = 20_000
"""More than monitoring runs of an hour leave in the 400 days that decisions are kept."""
GROUPS = ["test", "baseline", "champion", "minus_champion"]
"""Groups of a run's metrics in MLflow."""
ARROW_TYPES = {
    datetime: TIMESTAMP,
    datetime | None: TIMESTAMP,
    float | None: pa.float64(),
    int: pa.int64(),
    bool: pa.bool_(),
}
"""Types of fields that are no texts."""
PREDICTIONS = """
SELECT request_id, received, as_of, version, role, entity, request_data, features_from,
  in_population, prediction, probability, probabilities,
  UNNEST(json_transform(features, getvariable('types')))
FROM logged WHERE error IS NULL ORDER BY received, place"""


@dataclass(frozen=True)
class Comparison:
    """A model beside baseline and champion on the newest matured snapshots, and results of its gates.

    Attributes:
        passed: Whether every gate is passed, so that a training would register the model.
        metrics: A row for each metric and figure; the index has their names. The columns are the
            groups of the run's metrics in MLflow, all float64:

            - `test`: value of the model
            - `baseline`: value of the best constant answer; nan: the figure has no baseline
            - `champion`: value of the version in production; nan: there was none
            - `minus_champion`: value of the model minus that of the champion

        gates: A row for each gate, then for each remark and for the served file:

            - `rule` (str): rule of the gate, as in `[[gates]]` of the spec
            - `metric` (str): figure that the gate is about
            - `passed` (bool): result
            - `text` (str): the result in words, with the value and the requirement

        evaluation: All measurements, with `rows`, `threshold`, `champion_version`, `segments`,
            and the 95 % intervals by bootstrap: `intervals` and `differences` by metric.
        model: The fitted pipeline; None for a registered version.

    """

    passed: bool
    metrics: pd.DataFrame
    gates: pd.DataFrame
    evaluation: Evaluation
    model: Any = None


def frame(model: str, as_of: datetime | str) -> pd.DataFrame:
    """Return the training rows and test rows of a training at `as_of`.

    Nothing is stored. Rows and labels are as known at `as_of`; features are as known at the time of
    each row.

    Args:
        model: Name of the model, as in `models/NAME.toml`.
        as_of: Moment of the training: a time with an offset from UTC.

    Returns:
        A row for each entity and snapshot, sorted by time and key:

        - the columns of `entity_key` (int64 or str): the entity
        - `event_timestamp` (datetime64, UTC): time of the snapshot, or of the label's own row
        - a column for each feature of the spec, in its order: its value at that time, of the
          spec's type (float64 where an integer has nulls)
        - `label`: 0 or 1 (int64), a number (float64), or the position of a class (int64)
        - the columns of `audit` (str), and request data of the feature service

    Raises:
        SettingsError: There is no such model (the message names those that exist), or `as_of` has
            no offset from UTC or lies in the future.
        TrainingError: No row was known then, or no label has matured.

    """
    moment = parse_timestamp(as_of, "as_of")
    rows, _ = planned_frame(load_settings(), load_spec(model), moment)
    return pd.DataFrame(rows.to_pandas())


def features(model: str, entities: pd.DataFrame, as_of: datetime | str) -> pd.DataFrame:
    """Return the features of entities as they were at `as_of`, from the offline store.

    Entities outside the population are kept.

    Args:
        model: Name of the model.
        entities: Rows with the columns of `entity_key`, and request data if the service needs some.
            A column `event_timestamp` asks for an earlier time.
        as_of: Moment of the features: a time with an offset from UTC.

    Returns:
        A row for each entity, sorted by time and key:

        - the columns of `entity_key` (int64 or str): the entity
        - `event_timestamp` (datetime64, UTC): time of the features
        - a column for each feature of the spec, in its order, of the spec's type; null if the
          entity has none (float64 where an integer has nulls, `__missing__` for a text)
        - request data of the feature service

    Raises:
        SettingsError: There is no such model, or `as_of` has no offset from UTC or lies in the
            future.
        NoRequestError: There is no entity.
        DataError: A column is missing, or has another type.

    """
    moment = parse_timestamp(as_of, "as_of")
    spec = load_spec(model).model_copy(update={"population": None})
    questions = pa.Table.from_pandas(entities, preserve_index=False)
    rows = request_frame(load_settings(), spec, questions, moment, "entities")
    return pd.DataFrame(rows.to_pandas())


def evaluate(
    model: str, estimator: Any, as_of: datetime | str | None = None
) -> Comparison:
    """Fit an estimator as a training would, and compare it with baseline and champion.

    Snapshots, threshold, served file and gates are those of a training at `as_of`. Nothing is
    stored or registered. The champion is scored on the same rows.

    Args:
        model: Name of the model.
        estimator: An unfitted estimator of scikit-learn; a clone of it is fitted. Its input is a
            matrix of numbers and one-hot encoded texts; medians replace nulls unless the estimator
            accepts nulls. A Pipeline gets a DataFrame with the spec's features.
        as_of: Moment of the training: a time with an offset from UTC; now if absent.

    Returns:
        Metrics and gates, and the fitted model.

    Raises:
        SettingsError: There is no such model, or `as_of` has no offset from UTC or lies in the
            future.
        TrainingError: No label has matured then, or the estimator cannot be fitted or served.
        RegistryError: MLflow does not answer.

    """
    settings = load_settings()
    moment = parse_timestamp(as_of or datetime.now(UTC), "as_of")
    spec = load_spec(model).model_copy(update={"training": None})
    rows, plan = planned_frame(settings, spec, moment)
    chosen = Estimator(
        name=type(estimator).__name__,
        type="sklearn.base:clone",  # the factory of what is an object already
        parameters={"estimator": estimator},
    )
    plan = with_usable_folds(rows, plan)
    fitted, threshold, _ = train_model(spec, chosen, rows, plan)
    served, proof = served_file(spec, fitted, threshold, rows, plan)
    test_rows = snapshot_rows(rows, plan.test)
    challenger = scored_rows(spec, served, threshold, test_rows)
    evaluated, _ = compare(settings, spec, rows, plan, challenger, vars(proof))
    outcomes = apply_gates(spec.gates, evaluated, spec.least_class_rows)
    return _comparison(evaluated, map(vars, outcomes), fitted)


def evaluation(model: str, version: str) -> Comparison:
    """Return the measurements of the training of a registered version, and results of its gates.

    Args:
        model: Name of the model.
        version: Number of the version in MLflow.

    Returns:
        Metrics and gates; the champion is the version that was in production then.

    Raises:
        SettingsError: There is no such model.
        RegistryError: MLflow does not answer, or has no such version.

    """
    settings = load_settings()
    run_id = Registry(settings).version(load_spec(model).name, version).run_id
    tracking = Tracking(settings)
    stored = json.loads(artifact_bytes(tracking, run_id, GATES))
    return _comparison(load_evaluation(tracking, run_id), stored["gates"])


def predict(model: str, entities: pd.DataFrame) -> pd.DataFrame:
    """Ask serving for predictions, by HTTP. They are logged like those of every other client.

    Args:
        model: Name of the model.
        entities: 1 to 10,000 rows with the columns of `entity_key`, and request data if the service
            needs some. A column `features` with dictionaries replaces stored features.

    Returns:
        A row for each entity, in their order:

        - the columns of `entity_key` (int64 or str): the entity
        - `prediction`: 0 or 1 or a number (float64), or the name of a class (str)
        - `probability` (float64): probability of 1; only of a classification
        - `probabilities` (dict): probability of each class by its name; only of many classes
        - `model_version` (str): version that answered
        - `request_id` (str): id by which feedback names the prediction
        - `features_from` (str): origin of the features, such as `online`, `request`, `defaults`
        - `in_population` (bool): whether the model is meant for the entity
        - `logged` (bool): whether the prediction is in the log

    Raises:
        SettingsError: There is no such model, or no token for serving.
        StackError: Serving does not answer, or refuses the rows.

    """
    settings = load_settings()
    name = load_spec(model).name
    rows = pa.Table.from_pandas(entities, preserve_index=False).to_pylist()
    place = f"serving at {settings.serving_address}"
    try:
        response = ask_serving(settings, f"/models/{name}/predict/batch", rows)
    except httpx.HTTPError as exc:
        remedy = "start it (gyre up), or name its address: GYRE_SERVING_URL"
        raise StackError(f"{place}: no answer ({exc}); {remedy}") from exc
    if response.is_error:
        raise StackError(f"{place} answers {response.status_code}: {response.text}")
    return pd.DataFrame(response.json())


def predictions(model: str, since: datetime | str) -> pd.DataFrame:
    """Return the answered predictions that were received after `since`, with their outcomes.

    Predictions that no monitoring run has collected yet are missing.

    Args:
        model: Name of the model.
        since: A time with an offset from UTC.

    Returns:
        A row for each answer, in the order of arrival:

        - `request_id` (str): id by which feedback names the prediction
        - `received`, `as_of` (datetime64, UTC): time of the request, and of its features
        - `version`, `role` (str): version that answered, and its role (`shadow`: only logged)
        - `entity` (str): the key; JSON if it has several columns
        - `request_data` (str): JSON of the request's data
        - `features_from` (str): origin of the features, such as `online`, `request`, `defaults`
        - `in_population` (bool): whether the model is meant for the entity
        - `prediction` (float64): 0 or 1, a number, or the position of a class
        - `probability` (float64): probability of 1; of many classes that of the prediction
        - `probabilities` (array): probability of each class, in the spec's order; only of many
          classes
        - a column for each feature of the spec: numbers are float64, texts and timestamps str;
          null where the version had no such feature
        - `outcome` (float64): actual value, from raw data or feedback; nan: not known yet

    Raises:
        SettingsError: There is no such model, or `since` has no offset from UTC or lies in the
            future.
        RegistryError: MLflow does not answer.
        DataError: A table cannot be read.

    """
    settings = load_settings()
    spec = load_spec(model)
    first = parse_timestamp(since, "since")
    now = datetime.now(UTC)
    assignment = Registry(settings).assignment(spec.name)
    with query_log(settings, assignment, first, now) as connection:
        types = feature_types(spec.features)
        connection.execute("SET VARIABLE types = $1", [types])
        answers = connection.execute(PREDICTIONS).to_arrow_table()
    outcomes = outcomes_of(settings, spec, answers, now)
    return pd.DataFrame(answers.to_pandas()).assign(outcome=outcomes)


def decisions(model: str) -> pd.DataFrame:
    """Return the decisions of monitoring runs, oldest first.

    Args:
        model: Name of the model.

    Returns:
        A row for each monitoring run:

        - `model`, `version` (str): name of the model, and the version in production
        - `as_of` (datetime64, UTC): moment of the run
        - `verdict` (str): verdict on the window: `ok`, `bad`, `unknown` or `insufficient_data`
        - `action` (str): `nothing`, `alert`, `retrain` or `rollback`
        - `rule`, `reason` (str): rule from which the action follows, and why, in words
        - `cause` (str): name of the cause of a retraining; empty: none
        - `words` (str): the verdict in one sentence
        - `inputs` (str): all inputs of the decision, as JSON
        - `entities` (int64): number of entities in the window
        - `serving` (str): counts of serving by replica, as JSON; null if they are unknown
        - `created` (int64): time of the model's registration, in milliseconds since 1970

    Raises:
        SettingsError: There is no such model.
        DataError: The table cannot be read.

    """
    name = load_spec(model).name
    rows = newest_decisions(load_settings(), name, MOST_DECISIONS)
    return _table(map(vars, rows), DecisionRow)


def checks(model: str, since: datetime | str) -> pd.DataFrame:
    """Return the results of the checks of monitoring runs after `since`, oldest first.

    Args:
        model: Name of the model.
        since: A time with an offset from UTC.

    Returns:
        A row for each check of each monitoring run:

        - `as_of` (datetime64, UTC): moment of the run, as `decisions` has it
        - `name` (str): figure, such as `psi/total_spend_30d`
        - `kind` (str): kind of problem, such as `data_drift`
        - `status` (str): `ok`, `note`, `alert`, `bad`, `harmful` or `unknown`
        - `value`, `limit` (float64): value, and limit from which the status is not ok; nan: none
        - `words`, `remedy` (str): the result in one sentence, and advice
        - `link` (str): a page that shows more
        - `feature` (str): feature, metric or dataset that the check is about
        - `incident` (str): name of the alert
        - `acts` (bool): whether the check acts; False: monitor only
        - `reason` (str): why the check does not act, from the spec

    Raises:
        SettingsError: There is no such model, or `since` has no offset from UTC or lies in the
            future.
        DataError: The table cannot be read.

    """
    runs = decisions(model)
    moments = runs["as_of"][runs["as_of"] > parse_timestamp(since, "since")]
    stored = stored_checks(load_settings(), model, moments)
    rows = [
        {"as_of": moment, **vars(result)}
        for moment, results in sorted(stored.items())
        for result in results
    ]
    return _table(rows, CheckResult, as_of=datetime)


def ledger(model: str) -> pd.DataFrame:
    """Return every change of a role, from the ledger of promotions, oldest first.

    Args:
        model: Name of the model.

    Returns:
        A row for each change:

        - `model` (str): name of the model
        - `sequence` (int64): number of the row
        - `role` (str): `production`, `challenger` or `shadow`
        - `percent` (int64): percent of requests that the version answers; 0: no version
        - `from_version`, `to_version` (str): version that leaves the role, and that enters it
        - `who`, `why` (str): author of the change, and its reason
        - `evidence` (str): evidence for the change, such as `runs:/ID` in MLflow
        - `time` (datetime64, UTC): time of the row
        - `applied_at` (datetime64, UTC): time at which MLflow had the change; NaT: not applied
        - `action` (str): cause of the change, such as `promote` or `automatic rollback`
        - `created` (int64): time of the model's registration, in milliseconds since 1970

    Raises:
        SettingsError: There is no such model.
        RegistryError: The database of the ledger does not answer.

    """
    name = load_spec(model).name
    with Ledger(load_settings()) as store:
        return _table(map(vars, store.rows(name)), LedgerRow)


def _comparison(
    evaluated: Evaluation, outcomes: Iterable[Mapping[str, Any]], model: Any = None
) -> Comparison:
    """Return an evaluation and the outcomes of its gates as tables."""
    values = {
        tuple(name.split("/")): value
        for name, value in run_metrics(evaluated).items()
        if "/" in name
    }
    metrics = pd.Series(values, dtype=float).unstack(0)  # noqa: PD010  (it has no pivot_table)
    metrics = metrics.reindex(columns=GROUPS).dropna(subset="test")
    gates = pd.DataFrame([*outcomes])
    passed = bool(gates["passed"].all())
    return Comparison(passed, metrics, gates, evaluated, model)


def _table(
    rows: Iterable[Mapping[str, Any]], row_type: type, **columns: type
) -> pd.DataFrame:
    """Return rows with the fields of a dataclass; without rows the columns keep their types."""
    fields = columns | get_type_hints(row_type)
    types = {name: ARROW_TYPES.get(kind, pa.string()) for name, kind in fields.items()}
    table = pa.Table.from_pylist([*rows], pa.schema(types))
    return pd.DataFrame(table.to_pandas())
