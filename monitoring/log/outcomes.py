"""Rows whose outcome is known by now, with the scores of a version.

online: logged predictions of the version. backfilled: the newest snapshots that matured after the
version's evaluation, at most as many as it was evaluated on; the version scores them now.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

from core.settings import Settings
from core.spec import ModelSpec
from feature_repo.labels import label_source
from mlflow_server.roles import RoleAssignment
from monitoring.log.actuals import newest_known, read_actuals, units
from monitoring.log.tables import ANSWERS, answered_rows, is_of_model, logged_scores
from training.data.frame import build_frame
from training.data.snapshots import dates, matured
from training.evaluation.metrics import Labels, Scored
from training.model.scoring import version_scores


@dataclass(frozen=True)
class Outcomes:
    """Rows whose outcome is known, with the scores of a version.

    Attributes:
        kind: online or backfilled.
        about: Description of the rows in words.
        rows: Rows of a frame or of `predictions`, with the column `label`.
        scored: The version's scores, in the order of `rows`.

    """

    kind: str
    about: str
    rows: pa.Table
    scored: Scored

    @property
    def labels(self) -> Labels:
        """The actual value of each row."""
        values: Labels = self.rows["label"].to_numpy()
        return values

    @property
    def differ(self) -> bool:
        """Whether the outcomes differ: no metric can be computed from equal ones."""
        return bool(pc.count_distinct(self.rows["label"]).as_py() > 1)


def backfilled_outcomes(
    settings: Settings,
    spec: ModelSpec,
    version: str,
    evaluated_on: datetime,
    as_of: datetime,
) -> Outcomes | None:
    """Score the newest snapshots that matured after `evaluated_on`; None if there are too few."""
    source = label_source(settings, spec)
    known_until = newest_known(source, as_of)
    newest = matured(spec.snapshots, evaluated_on, known_until)[-spec.snapshots.test :]
    if not newest:
        return None
    rows = build_frame(settings, spec, source, newest, as_of, None)
    if rows.num_rows < spec.monitoring.fewest:
        return None
    scored = version_scores(settings, spec, version, rows)
    return Outcomes("backfilled", dates(newest), rows, scored)


def online_outcomes(
    settings: Settings,
    spec: ModelSpec,
    model: RoleAssignment,
    version: str,
    feedback: Mapping[str, float],
    threshold: float | None,
    as_of: datetime,
) -> Outcomes | None:
    """Join a version's answers with their outcomes; None if too few outcomes are known.

    The last answer to an entity on a day counts, or for a row of the label. Every answer without an
    entity counts. Answers from defaults or outside the population do not count.

    Args:
        settings: Settings of the installation.
        spec: Spec of the model.
        model: The model as it is registered.
        version: The version.
        feedback: Actual values by request. A value of raw data is preferred.
        threshold: Threshold of the version.
        as_of: The moment by which an outcome must be known.

    """
    is_usual = pc.field("in_population") & (pc.field("features_from") != "defaults")
    is_own = is_of_model(model) & (pc.field("version") == version)
    source = label_source(settings, spec)
    is_judgeable = pc.field("as_of") <= newest_known(source, as_of)
    if feedback:  # else young files need not be opened
        names = pa.array([*feedback], pa.string())
        is_judgeable |= pc.field("request_id").isin(names)
    segments = [name for name in spec.segment if name in spec.features]
    columns = [*ANSWERS, "request_data", *(["features"] if segments else [])]
    answers = answered_rows(settings, is_usual & is_own & is_judgeable, columns)
    answers = answers.sort_by("received")
    values, ambiguous_count = read_actuals(spec, source, answers, feedback, as_of)
    label = pa.array(values, from_pandas=True)
    rows = answers.append_column("label", label).filter(pc.is_valid(label))
    keys = units(spec, rows)
    is_last = keys["entity"].isna() | ~keys.duplicated(keep="last")
    rows = rows.filter(pa.array(is_last, pa.bool_()))
    if rows.num_rows < spec.monitoring.fewest:
        return None
    for name in segments:
        texts = [json.loads(text).get(name) for text in rows["features"].to_pylist()]
        rows = rows.append_column(name, pa.array(texts, pa.string()))
    scored = Scored(logged_scores(spec, rows), threshold)
    about = f"{rows.num_rows} outcomes"
    if ambiguous_count:
        about += f", and {ambiguous_count} answers that fit several rows of the label"
    return Outcomes("online", about, rows, scored)
