"""Airflow's chart: what it makes of the values of deploy/kubernetes, as a stand-in has it.

The folder stand-ins/airflow has what the official chart makes of these values alone, for tests that
cannot fetch the chart. Where the official one is, both are compared:

    helm pull apache-airflow/airflow --version 1.22.0
    AIRFLOW_CHART=$PWD/airflow-1.22.0.tgz pytest -n0 tests/kubernetes/test_chart.py
"""

import copy
import os
import subprocess
from configparser import RawConfigParser
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import yaml

from tests.kubernetes.manifests import (
    FOLDER,
    RESTRICTED_CONTAINER,
    RESTRICTED_POD,
    pod_labels,
    read_documents,
    validate,
)

pytestmark = pytest.mark.journey

STAND_IN = Path(__file__).parent / "stand-ins" / "airflow"
OFFICIAL = os.environ.get("AIRFLOW_CHART")
BASE = FOLDER / "airflow-values.yaml"
PRODUCTION = FOLDER / "production" / "airflow-values.yaml"
SPARK = FOLDER / "spark" / "airflow-values.yaml"
ON_PRODUCTION = ["--values", BASE, "--values", PRODUCTION]
CASES = {
    "production": ON_PRODUCTION,
    "spark": [*ON_PRODUCTION, "--values", SPARK],
    "digest": [*ON_PRODUCTION, "--set", f"defaultAirflowTag=0.1.0@sha256:{64 * 'a'}"],
    "no claim": [*ON_PRODUCTION, "--set", "logs.persistence.enabled=false"],
}
DEPLOYMENTS = {"airflow-api-server", "airflow-dag-processor", "airflow-scheduler"}
CFG = "ConfigMap airflow-config/data/airflow.cfg"
NOTHING_SELECTS = "no policy, Service or program selects by it"
DEFAULT = "what Kubernetes does without it"
LEFT_OUT = {
    "*/labels/chart": NOTHING_SELECTS,
    "*/labels/heritage": NOTHING_SELECTS,
    "*/labels/executor": NOTHING_SELECTS,
    "Service airflow-api-server/spec/type": DEFAULT,
    "Deployment airflow-api-server/spec/strategy/type": DEFAULT,
    "Deployment *Probe/httpGet/scheme": DEFAULT,
    "Deployment */startupProbe/initialDelaySeconds": DEFAULT,
    "Deployment */spec/template/spec/restartPolicy": DEFAULT,
    "Deployment */affinity/*": "it spreads replicas over nodes, and there is one of each",
    "*/scheduler-log-groomer/env/AIRFLOW__LOG_*": "of a script that the command replaces",
    f"{CFG}/celery/*": "no Celery",
    f"{CFG}/celery_kubernetes_executor/*": "no Celery",
    f"{CFG}/dag_processor/dag_bundle_config_list": "Airflow's default",
    f"{CFG}/elasticsearch/*": "no Elasticsearch",
    f"{CFG}/elasticsearch_configs/*": "no Elasticsearch",
    f"{CFG}/fab/*": "`gyre run` sets another manager of logins",
    f"{CFG}/kerberos/*": "no Kerberos",
    f"{CFG}/metrics/*": "no StatsD, which is Airflow's default",
    f"{CFG}/scheduler/standalone_dag_processor": "of Airflow 2",
    f"{CFG}/webserver/*": "of Airflow 2",
}
"""What pods do not get from the stand-in, and why that changes nothing."""


def template(helm, chart, options):
    command = [helm, "template", "airflow", chart, "--namespace", "gyre", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def objects_of(done):
    assert done.returncode == 0, done.stderr
    documents = [each for each in yaml.safe_load_all(done.stdout) if each]
    return {(each["kind"], each["metadata"]["name"]): each for each in documents}


def task_of(objects):
    """Return the pod that Airflow's executor starts from."""
    files = objects["ConfigMap", "airflow-config"]["data"]
    return yaml.safe_load(files["pod_template_file.yaml"])


def pods_of(objects):
    """Return each pod by its component."""
    pods = [objects["Deployment", name]["spec"]["template"] for name in DEPLOYMENTS]
    pods.append(task_of(objects))
    return {pod["metadata"]["labels"]["component"]: pod for pod in pods}


@pytest.fixture(params=CASES)
def objects(request, helm):
    return objects_of(template(helm, STAND_IN, CASES[request.param]))


def test_kubernetes_knows_every_field_of_what_the_stand_in_makes(objects):
    assert {name for kind, name in objects if kind == "Deployment"} == DEPLOYMENTS
    for document in (*objects.values(), task_of(objects)):
        validate(document)


def test_every_container_has_only_the_privileges_that_it_needs(objects):
    names = set()
    for pod in pods_of(objects).values():
        assert pod["spec"]["securityContext"] == RESTRICTED_POD
        for container in pod["spec"]["containers"]:
            assert container["securityContext"] == RESTRICTED_CONTAINER
            assert "memory" in container["resources"]["limits"]
            names.add(container["name"])
    programs = {"api-server", "dag-processor", "scheduler", "base"}
    assert names == programs | {"scheduler-log-groomer"}


def test_pods_have_the_labels_that_the_network_is_computed_from(objects):
    labels = pod_labels()
    for component, pod in pods_of(objects).items():
        assert pod["metadata"]["labels"] == labels[component]


def test_programs_start_again_when_the_pod_of_tasks_changes(helm):
    objects = objects_of(template(helm, STAND_IN, ON_PRODUCTION))
    values = [*ON_PRODUCTION, "--set", "workers.kubernetes.resources.limits.memory=9Gi"]
    changed = objects_of(template(helm, STAND_IN, values))
    assert task_of(changed) != task_of(objects)
    for name in DEPLOYMENTS:
        pod = changed["Deployment", name]["spec"]["template"]
        assert pod != objects["Deployment", name]["spec"]["template"]


@pytest.mark.parametrize(
    "value",
    [
        "dagProcesor.enabled=true",
        "scheduler.livenessProbe.periodSecond=5",
        "enableBuiltInSecretEnvVars.AIRFLOW__API__SECRET_KEYS=false",
        "logs.persistence.size=1Gi",
        "triggerer.enabled=true",
    ],
)
def test_the_stand_in_refuses_a_value_that_it_has_nothing_for(helm, value):
    assert template(helm, STAND_IN, ON_PRODUCTION).returncode == 0
    done = template(helm, STAND_IN, [*ON_PRODUCTION, "--set", value])
    assert done.returncode != 0
    assert is_refusal(done)


def is_refusal(done):
    return "don't meet the specifications of the schema" in done.stderr


@pytest.fixture
def official():
    if OFFICIAL is None:
        pytest.skip(
            "AIRFLOW_CHART names no archive of Airflow's chart: "
            "helm pull apache-airflow/airflow --version 1.22.0"
        )
    return OFFICIAL


@pytest.mark.parametrize("case", CASES)
def test_the_stand_in_makes_what_airflows_chart_makes(helm, official, case):
    there = facts_of(objects_of(template(helm, official, CASES[case])))
    here = facts_of(objects_of(template(helm, STAND_IN, CASES[case])))
    assert differences(here, there) == {}
    for pattern in LEFT_OUT:
        paths = [path for path in there if fnmatchcase(path, pattern)]
        assert paths, f"the chart has no {pattern}"
        assert not here.keys() & paths, f"the stand-in has {pattern}"


def test_without_one_of_the_values_both_still_agree_or_it_is_refused(
    helm, official, tmp_path
):
    """A value that the stand-in does not read would change the chart's objects alone."""
    (values,) = read_documents("airflow-values.yaml")
    file = tmp_path / "values.yaml"
    agreeing = set()
    for path in leaves_of(values):
        file.write_text(yaml.safe_dump(without(values, path)))
        options = ["--values", file]
        done = template(helm, STAND_IN, options)
        if is_refusal(done):
            continue
        done_there = template(helm, official, options)
        if is_refusal(done_there):
            continue
        there = facts_of(objects_of(done_there))
        assert differences(facts_of(objects_of(done)), there) == {}, path
        agreeing.add(".".join(path))
    assert {"extraEnv", "scheduler.livenessProbe.periodSeconds"} <= agreeing


def differences(here, there):
    """Return what only one of two charts has, or has otherwise, and is not in LEFT_OUT."""
    paths = [
        path
        for path in here.keys() | there.keys()
        if not any(fnmatchcase(path, pattern) for pattern in LEFT_OUT)
    ]
    pairs = {path: (here.get(path), there.get(path)) for path in sorted(paths)}
    return {path: pair for path, pair in pairs.items() if pair[0] != pair[1]}


def leaves_of(values, parent=()):
    """Yield the path of each value that is no mapping."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from leaves_of(value, (*parent, name))
        else:
            yield (*parent, name)


def without(values, path):
    """Return a copy of values that lacks one."""
    copied = copy.deepcopy(values)
    place = copied
    for name in path[:-1]:
        place = place[name]
    del place[path[-1]]
    return copied


def facts_of(objects):
    """Return the path of each value in objects, and the value.

    An entry of a list has its mount path or its name in the path, if it has one, else its number. So
    the order of mounts and variables is no difference.
    """
    facts = {}
    for (kind, name), document in objects.items():
        opened = copy.deepcopy(document)
        if (kind, name) == ("ConfigMap", "airflow-config"):
            files = opened["data"]
            config = RawConfigParser()
            config.read_string(files["airflow.cfg"])
            files["airflow.cfg"] = {each: dict(config[each]) for each in config}
            files["pod_template_file.yaml"] = task_of(objects)
        for path, value in _facts(opened, f"{kind} {name}"):
            assert path not in facts, f"twice: {path}"
            facts[path] = value
    return facts


def _facts(value, path):
    if path.endswith("/emptyDir"):
        yield path, value
    elif isinstance(value, dict):
        for name, each in value.items():
            if name != "annotations":
                yield from _facts(each, f"{path}/{name}")
    elif isinstance(value, list):
        for number, each in enumerate(value):
            key = number
            if isinstance(each, dict):
                key = each.get("mountPath") or each.get("name") or number
            yield from _facts(each, f"{path}/{key}")
    elif value not in {None, ""}:
        yield path, value
