"""A team's schema registry (GYRE_SCHEMA_REGISTRY__URL), by Confluent's own client."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.schema_registry.error import SchemaRegistryError
from confluent_kafka.schema_registry.json_schema import JSONDeserializer

from core.connectors.addresses import without_secrets
from core.errors import BrokerUnavailableError, GyreError, SettingsError
from core.settings import Settings
from core.user_code import in_one_line

SECONDS = 5.0
"""How long the registry may take for one call."""
UNKNOWN = (40401, 40402, 40403)
"""The registry's own codes for a subject, a version or a schema that it does not have."""


@contextmanager
def _registry_errors() -> Iterator[None]:
    """Translate every error of a call, but the one that the schema is unknown."""
    try:
        yield
    except Exception as exc:
        if isinstance(exc, SchemaRegistryError) and exc.error_code in UNKNOWN:
            raise
        text = f"Schema registry: {in_one_line(exc)}"
        raise BrokerUnavailableError(text) from exc


class _Registry(SchemaRegistryClient):
    """A client whose errors are about the registry, and never about a record."""

    def get_schema(self, *arguments: Any, **options: Any) -> Schema:
        with _registry_errors():
            return super().get_schema(*arguments, **options)

    def get_version(self, *arguments: Any, **options: Any) -> Any:
        with _registry_errors():
            return super().get_version(*arguments, **options)


def registry_reader(
    settings: Settings, kind: str, read_json: Callable[[bytes], Any]
) -> Callable[[bytes], Any]:
    """Return the function that reads records by the schema whose id they begin with.

    It raises a ValueError where the record cannot be read, and a BrokerUnavailableError where the
    registry does not answer.

    Args:
        settings: Settings of the installation.
        kind: `avro` or `json-schema`.
        read_json: Reads the JSON of a record of `json-schema`; it raises a ValueError.

    Raises:
        SettingsError: A setting of the client is wrong.

    """
    client: dict[str, Any] = {"timeout": SECONDS, "max.retries": 1}
    for name, value in settings.schema_registry.items():
        client[name.replace("_", ".")] = value
    try:
        registry = _Registry(client)
    except (ValueError, TypeError, OSError) as exc:
        text = without_secrets(str(exc), settings.schema_registry["url"])
        raise SettingsError(f"GYRE_SCHEMA_REGISTRY: {text}") from exc
    # The id alone names the schema, whatever the subject is called.
    options = {"subject.name.strategy": lambda *_: None}
    read: Any = AvroDeserializer(registry, conf=options)
    if kind == "json-schema":
        read = JSONDeserializer(
            None, None, registry, conf=options, json_decode=read_json
        )

    def content_of(record: bytes) -> Any:
        try:
            return read(record)
        except GyreError:
            raise
        except Exception as exc:  # whatever the libraries raise for a record
            raise ValueError(in_one_line(exc)) from exc

    return content_of
