"""Kafka: real brokers on loopback, which can be killed, and librdkafka's mock of them."""

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ctypes import (
    CDLL,
    c_char_p,
    c_int,
    c_size_t,
    c_void_p,
    create_string_buffer,
)
from functools import partial
from pathlib import Path

from confluent_kafka import ElectionType, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, TopicMetadata

from tests.conftest import running, unused_port, wait_until
from tests.support.stores.jars import kafka_jars

USER = "gyre"
PASSWORD = "secret"
CLUSTER = "Z3lyZSB0ZXN0cyBrYWZrYQ"
"""Sixteen bytes, as base64 writes them."""
JAVA = ["java", "-Xms64m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
"""The first compiler alone: a server of a test is young."""
JOIN_MILLISECONDS = 100
"""How long a new group of the mock waits for further members."""
LOG = """
Configuration:
  Appenders:
    Console:
      name: console
      PatternLayout: {pattern: "%d %p %c: %m%n"}
  Loggers:
    Root: {level: WARN, AppenderRef: {ref: console}}
"""
PROPERTIES = """
process.roles=broker,controller
node.id={number}
controller.quorum.voters={voters}
listeners={listeners},CONTROLLER://{controller}
advertised.listeners={listeners}
controller.listener.names=CONTROLLER
inter.broker.listener.name=BROKERS
listener.security.protocol.map=CONTROLLER:PLAINTEXT,BROKERS:PLAINTEXT,CLIENTS:{protocol}
log.dirs={data}
metadata.log.dir={folder}/metadata-{number}
auto.create.topics.enable=false
auto.leader.rebalance.enable=false
default.replication.factor={replicas}
min.insync.replicas={in_sync}
offsets.topic.num.partitions=5
offsets.topic.replication.factor={replicas}
transaction.state.log.num.partitions=5
transaction.state.log.replication.factor={replicas}
transaction.state.log.min.isr={in_sync}
group.initial.rebalance.delay.ms=0
broker.heartbeat.interval.ms=1000
broker.session.timeout.ms=6000
"""
SECURITY = """
listener.name.clients.ssl.keystore.type=PEM
listener.name.clients.ssl.keystore.location={folder}/broker.pem
listener.name.clients.sasl.enabled.mechanisms=PLAIN
listener.name.clients.plain.sasl.jaas.config=\
org.apache.kafka.common.security.plain.PlainLoginModule required user_{user}="{password}";
"""
CERTIFY = """
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=kafka
-addext subjectAltName=IP:127.0.0.1 -keyout broker.key -out authority.pem
"""


class Kafka:
    """Brokers that are controllers too (KRaft), and a client that looks after them.

    Three keep each message three times, and acknowledge what two have. A topic has to be created.

    Attributes:
        settings: Of a client, for confluent-kafka.
        admin: A client of all brokers.
        processes: Of the brokers, by number from 1 on.

    """

    def __init__(
        self, folder: Path, brokers: int, secured: bool, data: Path | None
    ) -> None:
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self._folder = folder
        self._stops: dict[int, ExitStack] = {}
        self._numbers = range(1, brokers + 1)
        (folder / "log4j2.yaml").write_text(LOG)
        ports: set[int] = set()
        while len(ports) < 3 * brokers:
            ports.add(unused_port())
        addresses = [f"127.0.0.1:{port}" for port in sorted(ports)]
        self._addresses = dict(zip(self._numbers, addresses, strict=False))
        between = dict(zip(self._numbers, addresses[brokers:], strict=False))
        controllers = dict(zip(self._numbers, addresses[2 * brokers :], strict=True))
        self.settings = {"bootstrap.servers": ",".join(self._addresses.values())}
        if secured:
            self._make_certificate()
            self.settings |= {
                "security.protocol": "SASL_SSL",
                "ssl.ca.location": str(folder / "authority.pem"),
                "sasl.mechanism": "PLAIN",
                "sasl.username": USER,
                "sasl.password": PASSWORD,
            }
        voters = [f"{number}@{address}" for number, address in controllers.items()]
        for number, address in self._addresses.items():
            properties = PROPERTIES.format(
                number=number,
                voters=",".join(voters),
                listeners=f"CLIENTS://{address},BROKERS://{between[number]}",
                controller=controllers[number],
                protocol=self.settings.get("security.protocol", "PLAINTEXT"),
                folder=folder,
                data=data or folder / f"data-{number}",
                replicas=brokers,
                in_sync=min(brokers, 2),
            )
            if secured:
                properties += SECURITY.format(
                    folder=folder, user=USER, password=PASSWORD
                )
            self._properties(number).write_text(properties)
        self._format()
        self.admin = self._client(self.settings["bootstrap.servers"])

    def start(self, *numbers: int) -> None:
        """Start brokers, on the ports and the disk that they had; wait until all of them answer."""
        for number in numbers:
            command = ["kafka.Kafka", str(self._properties(number))]
            self._stops[number] = ExitStack()
            self.processes[number] = self._stops[number].enter_context(
                running(self._java(*command), self._folder / f"broker-{number}.log")
            )
        for number in numbers:
            # The others list one that was killed for a while: this one has to answer itself.
            client = self._client(self._addresses[number])
            is_up = partial(knows, client, {*numbers})
            wait_until("Kafka", is_up, process=self.processes[number])

    def kill(self, number: int) -> None:
        """Kill a broker by SIGKILL. The others notice it after six seconds."""
        self._stops.pop(number).close()

    def restart(self, number: int) -> None:
        """Start a broker that was killed, or has ended."""
        if number in self._stops:
            self.kill(number)
        self.start(number)

    def stop(self) -> None:
        """Kill all brokers that run."""
        for number in [*self._stops]:
            self.kill(number)

    def create_topic(self, name: str, partitions: int = 1, **config: str) -> None:
        """Create a topic, and wait for its leaders.

        Args:
            name: Of the topic.
            partitions: How many.
            config: Of the topic, with `_` for each dot: `retention_ms="1000"`.

        """
        dotted = {key.replace("_", "."): value for key, value in config.items()}
        topic = NewTopic(name, num_partitions=partitions, config=dotted)
        self.admin.create_topics([topic])[name].result()
        wait_until(f"topic {name}", lambda: self.is_replicated(name))

    def leader(self, topic: str, partition: int = 0) -> int:
        """Return the number of the broker that leads a partition; -1: none does."""
        return self._topic(topic).partitions[partition].leader

    def is_replicated(self, topic: str) -> bool:
        """Whether every partition has a leader, and all brokers have all of its messages."""
        partitions = self._topic(topic).partitions.values()
        return bool(partitions) and all(
            part.leader > 0 and len(part.isrs) == len(self._numbers)
            for part in partitions
        )

    def move_leader(self, topic: str, partition: int = 0) -> int:
        """Kill the leader, wait for another, and start it again; return the new leader."""
        before = self.leader(topic, partition)
        self.kill(before)
        wait_until(
            "another leader",
            lambda: self.leader(topic, partition) not in {before, -1},
        )
        self.start(before)
        wait_until("all replicas", lambda: self.is_replicated(topic))
        return self.leader(topic, partition)

    def elect_leader(self, topic: str, partition: int = 0) -> None:
        """Let the preferred broker lead again, while all run: nothing is killed."""
        place = TopicPartition(topic, partition)
        self.admin.elect_leaders(ElectionType.PREFERRED, [place]).result()

    def _topic(self, name: str) -> TopicMetadata:
        return self.admin.list_topics(name, timeout=30).topics[name]

    def _client(self, addresses: str) -> AdminClient:
        quiet = {"log_level": 0, "reconnect.backoff.max.ms": 500}
        return AdminClient(self.settings | quiet | {"bootstrap.servers": addresses})

    def _properties(self, number: int) -> Path:
        return self._folder / f"broker-{number}.properties"

    def _java(self, *arguments: str) -> list[str]:
        log = f"-Dlog4j2.configurationFile={self._folder}/log4j2.yaml"
        return [*JAVA, "-cp", f"{kafka_jars()}/*", log, *arguments]

    def _format(self) -> None:
        """Format all disks at once, as a JVM takes long to start."""
        command = self._java("kafka.tools.StorageTool", "format", "-t", CLUSTER, "-c")
        with (self._folder / "format.log").open("ab") as log:
            tools = [
                subprocess.Popen(
                    [*command, str(self._properties(number))], stdout=log, stderr=log
                )
                for number in self._numbers
            ]
            codes = [tool.wait() for tool in tools]
        assert not any(codes), (self._folder / "format.log").read_text()

    def _make_certificate(self) -> None:
        """Make a certificate that vouches for itself, and a file of it with its key."""
        command = CERTIFY.split()
        subprocess.run(command, cwd=self._folder, check=True, capture_output=True)
        parts = ("broker.key", "authority.pem")
        texts = [(self._folder / part).read_text() for part in parts]
        (self._folder / "broker.pem").write_text("".join(texts))


def knows(client: AdminClient, brokers: set[int]) -> bool:
    """Whether who answers a client lists these brokers."""
    try:
        return brokers <= {*client.list_topics(timeout=2).brokers}
    except KafkaException:
        return False


@contextmanager
def kafka_servers(
    folder: Path, brokers: int = 1, *, secured: bool = False, data: Path | None = None
) -> Iterator[Kafka]:
    """Run Kafka without any topic, and end it with the block.

    Args:
        folder: Of its configuration, its logs and its disks.
        brokers: One or three.
        secured: Clients speak TLS, and log in as USER with PASSWORD (SASL, PLAIN).
        data: Folder of the messages of one broker: a small disk, say.

    """
    kafka = Kafka(folder, brokers, secured, data)
    try:
        kafka.start(*range(1, brokers + 1))
        yield kafka
    finally:
        kafka.stop()


@contextmanager
def mock_kafka(brokers: int = 1) -> Iterator[str]:
    """Run librdkafka's mock cluster in this process; yield its `bootstrap.servers`.

    It starts in 20 ms. Other processes reach it too. Tried with confluent-kafka 2.16.0; held by
    tests/kafka/test_mock_kafka.py. It supports:

    - messages with key, headers, time and null; it keeps the last 5 MB of a partition
    - consumer groups of the classic protocol, with several members that share the partitions
    - commits with metadata of any length (a broker: 4,096 characters), by a member or by a
      consumer with `assign`; they are read by `committed`, also after the consumer has closed
    - list_consumer_group_offsets and alter_consumer_group_offsets of named partitions
    - get_watermark_offsets, and list_offsets of the earliest and the latest

    It does otherwise than a broker:

    - the first join of a group takes a tenth of a second (a broker's: 3 s); the next one waits for a
      member that has closed until its `session.timeout.ms` (45 s) is over
    - list_topics of an unknown topic by an AdminClient or a Producer creates it, with 4 partitions,
      as a produced message does; by a Consumer it does not, and has UNKNOWN_TOPIC_OR_PART
    - transactions return success and mean nothing: messages of an aborted or open one are read by
      read_committed, offsets of send_offsets_to_transaction are not committed, and a second
      producer with the same transactional.id does not fence the first
    - offsets_for_times returns -1 (the end) for every time
    - list_consumer_groups returns no group, nor does list_consumer_group_offsets without partitions
      return any

    It does not support: create_topics, delete_topics, create_partitions, describe_topics,
    describe_configs, describe_cluster (they time out: no controller), describe_consumer_groups and
    delete_records (_UNSUPPORTED_FEATURE).
    """
    library = librdkafka()
    error = create_string_buffer(512)
    # The cluster ends with this client, a producer.
    holder = library.rd_kafka_new(0, None, error, len(error))
    assert holder, error.value
    cluster = library.rd_kafka_mock_cluster_new(holder, brokers)
    # A broker's 3 s are for members that come one after the other.
    library.rd_kafka_mock_group_initial_rebalance_delay_ms(cluster, JOIN_MILLISECONDS)
    try:
        yield library.rd_kafka_mock_cluster_bootstraps(cluster).decode()
    finally:
        library.rd_kafka_mock_cluster_destroy(cluster)
        library.rd_kafka_destroy(holder)


def librdkafka() -> CDLL:
    """Return the library that the Python client has loaded; its mock is part of it."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    file = next(line.split()[-1] for line in lines if "/librdkafka" in line)
    library = CDLL(file)
    library.rd_kafka_new.restype = c_void_p
    library.rd_kafka_new.argtypes = [c_int, c_void_p, c_char_p, c_size_t]
    library.rd_kafka_destroy.argtypes = [c_void_p]
    library.rd_kafka_mock_cluster_new.restype = c_void_p
    library.rd_kafka_mock_cluster_new.argtypes = [c_void_p, c_int]
    library.rd_kafka_mock_cluster_destroy.argtypes = [c_void_p]
    library.rd_kafka_mock_cluster_bootstraps.restype = c_char_p
    library.rd_kafka_mock_cluster_bootstraps.argtypes = [c_void_p]
    delay = library.rd_kafka_mock_group_initial_rebalance_delay_ms
    delay.argtypes = [c_void_p, c_int]
    return library
