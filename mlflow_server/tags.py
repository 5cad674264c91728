"""Tags that Gyre gives runs and versions in MLflow, and MLflow's filters by them."""

import json
from collections.abc import Mapping
from contextlib import suppress

KEY_TAG = "gyre.key"
"""What a run was started with (mlflow_server/api/tracking.py)."""
PARENT_TAG = "mlflow.parentRunId"
"""MLflow's UI shows the run below the run that the tag names."""
DESCRIPTION_TAG = "mlflow.note.content"
OUTCOME_TAGS = ("outcome", DESCRIPTION_TAG)
OF_TRAININGS = "tags.as_of LIKE '%'"
"""MLflow's filter of trainings: trials of a search have no `as_of`."""
LINEAGE = "lineage"
"""Of a version: its hashes as JSON, so that a person sees few tags."""
IN_WORDS = {"as_of", "cause", "feature_service", "reason", "who"}
"""Tags that MLflow keeps by themselves."""
FORGOTTEN_TAG = "forgotten"
"""Of a version: the day on which rows of its training frame were forgotten."""
REPRODUCED_TAG = "reproduced"
"""Of a version: whether it was the same when it was last built again, and the day: `yes 2026-11-27`."""
YES = "yes"


def tag_equals(name: str, value: str) -> str:
    """Return MLflow's filter of runs whose tag has the value."""
    quote = '"' if "'" in value else "'"
    return f"tags.`{name}` = {quote}{value}{quote}"


def packed(tags: Mapping[str, str]) -> dict[str, str]:
    """Return the tags as MLflow is to keep them."""
    words = {name: text for name, text in tags.items() if name in IN_WORDS}
    hashes = {name: text for name, text in tags.items() if name not in IN_WORDS}
    return words | {LINEAGE: json.dumps(hashes)}


def unpacked(stored: Mapping[str, str]) -> dict[str, str]:
    """Return the tags that were packed; a tag by itself counts more than one in the JSON."""
    tags = dict(stored)
    # Edited by hand, the JSON may be none: no digests, so the version is not served.
    with suppress(TypeError, ValueError):
        tags = dict(json.loads(tags.pop(LINEAGE, "{}"))) | tags
    return tags
