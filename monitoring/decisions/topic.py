"""Decisions on a topic of the team's Kafka (GYRE_DECISIONS_TOPIC), each at least once.

`topics/MODEL` of GYRE_DATA_URL or GYRE_HOME has the moment up to which Kafka has all decisions. It is
written after the delivery: a killed run's decisions are sent again.
"""

from datetime import datetime, timedelta

from pydantic_core import to_json

from core.errors import BrokerUnavailableError
from core.files import read_if_present, replace_file
from core.locks import one_writer
from core.settings import Settings
from core.timestamps import BEGINNING
from monitoring.decisions.store import decisions_since

DELIVERY_SECONDS = 10.0


def send_decisions(settings: Settings, model: str, as_of: datetime) -> None:
    """Send the decision of a run, and decisions that are newer than the newest one that Kafka has.

    Args:
        settings: Settings of the installation.
        model: Name of the model.
        as_of: Moment of the run, which may be older: it was repeated, or took long.

    Raises:
        SettingsError: The client of Kafka is missing.
        BrokerUnavailableError: Kafka does not answer; the next run sends the decisions.
        DataError: The decisions cannot be read, or another run sent for a minute.

    """
    from core.connectors.kafka import (  # noqa: PLC0415  (an optional client)
        TopicWriter,
        kafka_errors,
    )

    newest_file = settings.data / "topics" / model
    with one_writer(settings, f"monitor_{model}"), kafka_errors():
        content = read_if_present(newest_file)
        newest = datetime.fromisoformat(content.decode()) if content else BEGINNING
        decisions = decisions_since(settings, model, newest, as_of)
        if as_of <= newest:
            # Before the delivery: if it fails or is killed, the next run sends this decision.
            moment_before = as_of - timedelta(microseconds=1)
            replace_file(newest_file, moment_before.isoformat())
        topic = TopicWriter(settings, settings.decisions_topic)
        for decision in decisions:
            moment = decision.as_of.isoformat()
            topic.write(
                f"{model}/{moment}",
                to_json(decision),
                group=model,
                time=decision.as_of,
            )
            newest = max(newest, decision.as_of)
        if not topic.is_flushed(DELIVERY_SECONDS):
            raise BrokerUnavailableError("Kafka: no answer in time")
        replace_file(newest_file, newest.isoformat())
