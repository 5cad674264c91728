"""Look-up specification of a version: how a worker reads its features online, without Feast.

It is part of `serving.json` and written once, at registration (feature_repo/lookup_writer.py).
Every byte of Feast's encoding that a reader depends on stands in it, as Feast made it.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from stack.spec import FeatureType, KeyType  # noqa: TC001  (pydantic reads the annotations)

MODULE = r"^[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)+$"


class Frozen(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", ser_json_bytes="hex", val_json_bytes="hex"
    )


class StoredFeature(Frozen):
    """name: as Feast's answer has it. field: its name in the hash. tag: of its protobuf field."""

    name: str
    kind: FeatureType
    field: bytes
    tag: int


class StoredView(Frozen):
    """One Redis hash per entity: `prefix`, type, size and bytes of each key value, `suffix`."""

    keys: dict[str, KeyType]
    """Columns of the request, in the order of the hash's name."""
    prefix: bytes
    suffix: bytes
    time: bytes
    """Field with the event time."""
    mark: str
    """Redis key that holds up to when the view was materialised."""
    ttl_us: int
    """Age in microseconds above which a value is null; 0: never."""
    features: tuple[StoredFeature, ...]


class OnDemandFunction(Frozen):
    """An on-demand view: a function of the installed project, called with columns."""

    module: str = Field(pattern=MODULE)
    function: str
    sha256: str
    """Of the function's source as `feature_repo.on_demand` reads it."""
    inputs: dict[str, str]
    """Name that the function knows → column."""
    outputs: dict[str, FeatureType]


class LookupSpecification(Frozen):
    """feast: version that wrote it. online_store: type in feature_store.yaml."""

    feast: str
    online_store: str
    unsupported: str | None = None
    """Why only Feast's own reader can answer; views and functions are then empty."""
    views: tuple[StoredView, ...] = ()
    functions: tuple[OnDemandFunction, ...] = ()

    @property
    def features(self) -> set[str]:
        """Names of all that can be looked up."""
        of_views = {feature.name for view in self.views for feature in view.features}
        return of_views.union(*(function.outputs for function in self.functions))
