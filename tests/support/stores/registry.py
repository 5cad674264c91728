"""A schema registry with the REST calls of Confluent's: Apicurio's, its schemas in memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.conftest import answers, running, unused_port, wait_until
from tests.support.stores.jars import registry_jars


@contextmanager
def registry_server(log: Path) -> Iterator[str]:
    """Run an empty registry; its address, as `schema.registry.url` takes it."""
    port = unused_port()
    (program,) = registry_jars().glob("*-runner.jar")
    options = {
        "quarkus.http.host": "127.0.0.1",
        "quarkus.http.port": port,
        "apicurio.storage.kind": "sql",
        "apicurio.storage.sql.kind": "h2",
        "apicurio.datasource.url": "jdbc:h2:mem:registry",
    }
    command = ["java", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
    command += [f"-D{name}={value}" for name, value in options.items()]
    address = f"http://127.0.0.1:{port}/apis/ccompat/v7"
    with running([*command, "-jar", str(program)], log) as process:
        is_up = partial(answers, f"{address}/subjects")
        wait_until("the schema registry", is_up, process=process)
        yield address
