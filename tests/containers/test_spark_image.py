"""The image `spark`: a master and a worker as Kubernetes has them, and a driver that asks them."""

import json
import subprocess
from ast import literal_eval
from ipaddress import ip_address

import pytest

from tests.conftest import wait_until
from tests.containers.conftest import container, logs
from tests.support.tools.images import CLONE_ID, podman, run

pytestmark = pytest.mark.containers
MASTER = f"gyre-spark-master-{CLONE_ID}"
WORKER = f"gyre-spark-worker-{CLONE_ID}"
NETWORK = f"gyre-spark-{CLONE_ID}"
SECRET = "known-to-hosts-alone"
OPERATOR = "{} && while /opt/spark/sbin/spark-daemon.sh status {} 1; do sleep 1; done"
"""What the operator of deploy/kubernetes/spark has bash run, in place of the image's own command."""
JOB = f"""
import os
from pyspark.sql import SparkSession

def environments(batches):
    import deltalake, feast, mmh3, numpy, pandas, pyarrow, redis
    environment = {{"user": os.getuid(), "secret": os.environ["AWS_SECRET_ACCESS_KEY"]}}
    yield pyarrow.RecordBatch.from_pylist([environment])

session = SparkSession.builder.master("spark://{MASTER}:7077").getOrCreate()
frame = session.range(0, 1, 1, 1).mapInArrow(environments, "user long, secret string")
(environment,) = frame.toArrow().to_pylist()
options = dict(session.sparkContext.getConf().getAll())
print({{"environment": environment, "options": options}})
"""


@pytest.fixture(scope="module")
def network():
    """A network of its own, where containers know each other by their names."""
    removal = ["podman", "network", "rm", "--force", NETWORK]
    # Of a test that was killed.
    subprocess.run(removal, check=False, capture_output=True)
    podman("network", "create", NETWORK)
    yield NETWORK
    run(*removal)


def started_by_operator(script, program):
    """Return podman's option for what the operator starts."""
    program = f"org.apache.spark.deploy.{program}"
    line = OPERATOR.format(f"/opt/spark/sbin/{script}", program)
    return f"--entrypoint={json.dumps(['bash', '-c', line])}"


def test_a_job_without_s3_keys_uses_the_keys_of_the_workers(build, network, tmp_path):
    image = build("spark")
    for name in ("aws_access_key_id", "aws_secret_access_key"):
        (tmp_path / name).write_text(f"{SECRET}\n")
    run("chown", "--recursive", "1000:1000", tmp_path)
    secrets = f"--volume={tmp_path}:/run/secrets:ro"
    master = started_by_operator("start-master.sh", "master.Master")
    start_worker = f"start-worker.sh spark://{MASTER}:7077"
    worker = started_by_operator(start_worker, "worker.Worker")
    with container(MASTER, image, master, network=network):
        wait_until("the master", lambda: "New state: ALIVE" in logs(MASTER))
        with container(WORKER, image, worker, secrets, network=network):
            driver = ["--rm", "--read-only", f"--network={network}"]
            driver += ["--env=KUBERNETES_SERVICE_HOST=10.0.0.1", "--entrypoint=python"]
            printed = podman("run", *driver, image, "-c", JOB, ends=900)
    answer = literal_eval(printed.splitlines()[-1])
    assert answer["environment"] == {"user": 1000, "secret": SECRET}
    assert answer["options"]["spark.cores.max"] == "2"
    # No name, which only it knows.
    assert ip_address(answer["options"]["spark.driver.host"])
    assert SECRET not in f"{answer['options']}"
