"""Who reaches whom by the NetworkPolicies of deploy/kubernetes, computed as Kubernetes decides."""

import re

import pytest

from core.project import CLONE
from tests.kubernetes.manifests import (
    AIRFLOW_PROGRAMS,
    base,
    pod_labels,
    read_documents,
)

SPARK_PROGRAMS = {"spark-master", "spark-worker"}
KAFKA_POLICIES = [each["spec"] for each in read_documents("kafka/network.yaml")]
DOCUMENTS = [*base(), *read_documents("spark/network.yaml")]
POLICIES = [each["spec"] for each in DOCUMENTS if each["kind"] == "NetworkPolicy"]
OPTIONS = (CLONE / "deploy" / "spark" / "spark-defaults.conf").read_text()
NAMESPACES = {
    "proxy": {"gyre/proxy": "true"},
    "prometheus": {"gyre/prometheus": "true"},
    "stranger": {},
}
MAIL = {25, 465, 587}
BROKERS = {9092, 9093, 9094}


LABELS = pod_labels()


def selects(selector, labels):
    for expression in selector.get("matchExpressions", []):
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return selector.get("matchLabels", {}).items() <= labels.items()


def policies_of(pod, direction, added=()):
    policies = [
        policy
        for policy in (*POLICIES, *added)
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


def has_port(rule, port):
    """Whether a rule is about a port; one without ports is about all."""
    ports = rule.get("ports", [{"port": port}])
    return any(
        each["port"] <= port <= each.get("endPort", each["port"]) for each in ports
    )


def spark_port(option):
    return int(re.search(rf"^spark\.{option} (\d+)$", OPTIONS, re.MULTILINE)[1])


EXECUTOR = spark_port("blockManager.port")
"""Of the first executor of a pod; each of 16 more has a port of its own."""


def callers_of(target, port):
    """Return the pods, and the namespaces, that may open a connection."""
    callers = set()
    for policy in policies_of(target, "Ingress"):
        for rule in policy.get("ingress", []):
            if has_port(rule, port):
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
    ("spark-master", 7077): {"worker", *SPARK_PROGRAMS},
    ("spark-worker", EXECUTOR): {"worker", *SPARK_PROGRAMS},
    ("spark-worker", EXECUTOR + 16): {"worker", *SPARK_PROGRAMS},
    ("spark-worker", EXECUTOR + 17): SPARK_PROGRAMS,
    ("worker", spark_port("driver.port")): SPARK_PROGRAMS,
    ("worker", spark_port("driver.blockManager.port")): SPARK_PROGRAMS,
    ("worker", EXECUTOR): set(),
}


@pytest.mark.parametrize(("target", "port"), CALLERS)
def test_only_the_listed_callers_reach_a_program(target, port):
    assert callers_of(target, port) == CALLERS[target, port]


@pytest.mark.parametrize("pod", sorted(LABELS))
def test_a_pod_reaches_stores_anywhere_and_mail_only_if_it_sends_alerts(pod):
    ports = ports_anywhere(pod)
    assert {5432, 6379, 443} <= ports
    assert ports & MAIL == (MAIL if pod in {"console", "worker"} else set())


@pytest.mark.parametrize("pod", sorted(LABELS))
def test_a_pod_reaches_brokers_of_kafka_only_by_the_folder_that_adds_them(pod):
    assert ports_anywhere(pod) & BROKERS == set()
    assert ports_anywhere(pod, KAFKA_POLICIES) & BROKERS == BROKERS


def ports_anywhere(pod, added=()):
    """Return the ports that a pod reaches, wherever they are."""
    ports = set()
    for policy in policies_of(pod, "Egress", added):
        for rule in policy.get("egress", []):
            if "to" not in rule:
                ports |= {port["port"] for port in rule["ports"]}
    return ports


def test_each_port_names_its_protocol_so_that_a_second_apply_changes_nothing():
    for policy in (*POLICIES, *KAFKA_POLICIES):
        for rule in (*policy.get("ingress", []), *policy.get("egress", [])):
            for port in rule.get("ports", []):
                assert port.get("protocol") in {"TCP", "UDP"}, policy
