"""Tags that Gyre gives runs and versions in MLflow, and MLflow's filters by them."""

import json
from collections.abc import Mapping
from contextlib import suppress

KEY_TAG = "gyre.key"
"""Tag of a run: the key by which `Tracking.start_or_find_run` finds it."""
PARENT_TAG = "mlflow.parentRunId"
"""Tag of a run: MLflow's UI shows it below the run that the tag names."""
DESCRIPTION_TAG = "mlflow.note.content"
"""Tag of a run or an experiment: its description in MLflow's UI."""
OUTCOME_TAGS = ("outcome", DESCRIPTION_TAG)
OF_TRAININGS = "tags.as_of LIKE '%'"
"""MLflow's filter of runs that are trainings: trials of a search have no `as_of`."""
LINEAGE = "lineage"
"""Tag of a version: its hashes as JSON, so that a person sees few tags."""
READABLE_TAGS = {"as_of", "cause", "feature_service", "reason", "who"}
"""Tags of a version that stay tags of their own."""
FORGOTTEN_TAG = "forgotten"
"""Tag of a version: the day on which rows of its training frame were forgotten."""
REPRODUCED_TAG = "reproduced"
"""Tag of a version: whether it was the same when it was last built again, as `yes 2026-11-27`."""
YES = "yes"


def tag_equals(name: str, value: str) -> str:
    """Return MLflow's filter of runs whose tag has the value."""
    quote = '"' if "'" in value else "'"
    return f"tags.`{name}` = {quote}{value}{quote}"


def packed(tags: Mapping[str, str]) -> dict[str, str]:
    """Return the tags of a version as MLflow stores them: hashes are one JSON."""
    words = {name: text for name, text in tags.items() if name in READABLE_TAGS}
    hashes = {name: text for name, text in tags.items() if name not in READABLE_TAGS}
    return words | {LINEAGE: json.dumps(hashes)}


def unpacked(stored: Mapping[str, str]) -> dict[str, str]:
    """Return the tags of a version; a tag of its own counts more than one in the JSON."""
    tags = dict(stored)
    # A person may have broken the JSON: then there are no digests, and serving refuses the version.
    with suppress(TypeError, ValueError):
        tags = dict(json.loads(tags.pop(LINEAGE, "{}"))) | tags
    return tags
