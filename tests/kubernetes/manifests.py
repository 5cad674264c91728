"""What the files of deploy/kubernetes say, and what deploy/compose.yaml runs."""

import copy
import json
import re
import shutil
from pathlib import Path

import kubernetes_validate
import yaml

from core.project import CLONE

FOLDER = CLONE / "deploy" / "kubernetes"
RELEASES = ("1.29", "1.37")
"""Of Kubernetes: the oldest and the newest that the manifests are held against."""

GYRE = {"app.kubernetes.io/part-of": "gyre"}
AIRFLOW_PROGRAMS = {"api-server", "scheduler", "dag-processor", "worker"}
RESTRICTED_POD = {
    "runAsNonRoot": True,
    "runAsUser": 1000,
    "runAsGroup": 1000,
    "fsGroup": 1000,
    "seccompProfile": {"type": "RuntimeDefault"},
}
RESTRICTED_CONTAINER = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


def read_documents(path):
    return [*yaml.safe_load_all((FOLDER / path).read_text())]


def read_compose():
    """Return deploy/compose.yaml with the defaults of its variables."""
    text = (CLONE / "deploy" / "compose.yaml").read_text()
    return yaml.safe_load(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text))


def read_chart_keys():
    """Return airflow_chart.txt: each value's path, and of a switch what it is unless set."""
    text = (Path(__file__).parent / "airflow_chart.txt").read_text()
    keys = {}
    for line in text.splitlines()[1:]:
        path, _, default = line.partition(" ")
        keys[path] = json.loads(default or "null")
    return keys


def value_paths(values, keys, parent=""):
    """Yield the path of each value that a file sets for a chart, as the list has it."""
    for name, value in values.items():
        path = f"{parent}.{name}" if parent else name
        if f"{path}.*" in keys:
            yield f"{path}.*"
        elif isinstance(value, dict):
            yield from value_paths(value, keys, path)
        else:
            yield path


def value_at(values, path, default=None):
    """Return what a file sets at a path."""
    value = values
    for name in path.split("."):
        if name not in value:
            return default
        value = value[name]
    return value


def is_on(values, keys, part):
    """Whether the switches of a part of a chart, and of what is around it, are on."""
    names = part.split(".")
    for depth in range(1, len(names) + 1):
        switch = ".".join([*names[:depth], "enabled"])
        if switch in keys and not value_at(values, switch, keys[switch]):
            return False
    return True


def page_files(page):
    """Return the YAML files that stand on a page of docs/how-to."""
    text = (CLONE / "docs" / "how-to" / page).read_text()
    return re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def page_commands(page, section=""):
    """Return the blocks of commands of a section of a page of docs/how-to, or of all of it."""
    text = (CLONE / "docs" / "how-to" / page).read_text()
    after = text.split(f"\n## {section}\n")[1] if section else text
    return re.findall(
        r"^```sh\n(.*?)^```", after.split("\n## ")[0], re.MULTILINE | re.DOTALL
    )


def copy_with_kserve(folder):
    """Copy `deploy/` into a folder, with the files of the page on KServe."""
    kubernetes = folder / "deploy" / "kubernetes"
    shutil.copytree(FOLDER, kubernetes)
    shutil.copy(CLONE / "deploy" / "secrets.sh", folder / "deploy")
    (kubernetes / "kserve").mkdir()
    service, kustomization = page_files("kserve.md")
    (kubernetes / "kserve" / "inferenceservice.yaml").write_text(service)
    (kubernetes / "kserve" / "kustomization.yaml").write_text(kustomization)
    return kubernetes


def with_secrets(document):
    """Return an object of the base as kustomize's component `secrets` makes it."""
    (component,) = read_documents("secrets/kustomization.yaml")
    patched = copy.deepcopy(document)
    name = document["metadata"]["name"]
    for patch in component["patches"]:
        target = patch["target"]
        is_kind = re.fullmatch(target["kind"], document["kind"])
        if is_kind and target.get("name", name) == name:
            for operation in yaml.safe_load(patch["patch"]):
                _append(patched, operation["path"], operation["value"])
    return patched


def _append(document, path, value):
    """Append to the list at the path of an operation of JSON patch, which ends with `/-`."""
    place = document
    for key in path.removeprefix("/").removesuffix("/-").split("/"):
        place = place[int(key) if key.isdigit() else key]
    place.append(value)


def base():
    (kustomization,) = read_documents("base/kustomization.yaml")
    files = [read_documents(f"base/{name}") for name in kustomization["resources"]]
    return [with_secrets(document) for documents in files for document in documents]


def pod_labels():
    """Return the labels of every pod."""
    labels = {}
    for document in base():
        if document["kind"] in {"Deployment", "StatefulSet", "Job"}:
            pod = document["spec"]["template"]
            labels[document["metadata"]["name"]] = pod["metadata"]["labels"]
    for name in AIRFLOW_PROGRAMS:
        chart_labels = {"tier": "airflow", "component": name, "release": "airflow"}
        labels[name] = GYRE | chart_labels
    (spark,) = read_documents("spark/sparkcluster.yaml")
    cluster = {"spark.operator/spark-cluster-name": spark["metadata"]["name"]}
    for role in ("master", "worker"):
        pod = spark["spec"][f"{role}Spec"]["statefulSetSpec"]["template"]
        labels[f"spark-{role}"] = pod["metadata"]["labels"] | cluster
    return labels


def validate(document):
    """Raise where Kubernetes does not know a field."""
    for release in RELEASES:
        kubernetes_validate.validate(document, release, strict=True)


def validate_pod(spec):
    metadata = {"name": "pod"}
    validate({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})


def container_of(spec):
    (container,) = spec["containers"]
    return container


def secrets_of(spec):
    """Return the keys of the Secret `gyre` that a pod has as files."""
    secrets = [volume["secret"] for volume in spec["volumes"] if "secret" in volume]
    assert {secret["secretName"] for secret in secrets} <= {"gyre"}
    return {item["key"] for secret in secrets for item in secret["items"]}


def spark_pod(cluster, role):
    """Return the pod that Spark's operator makes of a role; it adds the image."""
    template = cluster["spec"][f"{role}Spec"]["statefulSetSpec"]["template"]
    spec = copy.deepcopy(template["spec"])
    options = cluster["spec"]["sparkConf"]
    container_of(spec)["image"] = options["spark.kubernetes.container.image"]
    return spec


def task_pod(values):
    """Return the pod that Airflow's chart and its executor make for a task."""
    tasks = values["workers"]["kubernetes"]
    container = {
        "name": "base",
        "image": values["defaultAirflowRepository"],
        "command": tasks["command"],
        "env": yaml.safe_load(values["extraEnv"]),
        "envFrom": yaml.safe_load(values["extraEnvFrom"]),
        "volumeMounts": values["volumeMounts"],
        "securityContext": values["securityContexts"]["containers"],
        "resources": tasks["resources"],
    }
    return {
        "containers": [container],
        "volumes": values["volumes"],
        "securityContext": values["securityContexts"]["pod"],
        "terminationGracePeriodSeconds": tasks["terminationGracePeriodSeconds"],
    }
