"""Online store: whether it still has the rows that it was given, and whether it may drop some."""

from collections.abc import Iterator

from core.errors import BrokerUnavailableError
from core.settings import Settings
from feature_repo.broker import eviction_problem
from feature_repo.lost_rows import LookedUpView, look_up_known_keys
from feature_repo.service import PublishedService
from monitoring.check import CheckResult, Status
from monitoring.run import MonitoringRun
from training.reference import Reference

KIND = "online_store"


def online_store(
    run: MonitoringRun, _reference: Reference | None
) -> Iterator[CheckResult]:
    """Look up a sample of the keys that are online, in each view that the model reads."""
    service = PublishedService(run.settings, run.spec.feature_service)
    for name, dataset in service.datasets().items():
        views = look_up_known_keys(run.settings, dataset, [*service.join_keys])
        yield judge_lost_rows(name, views)
    yield _eviction(run.settings)


def _eviction(settings: Settings) -> CheckResult:
    """Judge whether Redis may drop rows."""
    status: Status = "ok"
    try:
        problem = eviction_problem(settings)
        if problem:
            status = "alert"
    except BrokerUnavailableError as exc:
        problem = str(exc)
        status = "unknown"
    return CheckResult(
        name=f"{KIND}/eviction",
        kind=KIND,
        status=status,
        words=f"Redis: {problem}" if status == "alert" else problem or "",
        remedy="maxmemory-policy noeviction" if problem else "",
    )


def judge_lost_rows(dataset: str, views: list[LookedUpView]) -> CheckResult:
    """Judge what was found of the views of a dataset: no row may be lost."""
    lost = sum(view.lost for view in views)
    keys = sum(view.keys for view in views)
    problems = [f"{view.view}: {view.problem}" for view in views if view.problem]
    words = f"{dataset}: {keys} known keys were looked up online"
    remedy = ""
    status: Status = "ok"
    if problems:
        status = "unknown"
        words = (
            f"{dataset}: known keys were not looked up online: {'; '.join(problems)}"
        )
        remedy = f"gyre ingest {dataset}"
    if lost:
        status = "alert"
        words = f"{dataset}: of {keys} known keys {lost} are not online any more"
        remedy = f"gyre ingest {dataset} --full"
    return CheckResult(
        name=f"{KIND}/{dataset}",
        kind=KIND,
        status=status,
        value=None if problems and not lost else float(lost),
        limit=0.0,
        words=words,
        remedy=remedy,
        link=f"/data/{dataset}",
        feature=dataset,
        incident=f"{dataset}: rows are lost online" if lost else "",
    )
