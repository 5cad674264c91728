"""Who reaches whom by the NetworkPolicies of deploy/kubernetes, computed as Kubernetes decides."""

import re

import pytest

from core.settings import CLONE
from tests.kubernetes.manifests import base, read_documents

BASE = base()
POLICIES = [
    document["spec"] for document in BASE if document["kind"] == "NetworkPolicy"
]
GYRE = {"app.kubernetes.io/part-of": "gyre"}
AIRFLOW_PROGRAMS = {"api-server", "scheduler", "dag-processor", "worker"}
LABELS = {
    each["metadata"]["name"]: each["spec"]["template"]["metadata"]["labels"]
    for each in BASE
    if each["kind"] in {"Deployment", "StatefulSet", "Job"}
} | {
    name: GYRE | {"tier": "airflow", "component": name, "release": "airflow"}
    for name in AIRFLOW_PROGRAMS
}
NAMESPACES = {
    "proxy": {"gyre/proxy": "true"},
    "prometheus": {"gyre/prometheus": "true"},
    "stranger": {},
}
MAIL = {25, 465, 587}


def selects(selector, labels):
    for expression in selector.get("matchExpressions", []):
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return selector.get("matchLabels", {}).items() <= labels.items()


def policies_of(pod, direction):
    policies = [
        policy
        for policy in POLICIES
        if direction in policy["policyTypes"]
        and selects(policy["podSelector"], LABELS[pod])
    ]
    assert policies, "nothing denies it"
    return policies


def is_peer(peer, caller):
    if caller in NAMESPACES:
        selector = peer.get("namespaceSelector")
        return selector is not None and selects(selector, NAMESPACES[caller])
    selector = peer.get("podSelector")
    return selector is not None and selects(selector, LABELS[caller])


def callers_of(target, port):
    """Return the pods, and the namespaces, that may open a connection."""
    callers = set()
    for policy in policies_of(target, "Ingress"):
        for rule in policy.get("ingress", []):
            if port in [allowed["port"] for allowed in rule["ports"]]:
                for caller in (*LABELS, *NAMESPACES):
                    if any(is_peer(peer, caller) for peer in rule["from"]):
                        callers.add(caller)
    return callers


CALLERS = {
    ("serving", 8000): {"proxy", "prometheus", "console", *AIRFLOW_PROGRAMS},
    ("console", 8001): {"proxy", "prometheus"},
    ("mlflow", 5000): {
        "proxy",
        "serving",
        "console",
        "consumer",
        "init",
        *AIRFLOW_PROGRAMS,
    },
    ("api-server", 8080): {"proxy", "console", *AIRFLOW_PROGRAMS},
    ("scheduler", 8793): set(),
    ("consumer", 8000): set(),
}


@pytest.mark.parametrize(("target", "port"), CALLERS)
def test_only_the_listed_callers_reach_a_program(target, port):
    assert callers_of(target, port) == CALLERS[target, port]


@pytest.mark.parametrize("pod", sorted(LABELS))
def test_a_pod_reaches_stores_anywhere_and_mail_only_if_it_sends_alerts(pod):
    ports = set()
    for policy in policies_of(pod, "Egress"):
        for rule in policy.get("egress", []):
            if "to" not in rule:
                ports |= {port["port"] for port in rule["ports"]}
    assert {5432, 6379, 443} <= ports
    assert ports & MAIL == (MAIL if pod in {"console", "worker"} else set())


def test_only_tasks_reach_spark_at_the_ports_of_its_options():
    lines = (CLONE / "deploy" / "spark" / "spark-defaults.conf").read_text()
    options = dict(re.findall(r"^(spark\S+) (.*)$", lines, re.MULTILINE))
    documents = read_documents("spark/network.yaml")
    policies = {each["metadata"]["name"]: each["spec"] for each in documents}
    of_cluster, of_tasks = policies["spark"]["ingress"]
    (to_driver,) = policies["spark-driver"]["ingress"]
    (cluster,) = of_cluster["from"]
    (spark,) = read_documents("spark/sparkcluster.yaml")
    labels = {"spark.operator/spark-cluster-name": spark["metadata"]["name"]}
    assert cluster["podSelector"] == {"matchLabels": labels}
    assert policies["spark"]["podSelector"] == cluster["podSelector"]
    assert to_driver["from"] == [cluster]
    executor = int(options["spark.blockManager.port"])
    executors = {"port": executor, "endPort": executor + 16}
    assert of_tasks["ports"] == [{"port": 7077}, executors]
    names = ("spark.driver.port", "spark.driver.blockManager.port")
    driver_ports = [int(options[name]) for name in names]
    assert [port["port"] for port in to_driver["ports"]] == driver_ports
    (task,) = of_tasks["from"]
    callers = [name for name in LABELS if selects(task["podSelector"], LABELS[name])]
    assert callers == ["worker"]
    assert selects(policies["spark-driver"]["podSelector"], LABELS["worker"])
    for role in ("master", "worker"):
        template = spark["spec"][f"{role}Spec"]["statefulSetSpec"]["template"]
        # What the policies `nobody` and `outwards` select.
        assert template["metadata"]["labels"] == GYRE
