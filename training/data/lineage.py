"""Tags with the inputs of a run: enough to build its version again and compare."""

from collections.abc import Mapping

from core.spec import ModelSpec
from feature_repo.definition import table_versions
from mlflow_server.api.tracking import Run

FINGERPRINT = "gyre.fingerprint"
PLANNED_TAG = "planned_as_of"
ADOPTED_TAG = "adopted_from"
"""Tag of a run and a version whose model was trained elsewhere: where it came from."""
FIRST_EVENT_TAG = "gyre.first_event"
"""Tags of a run from which its snapshots are planned again, the same ones at each try."""
OUTCOME_PREFIXES = ("mlflow.", "gyre.", "gate", "outcome", "unlabelled", "version")
"""Beginnings of tags with the outcome of a run; all other tags are its inputs."""


def label_version(spec: ModelSpec, tags: Mapping[str, str]) -> int | None:
    """Return the version of the label's raw table that tags pin; None: it has no versions."""
    return table_versions(tags).get(spec.dataset or "")


def lineage(run: Run) -> dict[str, str]:
    """Return the tags with the inputs of a run and of its version."""
    return {
        name: value
        for name, value in sorted(run.tags.items())
        if value and not name.startswith(OUTCOME_PREFIXES)
    }
