"""Checks of a team's own feature views: their definitions, and the age of their newest values online.

Views of datasets need none: an ingest compares definitions before it writes, and knows its ages.
"""

from collections.abc import Iterator
from datetime import timedelta

from feature_repo.datasets import dataset_of
from feature_repo.published.definition_check import changed_definitions
from feature_repo.published.feast_reader import OnlineFeatures
from feature_repo.published.service import service_of
from mlflow_server.api.registry import Registry
from mlflow_server.model.pyfunc import read_version
from monitoring.check import CheckResult
from monitoring.checks.skew import read_vectors, sample_rows
from monitoring.run import MonitoringRun
from training.evaluation.reference import Reference

HOUR = timedelta(hours=1)
ENTITIES = 100
"""Entities of the window whose values are read."""


def team_views(
    run: MonitoringRun, _reference: Reference | None
) -> Iterator[CheckResult]:
    """Alert of definitions that changed since the training, and of views whose values are all old."""
    service = service_of(run.settings, run.spec)
    views = [view for view in service.stored if dataset_of(view.name) is None]
    if not views:
        return
    version = Registry(run.settings).version(run.spec.name, run.version)
    for name in changed_definitions(service, version):
        yield CheckResult(
            name=f"definition/{name}",
            kind="freshness",
            status="alert",
            words=f"{name} is defined otherwise than when version {run.version} was trained",
            remedy=f"{run.spec.command}, or publish the change under a new name",
            feature=name,
            incident=f"version {run.version}: {name} changed",
        )
    contract, _ = read_version(Registry(run.settings), version)
    rows = sample_rows(run.settings, run.model, run.version, run.as_of)
    vectors = read_vectors(rows[:ENTITIES], contract)
    online = OnlineFeatures(run.settings, service.name, [*contract.features])
    online.read([{**each.key, **each.request_data} for each in vectors], run.as_of)
    for view in views:
        newest = online.newest_times.get(view.name)
        if newest is None:
            continue  # no entity of the window has values
        age = run.as_of - newest
        is_old = bool(view.ttl) and age > view.ttl
        words = f"{view.name}: its newest value online is {age / HOUR:.1f} h old"
        yield CheckResult(
            name=f"newest_value/{view.name}",
            kind="freshness",
            status="alert" if is_old else "ok",
            value=age / HOUR,
            limit=view.ttl / HOUR if view.ttl else None,
            words=words,
            remedy="ask who fills its source" if is_old else "",
            feature=view.name,
            incident=f"{view.name}: all values are old" if is_old else "",
        )
