"""Tags of a run that say what it was made of: enough to build it again and compare."""

from mlflow_server.api.tracking import Run

FINGERPRINT = "gyre.fingerprint"
PLANNED_TAG = "planned_as_of"
FIRST_EVENT_TAG = "gyre.first_event"
"""Tags of a run from which its snapshots are planned again, the same ones at each try."""
OUTCOME_PREFIXES = ("mlflow.", "gyre.", "gate", "outcome", "unlabelled", "version")
"""Beginnings of tags that say what became of a run; all others say what it was made of."""


def lineage(run: Run) -> dict[str, str]:
    """Return what a run and its version were made of, by tag."""
    return {
        name: value
        for name, value in sorted(run.tags.items())
        if value and not name.startswith(OUTCOME_PREFIXES)
    }
