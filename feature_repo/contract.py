"""What a feature service promises: its definition, and those of all views that it reads."""

from __future__ import annotations

from itertools import chain
from pathlib import PurePath
from typing import Any

from google.protobuf.json_format import MessageToDict

NOT_WRITTEN = frozenset({"meta", "body", "dataSourceClassType"})
"""Parts of a Feast object that change with the clock, the process or how often it was applied."""

SERVICE = "service "


def contract(registry: Any, service: str) -> dict[str, Any]:
    """Return what people wrote of `service` and all it reads, by name; empty if it is unknown.

    registry: Feast's registry as a protobuf message.
    """
    asked = [each.spec for each in registry.feature_services if each.spec.name == service]
    views = {
        each.spec.name: each.spec
        for each in chain(
            registry.feature_views, registry.stream_feature_views, registry.on_demand_feature_views
        )
    }
    names = {projection.feature_view_name for spec in asked for projection in spec.features}
    for name in names & views.keys():
        sources = getattr(views[name], "sources", {})  # of an on-demand view
        names |= {source.feature_view_projection.feature_view_name for source in sources.values()}
    parts = {name: views[name] for name in names & views.keys()}
    parts |= {f"{SERVICE}{service}": spec for spec in asked}
    return {name: _written(MessageToDict(part)) for name, part in sorted(parts.items())}


def _written(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: _written(v) for key, v in value.items() if key not in NOT_WRITTEN}
        if "uri" in kept:  # the folder is the installation's
            kept["uri"] = PurePath(kept["uri"]).name
        return kept
    return [_written(v) for v in value] if isinstance(value, list) else value
