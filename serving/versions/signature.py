"""Fields that clients send to a model, as its spec and its loaded versions say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from core.spec import FeatureType, KeyType, ModelSpec
from core.spec.training import Task
from mlflow_server.manifest import ModelManifest


@dataclass(frozen=True)
class Signature:
    """Fields that clients send to a model, and the kind of its answers.

    Attributes:
        task: Kind of the predictions.
        classes: Names of the classes, where there are many.
        entity_key: Columns that name an entity, and their types.
        request_data: Types of fields beside the key, of every version that is kept. A version may
            need fewer of them: what is absent is found when features are looked up.
        features: Types of the features that a row has to give, if it gives any.
        further: Types of features that other versions and the spec take: a row may give them, so
            that clients can change before a version does.
        nullable: Features that may be null, as they were in training.

    """

    task: Task
    classes: tuple[str, ...]
    entity_key: Mapping[str, KeyType]
    request_data: Mapping[str, FeatureType]
    features: Mapping[str, FeatureType]
    further: Mapping[str, FeatureType]
    nullable: frozenset[str]


def sign(
    spec: ModelSpec, production: ModelManifest | None, others: Sequence[ModelManifest]
) -> Signature:
    """Return the signature of a model: a version is served as it was trained.

    Args:
        spec: Spec of the model, as it is now. It counts before a version is in production.
        production: The version that answers.
        others: Versions that are kept beside it. The first ones count more.

    """
    leading = production or spec
    nullable = {*production.nullable} if production else set()
    request_data: dict[str, FeatureType] = {}
    further = dict(spec.features)
    for version in reversed(others):
        request_data |= version.lookup.request_data | version.outcome_key
        further |= version.features
        nullable.update({*version.nullable} - leading.features.keys())
    if production:
        request_data |= production.lookup.request_data | production.outcome_key
    for name in (*leading.entity_key, *request_data, *leading.features):
        further.pop(name, None)
    return Signature(
        task=leading.task,
        classes=leading.classes,
        entity_key=leading.entity_key,
        request_data=request_data,
        features=leading.features,
        further=further,
        nullable=frozenset(nullable),
    )
