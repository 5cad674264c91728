"""Prometheus and Alertmanager of Debian's packages, and copies of what is shipped for both."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

from core.project import CLONE
from tests.conftest import answers, running, unused_port, wait_until
from tests.support.tools.debian import install, of_journeys

SHIPPED = CLONE / "deploy" / "prometheus"
KEPT = Path(sys.prefix) / "debian"
"""Where packages lie once fetched: they go with the environment."""

TEMPLATES = Path("/usr/share/prometheus/alertmanager")
"""Debian's Alertmanager reads its own templates from there alone, so it has to be installed."""


def programs(package: str, program: str) -> Path:
    """Folder of a program of the system, else of Debian's package, unpacked and never installed."""
    of_journeys(program)
    path = shutil.which(program)
    if path:
        return Path(path).parent
    kept = KEPT / package
    if not kept.exists():
        KEPT.mkdir(exist_ok=True)
        with TemporaryDirectory(dir=KEPT) as name:
            download = f"apt-get download {package}"
            fetch = f"{{ {download} || {{ apt-get update && {download}; }}; }}"
            command = f"{fetch} && dpkg -x {package}_*.deb here"
            subprocess.run(command, cwd=name, shell=True, check=True)
            (Path(name) / "here").rename(kept)
    return kept / "usr" / "bin"


def changed(name: str, values: Mapping[str, str]) -> str:
    """The text of a shipped file with other values, each of which must stand in it."""
    text = (SHIPPED / name).read_text()
    for value, other in values.items():
        assert value in text, (name, value)
        text = text.replace(value, other)
    return text


class Alertmanager:
    """With the shipped configuration, but for the address of the receiver, and how long it waits."""

    def __init__(self, folder: Path, receiver: str) -> None:
        self.port = unused_port()
        self.log = folder / "alertmanager.log"
        address = folder / "url"
        address.write_text(receiver)
        config = changed(
            "alertmanager.yml",
            {
                "/run/secrets/alertmanager_url": str(address),
                "group_wait: 30s": "group_wait: 1s",
                "group_wait: 10s": "group_wait: 1s",
                "group_interval: 5m": "group_interval: 1s",
            },
        )
        (folder / "alertmanager.yml").write_text(config)
        if not TEMPLATES.exists():
            install("prometheus-alertmanager")
        binaries = programs("prometheus-alertmanager", "prometheus-alertmanager")
        self.command = [
            f"{binaries}/prometheus-alertmanager",
            f"--config.file={folder}/alertmanager.yml",
            f"--storage.path={folder}/alertmanager",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--cluster.listen-address=",
        ]

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        """It ends by SIGKILL with the block, unless it has ended before."""
        with running(self.command, self.log) as process:
            url = f"http://127.0.0.1:{self.port}/-/ready"
            wait_until("Alertmanager", lambda: answers(url), process=process)
            yield process

    def alerts(self) -> dict[str, list[str]]:
        """Names of receivers by the name of each alert that it has."""
        alerts = httpx.get(f"http://127.0.0.1:{self.port}/api/v2/alerts", timeout=60)
        return {
            alert["labels"]["alertname"]: [each["name"] for each in alert["receivers"]]
            for alert in alerts.json()
        }


def stop(process: subprocess.Popen[bytes]) -> None:
    """As `systemctl restart` does."""
    process.send_signal(signal.SIGTERM)
    process.wait(600)


@contextmanager
def prometheus_server(folder: Path, ports: Mapping[int, int]) -> Iterator[str]:
    """Address of a Prometheus with what is shipped, but for ports and for how often it looks.

    ports: The port of 127.0.0.1 in place of each that the shipped configuration has.
    """
    own_port = unused_port()
    values = {
        f"127.0.0.1:{port}": f"127.0.0.1:{other}" for port, other in ports.items()
    }
    config = changed("prometheus.yml", {": 15s": ": 1s"} | values)
    (folder / "prometheus.yml").write_text(config)
    rules = changed("alerts.yml", {"for: 1m\n": "for: 1s\n"})  # of GyreDown alone
    (folder / "alerts.yml").write_text(rules)
    command = [
        f"{programs('prometheus', 'prometheus')}/prometheus",
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/prometheus",
        f"--web.listen-address=127.0.0.1:{own_port}",
        # Else an Alertmanager that was started again hears of an alert after a minute.
        "--rules.alert.resend-delay=3s",
    ]
    address = f"http://127.0.0.1:{own_port}"
    with running(command, folder / "prometheus.log") as process:
        wait_until("Prometheus", lambda: answers(f"{address}/-/ready"), process=process)
        yield address
