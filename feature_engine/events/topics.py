"""Records of a topic that others write, as events of a dataset."""

from collections.abc import Callable

from core.errors import DataError
from core.settings import Settings
from feature_repo.definition import Dataset

EventsOf = Callable[[bytes], bytes]
"""Returns the events of an entry as a JSON list.

It raises a ValueError where the entry cannot be read, and a BrokerUnavailableError where the schema
registry does not answer.
"""


def record_reader(settings: Settings, dataset: Dataset) -> EventsOf:
    """Return the function that reads the entries of a dataset.

    Raises:
        DataError: The dataset has a topic, and there is no Kafka.

    """
    if dataset.topic is None:
        return bytes
    if not settings.events_url:
        raise DataError(
            f"{dataset.name}: the topic {dataset.topic.name} needs a Kafka: set GYRE_EVENTS_URL"
        )
    return bytes
