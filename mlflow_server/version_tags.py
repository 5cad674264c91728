"""A version's tags as MLflow keeps them: a few words for people, all hashes in one tag as JSON."""

import json
from collections.abc import Mapping
from contextlib import suppress

LINEAGE = "lineage"
IN_WORDS = {"as_of", "cause", "feature_service", "reason", "who"}


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
