"""Spark's standalone cluster on hosts that share no folder, and S3: `make cluster`, as root.

A host is a group of namespaces: network, mounts and processes. All of it is gone as soon as its
first process is, which is killed with pytest.
"""

import gc
import os
import shutil
import subprocess
import sys
import sysconfig
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from core.project import CLONE
from tests.conftest import BIN, answers, running, wait_until
from tests.support.stores.s3 import s3_server

HOST = "10.77.0.1"
"""Of driver, master and S3."""
BRIDGE = "gyre0"
PACKAGES = f"""
pyspark py4j pyarrow pyarrow.libs deltalake arro3 numpy numpy.libs
pandas pandas.libs dateutil pytz six.py tzdata typing_extensions.py
feast redis annotated_doc annotated_types anyio attr certifi click colorama dill fastapi google
gunicorn idna jinja2 jwt markupsafe mmh3{sysconfig.get_config_var("EXT_SUFFIX")} packaging
prometheus_client psutil pydantic pydantic_core requests sqlalchemy starlette tqdm
typeguard typing_inspection urllib3 uvicorn yaml
"""
"""All that the environment of an executor holds, of those that are installed here.

From feast on of online values: Feast, what it imports, and the client of Redis.
"""
MASTER = "org.apache.spark.deploy.master.Master"
WORKER = """
org.apache.spark.deploy.worker.Worker --cores 2 --memory 2g --work-dir /media/work
"""
NAMESPACES = "unshare --net --mount --pid --fork --kill-child --mount-proc"
SECRET = "known-to-hosts-alone"
MARKS = [
    pytest.mark.cluster,
    pytest.mark.filterwarnings(
        "ignore:.*socket.socket:pytest.PytestUnraisableExceptionWarning"
    ),
]


def ip(arguments):
    subprocess.run(["ip", *arguments.split()], check=True)


def delete(link):
    """Delete a network link, if there is one."""
    subprocess.run(["ip", "link", "delete", link], check=False, capture_output=True)


class Cluster:
    """A master, and workers that can be killed and started again."""

    def __init__(self, folder, s3):
        self.folder = folder
        self.s3 = s3
        self.address = f"spark://{HOST}:7077"
        self.page = f"http://{HOST}:8080"
        self._hosts = {}
        self._started = 0

    def start_worker(self, number, packages=PACKAGES):
        """Start a worker; return its address, which no worker had before.

        At an address of before, Spark goes on waiting for who was there.
        """
        self._started += 1
        address = f"10.77.0.{10 + self._started}"
        folder = self.folder / f"worker-{number}"
        folder.mkdir(exist_ok=True)
        script = str(Path(__file__).with_name("worker.sh"))
        purelib = Path(pytest.__file__).parent.parent
        installed = [name for name in packages.split() if (purelib / name).exists()]
        command = [*NAMESPACES.split(), script, f"{address}/24", sys.executable]
        command += [" ".join(installed), str(folder), str(CLONE), *WORKER.split()]
        command.append(self.address)
        host = ExitStack()
        # What executors have of an environment is that of their worker.
        # What they spill goes to a disk: their /tmp is memory.
        log = folder / "worker.log"
        process = host.enter_context(running(command, log, SPARK_LOCAL_DIRS="/media"))
        self._hosts[number] = host
        network = Path(f"/proc/{process.pid}/ns/net")
        ours = Path("/proc/self/ns/net").readlink()
        wait_until("a network", lambda: network.readlink() != ours)
        cable = f"{BRIDGE}-{number}"
        delete(cable)  # of a killed host it goes by itself, a little later
        ip(f"link add {cable} type veth peer name eth0 netns {process.pid}")
        ip(f"link set {cable} master {BRIDGE} up")
        wait_until(f"worker {number}", lambda: self._is_alive(address), process=process)
        return address

    def kill_worker(self, number):
        """Kill all processes of a worker's host, at once and for good."""
        self._hosts.pop(number).close()

    def restore(self):
        """Have both workers, with all packages."""
        for number in {1, 2} - self._hosts.keys():
            self.start_worker(number)

    def kill_workers(self):
        for number in [*self._hosts]:
            self.kill_worker(number)

    def running_applications(self):
        return {application["id"] for application in self._state()["activeapps"]}

    def _is_alive(self, address):
        workers = self._state()["workers"]
        return ("ALIVE", address) in [(row["state"], row["host"]) for row in workers]

    def _state(self):
        return httpx.get(f"{self.page}/json/").json()


@contextmanager
def bridge():
    """Have a network that the hosts are connected to."""
    delete(BRIDGE)
    ip("link set lo up")
    ip(f"link add {BRIDGE} type bridge")
    try:
        ip(f"address add {HOST}/24 dev {BRIDGE}")
        ip(f"link set {BRIDGE} up")
        yield
    finally:
        delete(BRIDGE)


@contextmanager
def running_cluster(folder):
    """Start S3 and a master; end them, and the workers that were started, with the block.

    Args:
        folder: Of the logs, and of the workers' own folders.

    """
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        stack.enter_context(bridge())
        patch.setenv("PATH", f"{BIN}{os.pathsep}{os.environ['PATH']}")
        s3 = stack.enter_context(s3_server(folder, patch, HOST))
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_TIMEOUT", "60s")  # longer than S3 is stopped
        command = [str(BIN / "spark-class"), MASTER, "--host", HOST]
        command += ["--port", "7077", "--webui-port", "8080"]
        stack.enter_context(running(command, folder / "master.log"))
        cluster = Cluster(folder, s3)
        wait_until("the master", lambda: answers(f"{cluster.page}/json/"))
        stack.callback(cluster.kill_workers)
        yield cluster


@pytest.fixture(scope="session")
def whole_cluster(tmp_path_factory):
    for program in ("ip", "unshare", "java"):
        if not shutil.which(program):
            pytest.skip(f"needs {program}")
    command = [*NAMESPACES.split(), "true"]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("needs root, and a machine that lets root make network namespaces")
    folder = tmp_path_factory.mktemp("cluster")
    with pytest.MonkeyPatch.context() as patch:
        # JVMs of minutes: what their second compiler wins, they do not live to see.
        patch.setenv("JDK_JAVA_OPTIONS", "-XX:TieredStopAtLevel=1")
        with running_cluster(folder) as cluster:
            yield cluster


@pytest.fixture
def cluster(whole_cluster):
    whole_cluster.restore()
    return whole_cluster


OPTIONS = {
    "spark.driver.host": HOST,
    "spark.executor.cores": "1",
    "spark.executor.memory": "700m",
    "spark.cores.max": "2",  # a second application has as many
    "spark.log.level": "ERROR",
    "spark.ui.showConsoleProgress": "false",
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.shuffle.partitions": "4",
    # Small rows are spread, too.
    "spark.sql.adaptive.coalescePartitions.enabled": "false",
}
"""Of Spark, for tests in this process and for commands."""


def spark_defaults(folder):
    """Write OPTIONS for commands; return the folder that SPARK_CONF_DIR is to name."""
    lines = [f"{name} {value}" for name, value in OPTIONS.items()]
    (folder / "spark-defaults.conf").write_text("\n".join(lines))
    return folder


def spark_session(master):
    from pyspark import cloudpickle  # noqa: PLC0415
    from pyspark.sql import SparkSession  # noqa: PLC0415

    from feature_engine.engines import executors  # noqa: PLC0415

    batch_rows = "spark.sql.execution.arrow.maxRecordsPerBatch"
    options = OPTIONS | {batch_rows: str(executors.BATCH_ROWS)}
    builder = SparkSession.builder.master(master).appName("gyre")
    session = builder.config(map=options).getOrCreate()
    cloudpickle.register_pickle_by_value(executors)
    return session


def page_texts(spark, cluster):
    """Return the texts of the pages of a driver and of the master."""
    driver = f"http://{HOST}:4040"
    application = f"{driver}/api/v1/applications/{spark.sparkContext.applicationId}"
    pages = (
        f"{application}/allexecutors",
        f"{application}/environment",
        f"{application}/jobs",
        f"{application}/sql?details=true&planDescription=true&length=1000",
        f"{application}/stages?details=true",
        f"{driver}/SQL/",
        f"{driver}/environment/",
        f"{driver}/jobs/",
        f"{driver}/stages/",
        f"{cluster.page}/json/",
    )
    return [httpx.get(page).raise_for_status().text for page in pages]


@pytest.fixture(scope="session")
def whole_session(whole_cluster):
    session = spark_session(whole_cluster.address)
    yield session
    session.stop()
    gc.collect()


@pytest.fixture
def spark(cluster, whole_session):
    return whole_session
