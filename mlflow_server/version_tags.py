"""A version's tags as MLflow keeps them: a few words for people, all hashes in one tag as JSON."""

import json
from collections.abc import Mapping
from contextlib import suppress

LINEAGE = "lineage"
IN_WORDS = {"as_of", "cause", "feature_service", "reason", "who"}


def packed(tags: Mapping[str, str]) -> dict[str, str]:
    hashes = {name: value for name, value in tags.items() if name not in IN_WORDS}
    return {name: tags[name] for name in IN_WORDS & tags.keys()} | {
        LINEAGE: json.dumps(hashes)
    }


def unpacked(kept: Mapping[str, str]) -> dict[str, str]:
    """Return what was packed; a tag by itself, as earlier versions have each, counts more."""
    tags = dict(kept)
    # Somebody has edited it: no digests, so not served.
    with suppress(TypeError, ValueError):
        tags = dict[str, str](json.loads(tags.pop(LINEAGE, "{}"))) | tags
    return tags
