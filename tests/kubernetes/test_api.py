"""deploy/kubernetes on a real API server, with its admission, controllers and scheduler.

`make kubernetes`. No node is there, so that pods are made and wait.
"""

import pytest
import yaml

from tests.conftest import wait_until
from tests.kubernetes.manifests import (
    copy_with_kserve,
    page_commands,
    read_documents,
    spark_pod,
)
from tests.support.kubernetes.chart_repository import chart_repository
from tests.support.kubernetes.cluster import control_plane
from tests.support.kubernetes.crds import definition

pytestmark = pytest.mark.kubernetes
PAGE = "kubernetes.md"
SECTION = "From an empty namespace to a prediction"
QUOTA = {
    "apiVersion": "v1",
    "kind": "ResourceQuota",
    "metadata": {"name": "team"},
    "spec": {
        "hard": {
            "requests.cpu": "40",
            "requests.memory": "80Gi",
            "limits.memory": "160Gi",
            "pods": "60",
        }
    },
}
"""With it a container without requests and a limit of memory is refused."""
OTHERS = {
    "SparkCluster": ("spark.apache.org", "v1", "sparkclusters"),
    "InferenceService": ("serving.kserve.io", "v1beta1", "inferenceservices"),
}
"""Resources of operators that are not there: kind, and the API that has it."""
TOKENS = {"gyre-airflow-scheduler", "gyre-airflow-api"}
"""Accounts of the pods that have a token: one starts pods, the other reads their logs."""
OVERLAYS = {
    "base": {"apply": "base", "serving": 2},
    "production": {"apply": "production", "serving": 3},
    "spark": {"apply": "spark", "serving": 3},
    "kserve": {"apply": "kserve", "serving": None},
}
"""What is applied, and how many replicas its autoscaler asks for at least."""
ALWAYS_SENT = "poddisruptionbudget.policy/serving configured"
"""kubectl sends its selector each time; the API server finds nothing to change."""
MISSPELT = {
    "production": (
        "base/serving.yaml",
        "readOnlyRootFilesystem",
        "readOnlyRootFilesytem",
    ),
    "spark": ("spark/sparkcluster.yaml", "masterSpec", "mastrSpec"),
    "kserve": ("kserve/inferenceservice.yaml", "scaleTarget", "scaleTargt"),
}
"""A file of an overlay, a field in it, and what somebody may write."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with control_plane(tmp_path_factory.mktemp("cluster")) as cluster:
        for kind, (group, version, plural) in OTHERS.items():
            cluster.apply(definition(kind, group, version, plural))
            name = f"crd/{plural}.{group}"
            cluster.kubectl("wait", "--for=condition=Established", name)
        yield cluster


@pytest.fixture
def namespace(cluster, tmp_path):
    """An empty namespace as the page makes it, with its Secret, and a quota."""
    copy_with_kserve(tmp_path)
    write_secrets, install, *_ = page_commands(PAGE, SECTION)
    before_apply = install[: install.index("kubectl apply")]
    cluster.run("bash", "-euc", write_secrets, folder=tmp_path)
    cluster.run("bash", "-euc", before_apply, folder=tmp_path)
    cluster.apply(QUOTA)
    yield tmp_path
    cluster.run("kubectl", "delete", "namespace", "gyre", "--wait")


def apply(cluster, folder, overlay):
    """Apply an overlay as the page does; return a line for each object."""
    command = f"kubectl apply --kustomize deploy/kubernetes/{overlay}"
    assert command.replace(overlay, "production") in page_commands(PAGE, SECTION)[1]
    namespace = ["--namespace=gyre"] if overlay == "base" else []
    done = cluster.attempt(*command.split(), *namespace, folder=folder)
    return done, done.stdout.splitlines()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_is_accepted_and_each_workload_makes_its_pods(
    cluster, namespace, overlay
):
    done, lines = apply(cluster, namespace, overlay)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "a warning"
    assert {line.split()[-1] for line in lines} == {"created"}
    wait_until("pods", lambda: has_all_pods(cluster, overlay), 60)
    refused = [
        event["message"]
        for event in cluster.get("events")
        if event["reason"] in {"FailedCreate", "FailedGetScale"}
    ]
    assert refused == []
    holds_what_pods_read(cluster)
    names_ports_that_pods_have(cluster)
    _, lines = apply(cluster, namespace, overlay)
    changed = {line for line in lines if not line.endswith(" unchanged")}
    assert changed <= {ALWAYS_SENT}
    generations = [
        budget["metadata"]["generation"]
        for budget in cluster.get("poddisruptionbudgets")
    ]
    assert {*generations} <= {1}


def has_all_pods(cluster, overlay):
    """Whether each workload has its pods, and what scales and protects serving has found it."""
    replicas = OVERLAYS[overlay]["serving"]
    wanted = {"console": 1, "consumer": 1, "init": 1, "mlflow": 1}
    if replicas is not None:
        wanted["serving"] = replicas
        (scaler,) = cluster.get("horizontalpodautoscalers")
        (budget,) = cluster.get("poddisruptionbudgets")
        conditions = {
            each["type"]: each["status"]
            for each in scaler.get("status", {}).get("conditions", ())
        }
        found = budget.get("status", {}).get("expectedPods")
        if (conditions.get("AbleToScale"), found) != ("True", replicas):
            return False
    made = {}
    for pod in cluster.get("pods"):
        name = pod["metadata"]["labels"]["app.kubernetes.io/name"]
        made[name] = made.get(name, 0) + 1
    return made == wanted


def holds_what_pods_read(cluster):
    """The Secret has what pods mount and no more; no other pod has a token."""
    specs = [pod["spec"] for pod in cluster.get("pods")]
    volumes = [volume for spec in specs for volume in spec["volumes"]]
    secrets = [volume["secret"] for volume in volumes if "secret" in volume]
    read = {item["key"] for secret in secrets for item in secret["items"]}
    assert read == cluster.get("secret", "gyre")["data"].keys()
    with_token = {
        spec["serviceAccountName"]
        for spec in specs
        if any("projected" in volume for volume in spec["volumes"])
    }
    assert with_token <= TOKENS
    assert not any("hostPath" in volume for volume in volumes)


def names_ports_that_pods_have(cluster):
    """A NetworkPolicy that lets callers in names a port of its pods."""
    pods = cluster.get("pods")
    for policy in cluster.get("networkpolicies"):
        spec = policy["spec"]
        selector = spec["podSelector"].get("matchLabels", {})
        selected = [
            pod for pod in pods if selector.items() <= pod["metadata"]["labels"].items()
        ]
        ports = {
            port["port"]
            for rule in spec.get("ingress", ())
            for port in rule.get("ports", ())
        }
        for pod in selected:
            containers = pod["spec"]["containers"]
            exposed = {
                port["containerPort"]
                for container in containers
                for port in container.get("ports", ())
            }
            assert ports <= exposed, policy["metadata"]["name"]


def test_pods_that_other_projects_make_of_our_files_are_admitted(cluster, namespace):
    apply(cluster, namespace, "kserve")
    apply(cluster, namespace, "spark")
    (service,) = cluster.get("inferenceservices")
    (spark,) = read_documents("spark/sparkcluster.yaml")
    scaling = {"minReplicas", "maxReplicas", "scaleMetric", "scaleTarget"}
    predictor = service["spec"]["predictor"]
    specs = {
        "kserve": {key: predictor[key] for key in predictor.keys() - scaling},
        "master": spark_pod(spark, "master"),
        "worker": spark_pod(spark, "worker"),
    }
    for name, spec in specs.items():
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name},
            "spec": spec,
        }
        cluster.kubectl(
            "create", "--dry-run=server", "--filename=-", stdin=yaml.safe_dump(pod)
        )


def test_the_chart_of_airflow_makes_its_pods_and_a_task_is_admitted(
    cluster, namespace, tmp_path
):
    charts = tmp_path / "charts"
    charts.mkdir()
    _, install, *_ = page_commands(PAGE, SECTION)
    commands = install[install.index("helm repo add") :]
    commands = commands[: commands.index("kubectl --namespace gyre wait")]
    apply(cluster, namespace, "production")
    with chart_repository(charts) as address:
        commands = commands.replace("https://airflow.apache.org", address)
        cluster.run("bash", "-euc", commands, folder=namespace)
    programs = {"api-server", "scheduler", "dag-processor"}

    def components():
        return {
            pod["metadata"]["labels"]["component"]
            for pod in cluster.get("pods", tier="airflow")
        }

    wait_until("Airflow's pods", lambda: components() == programs, 60)
    holds_what_pods_read(cluster)
    names_ports_that_pods_have(cluster)
    config = cluster.get("configmap", "airflow-config")
    task = config["data"]["pod_template_file.yaml"]
    cluster.kubectl("create", "--dry-run=server", "--filename=-", stdin=task)
    refused = [e for e in cluster.get("events") if e["reason"] == "FailedCreate"]
    assert refused == []


def test_a_misspelt_field_fails_an_apply(cluster, namespace):
    """In one namespace: to delete one takes up to 15 s."""
    for overlay, (file, field, misspelt) in MISSPELT.items():
        path = namespace / "deploy" / "kubernetes" / file
        text = path.read_text()
        assert field in text
        path.write_text(text.replace(field, misspelt, 1))
        done, _ = apply(cluster, namespace, overlay)
        assert done.returncode != 0
        assert "strict decoding error: unknown field" in done.stderr
        assert misspelt in done.stderr
        path.write_text(text)
