"""Look-up specification of a version: how a worker reads its features online, without Feast.

It is part of `serving.json` and written once, at registration (feature_repo/lookup_writer.py).
Every byte of Feast's encoding that a reader depends on stands in it, as Feast made it.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from stack.spec import FeatureType, KeyType  # noqa: TC001  (pydantic reads the annotations)


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
    """One Redis hash per entity: `prefix`, type, size and bytes of each key value, `suffix`.

    keys: columns of the request, in the order of the hash's name. time: field with the event time.
    mark: Redis key that holds up to when the view was materialised. ttl_us: age in microseconds
    above which a value is null; 0: never.
    """

    keys: dict[str, KeyType]
    prefix: bytes
    suffix: bytes
    time: bytes
    mark: str
    ttl_us: int
    features: tuple[StoredFeature, ...]


class OnDemandFunction(Frozen):
    """An on-demand view: a function of the installed project, called with columns.

    sha256: of its source as `feature_repo.on_demand` reads it. inputs: name that it knows → column.
    """

    module: str = Field(pattern=r"^[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)+$")
    function: str
    sha256: str
    inputs: dict[str, str]
    outputs: dict[str, FeatureType]


class LookupSpecification(Frozen):
    """feast: version that wrote it. online_store: type in feature_store.yaml.

    unsupported: why only Feast's own reader can answer; views and functions are then empty.
    """

    feast: str
    online_store: str
    unsupported: str | None = None
    views: tuple[StoredView, ...] = ()
    functions: tuple[OnDemandFunction, ...] = ()
