"""Checks of the online store: whether it has lost rows, and whether it may drop rows."""

from collections.abc import Iterator

from core.errors import GyreError
from core.settings import Settings
from feature_repo.definition import Dataset
from feature_repo.engine import feature_engine
from feature_repo.online_store import eviction_problem
from feature_repo.published.service import service_of
from monitoring.check import CheckResult, Status
from monitoring.run import MonitoringRun
from training.evaluation.reference import Reference

ONLINE_STORE = "online_store"


def online_store(
    run: MonitoringRun, _reference: Reference | None
) -> Iterator[CheckResult]:
    """Look up a sample of the keys that are online, in each view that the model reads."""
    yield _eviction(run.settings)
    service = service_of(run.settings, run.spec)
    for dataset in service.datasets().values():
        for view in service.join_keys.keys() & dataset.views.keys():
            yield _lost_rows(run.settings, dataset, view)


def _lost_rows(settings: Settings, dataset: Dataset, view: str) -> CheckResult:
    """Judge a view: no row may be lost."""
    value = None
    status: Status = "unknown"
    try:
        keys, lost = feature_engine().lost_rows(settings, dataset, view)
        value = float(lost)
        status = "alert" if lost else "ok"
        words = f"{view}: of {keys} known keys {lost} have no row online"
    except GyreError as exc:
        words = f"known keys were not looked up online: {exc}"
    return CheckResult(
        name=f"{ONLINE_STORE}/{view}",
        kind=ONLINE_STORE,
        status=status,
        value=value,
        limit=0.0,
        words=words,
        remedy="" if status == "ok" else f"gyre ingest {dataset.name} --full",
        link=f"/data/{dataset.name}",
        feature=dataset.name,
    )


def _eviction(settings: Settings) -> CheckResult:
    """Judge whether Redis may drop rows."""
    status: Status = "ok"
    words = ""
    try:
        problem = eviction_problem(settings)
        if problem:
            status = "alert"
            words = f"Redis: {problem}"
    except GyreError as exc:
        status = "unknown"
        words = str(exc)
    return CheckResult(
        name=f"{ONLINE_STORE}/eviction", kind=ONLINE_STORE, status=status, words=words
    )
