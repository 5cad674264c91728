"""Names of keys and fields in Redis, as Feast's Redis store has them, and of a view's state.

The values of an entity are one hash. Its name is the serialised entity key and the project; the
name of a field is a hash of view and feature, and the event time of a view is one more field.

All of this travels to Spark's executors by value, so it imports nothing of Gyre.
"""

from collections.abc import Iterable, Sequence
from operator import itemgetter

from feast import FeatureView, RepoConfig
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.helpers import _mmh3, compute_versioned_name
from feast.protos.feast.types import EntityKey_pb2, Value_pb2

KeyValues = tuple[int | str, ...]
"""Values of a view's join keys, in the order of their sorted names."""


def hash_names(
    config: RepoConfig, view: FeatureView, keys: Iterable[KeyValues]
) -> list[bytes]:
    """Return the name of the hash of each entity."""
    names = sorted(view.join_keys)
    entity = EntityKey_pb2.EntityKey(
        join_keys=names, entity_values=[Value_pb2.Value() for _ in names]
    )
    suffix = config.project.encode()
    hashes = []
    for values in keys:
        for proto, value in zip(entity.entity_values, values, strict=True):
            if isinstance(value, int):
                proto.int64_val = value
            else:
                proto.string_val = value
        name = serialize_entity_key(entity, config.entity_key_serialization_version)
        hashes.append(name + suffix)
    return hashes


def hash_fields(
    config: RepoConfig, view: FeatureView, names: Sequence[str]
) -> list[bytes]:
    """Return the fields of a view in a hash: first its event time, then its features."""
    # `_mmh3` is private, needed until Feast has a public function for the names of fields.
    versioned = compute_versioned_name(
        view, config.registry.enable_online_feature_view_versioning
    )
    features = [_mmh3(f"{versioned}:{name}") for name in names]
    return [f"_ts:{versioned}".encode(), *features]


def entity_values(entity: EntityKey_pb2.EntityKey) -> KeyValues:
    """Return the values of an entity's join keys."""
    pairs = zip(entity.join_keys, entity.entity_values, strict=True)
    sorted_pairs = sorted(pairs, key=itemgetter(0))
    return tuple(getattr(value, value.WhichOneof("val")) for _, value in sorted_pairs)


def state_key(project: str, view: str) -> str:
    """Return the Redis key of a view's state."""
    return f"gyre:online:{project}:{view}"
