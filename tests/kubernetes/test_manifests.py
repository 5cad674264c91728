"""deploy/kubernetes: what it says is what Kubernetes knows, and what deploy/compose.yaml runs.

No cluster runs it here. Commands, ports, paths and variables are those of deploy/compose.yaml,
which `make containers` runs; where they differ on purpose, DIFFERENT says why.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from core.settings import CLONE, load_settings
from tests.kubernetes.conftest import run
from tests.kubernetes.manifests import (
    FOLDER,
    base,
    container_of,
    page_files,
    pod_of,
    read_compose,
    read_documents,
    secrets_of,
    task_pod,
    validate,
)

HERE = Path(__file__).parent
COMPOSE = read_compose()
SERVICES = COMPOSE["services"]
DIFFERENT = {
    "GYRE_SERVING_URL": "the headless Service stands for every replica there is",
    "GYRE_ENGINE": "the folder `spark` sets it",
    "GYRE_SPARK_MASTER": "the folder `spark` sets it",
    "AIRFLOW__CORE__EXECUTOR": "a pod for each task, by Airflow's chart",
    "AIRFLOW__CELERY__BROKER_URL_CMD": "no Celery",
    "AIRFLOW__CELERY__WORKER_CONCURRENCY": "no Celery",
}
BROKER = "airflow_broker_url"
"""Of Celery, so no pod has it."""
PROGRAMS = ("serving", "console", "consumer", "init", "mlflow")
SERVED = {"serving": "serving-a", "kserve": "serving-a"}
PODS = {"Deployment", "StatefulSet", "Job"}
BASE = base()
OBJECTS = {(each["kind"], each["metadata"]["name"]): each for each in BASE}
SETTINGS = OBJECTS["ConfigMap", "gyre"]["data"]
SERVING = OBJECTS["StatefulSet", "serving"]["spec"]
SCALER = OBJECTS["HorizontalPodAutoscaler", "serving"]["spec"]
(AIRFLOW,) = read_documents("airflow-values.yaml")
(SPARK,) = read_documents("spark/sparkcluster.yaml")
SPARK_POLICIES = read_documents("spark/network.yaml")
KSERVE_FILES = page_files("kserve.md")
KSERVE = yaml.safe_load(KSERVE_FILES[0])
PREDICTOR = KSERVE["spec"]["predictor"]
SPECS = {
    each["metadata"]["name"]: each["spec"]["template"]["spec"]
    for each in BASE
    if each["kind"] in PODS
} | {"kserve": PREDICTOR, "airflow": task_pod(AIRFLOW)}
PAGE = (CLONE / "docs" / "how-to" / "kubernetes.md").read_text()


@pytest.mark.parametrize(
    "document",
    [*BASE, *SPARK_POLICIES],
    ids=lambda each: f"{each['kind']} {each['metadata']['name']}",
)
def test_kubernetes_knows_every_field_of_each_object(document):
    validate(document)


def test_a_field_that_kubernetes_does_not_know_is_seen():
    wrong = pod_of(json.loads(json.dumps(SPECS["serving"])))
    container_of(wrong["spec"])["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(wrong)


@pytest.fixture
def build(kustomize, tmp_path):
    """Builds an overlay of a copy, which has the files of the page on KServe."""
    copy = tmp_path / "kubernetes"
    shutil.copytree(FOLDER, copy)
    (copy / "kserve").mkdir()
    for name, text in zip(
        ("inferenceservice", "kustomization"), KSERVE_FILES, strict=True
    ):
        (copy / "kserve" / f"{name}.yaml").write_text(text)

    def build(overlay):
        documents = [*yaml.safe_load_all(run([*kustomize, copy / overlay]))]
        for document in documents:
            if document["kind"] not in {"InferenceService", "SparkCluster"}:
                validate(document)
            assert document["metadata"]["namespace"] == "gyre"
        return {(each["kind"], each["metadata"]["name"]): each for each in documents}

    return build


def pod_specs(objects):
    pods = {key: each for key, each in objects.items() if key[0] in PODS}
    return {name: each["spec"]["template"]["spec"] for (_, name), each in pods.items()}


def test_the_overlay_production_is_built(build):
    built = build("production")
    assert built.keys() == OBJECTS.keys()
    specs = pod_specs(built)
    for name, spec in specs.items():
        assert secrets_of(spec) == secrets_of(SPECS[name])
    images = {container_of(spec)["image"] for spec in specs.values()}
    registry = "registry.example.com"
    assert images == {f"{registry}/gyre:0.1.0", f"{registry}/gyre-serving:0.1.0"}
    (airflow,) = read_documents("production/airflow-values.yaml")
    assert ":".join(airflow.values()) == f"{registry}/gyre:0.1.0"
    scaler = built["HorizontalPodAutoscaler", "serving"]["spec"]
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (3, 12)


def test_the_overlay_spark_is_built(build):
    built = build("spark")
    assert OBJECTS.keys() <= built.keys()
    settings = built["ConfigMap", "gyre"]["data"]
    assert settings["GYRE_ENGINE"] == "spark"
    name = SPARK["metadata"]["name"]
    assert settings["GYRE_SPARK_MASTER"] == f"spark://{name}-master-svc:7077"


def test_the_overlay_of_the_page_on_kserve_is_built(build):
    built = build("kserve")
    replaced = ("StatefulSet", "HorizontalPodAutoscaler", "PodDisruptionBudget")
    assert OBJECTS.keys() - built.keys() == {(kind, "serving") for kind in replaced}
    predictor = built["InferenceService", "gyre-serving"]["spec"]["predictor"]
    image = container_of(predictor)["image"]
    assert image == "registry.example.com/gyre-serving:0.1.0"


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_is_the_one_that_compose_runs(name):
    spec = SPECS[name]
    container = container_of(spec)
    service = SERVICES[SERVED.get(name, name)]
    assert container["image"] == service["image"]
    assert container.get("args", []) == shlex.split(service.get("command", ""))
    mounts = {each["mountPath"] for each in container["volumeMounts"]}
    volumes = {volume.split(":")[1] for volume in service["volumes"]}
    assert mounts == volumes | {"/tmp", "/run/secrets"}
    grace = service.get("stop_grace_period", "30s")
    assert f"{spec['terminationGracePeriodSeconds']}s" == grace
    assert secrets_of(spec) == {*service["secrets"]} - {BROKER}
    assert container["envFrom"] == [{"configMapRef": {"name": "gyre"}}]
    assert "env" not in container


def test_variables_are_those_of_compose():
    compose = {
        name: "" if value is None else str(value)
        for name, value in COMPOSE["x-environment"].items()
    }
    (production,) = read_documents("production/kustomization.yaml")
    patch = yaml.safe_load(production["patches"][0]["patch"])
    cluster = patch["data"]
    assert SETTINGS.keys().isdisjoint(cluster)
    assert compose.keys() - SETTINGS.keys() - cluster.keys() <= DIFFERENT.keys()
    for name, value in SETTINGS.items():
        assert compose[name] == value or name in DIFFERENT
    assert cluster.keys() <= compose.keys()
    assert {type(value) for value in (SETTINGS | cluster).values()} == {str}


@pytest.mark.parametrize("name", ["serving", "kserve", "console", "mlflow"])
def test_probes_and_services_ask_where_compose_does(name):
    check = shlex.join(SERVICES[SERVED.get(name, name)]["healthcheck"]["test"])
    port, path = re.search(r"127\.0\.0\.1:(\d+)(/[a-z/]*)", check).groups()
    container = container_of(SPECS[name])
    (exposed,) = container["ports"]
    assert str(exposed["containerPort"]) == port
    # A replica has started when it can predict: an update waits for that.
    start = "/health/ready" if name in SERVED else path
    paths = {"startup": start, "readiness": path, "liveness": path}
    for kind, expected in paths.items():
        probe = container[f"{kind}Probe"]["httpGet"]
        assert probe["path"] == expected
        assert probe["port"] in {exposed.get("name"), int(port)}
    service = OBJECTS.get(("Service", name))
    if service is not None:
        (shown,) = service["spec"]["ports"]
        assert (str(shown["port"]), shown["targetPort"]) == (port, exposed["name"])


@pytest.mark.parametrize("name", ["MLFLOW", "AIRFLOW", "SERVING"])
def test_every_address_in_the_settings_is_a_service_with_that_port(name):
    url = SETTINGS[f"GYRE_{name}_URL"]
    host, port = re.fullmatch(r"http://([a-z0-9-]+):(\d+)", url).groups()
    (exposed,) = OBJECTS["Service", host]["spec"]["ports"]
    assert exposed["port"] == int(port)


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


def check_restricted(spec):
    container = container_of(spec)
    assert spec["securityContext"] == RESTRICTED_POD
    assert container["securityContext"] == RESTRICTED_CONTAINER
    assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
    assert "memory" in container["resources"]["limits"]
    assert "/tmp" in {each["mountPath"] for each in container["volumeMounts"]}


@pytest.mark.parametrize("name", SPECS)
def test_a_pod_may_do_nothing_that_it_need_not(name):
    spec = SPECS[name]
    check_restricted(spec)
    if name != "airflow":  # its scheduler starts pods; the chart gives it a token
        # Of a tag that moves Kubernetes would ask a registry each time.
        assert container_of(spec)["imagePullPolicy"] == "IfNotPresent"
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False


def test_the_log_of_serving_outlives_its_pod():
    (claim,) = SERVING["volumeClaimTemplates"]
    mounts = container_of(SPECS["serving"])["volumeMounts"]
    (home,) = [each for each in mounts if each["mountPath"] == "/var/lib/gyre"]
    assert home["name"] == claim["metadata"]["name"]
    assert {*SERVING["persistentVolumeClaimRetentionPolicy"].values()} == {"Retain"}
    assert "replicas" not in SERVING, "the autoscaler's, which an apply would undo"


def test_every_secret_is_a_file_that_the_page_writes(tmp_path):
    (tmp_path / "deploy").mkdir()
    shutil.copy(CLONE / "deploy" / "secrets.sh", tmp_path / "deploy")
    (block,) = re.findall(r"^```sh\n(mkdir [^`]*)```", PAGE, re.MULTILINE)
    command = ["bash", "-euc", block]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    written = {file.name for file in (tmp_path / "deploy" / "secrets").iterdir()}
    assert set.union(*map(secrets_of, SPECS.values())) <= written
    database_url = tmp_path / "deploy" / "secrets" / "gyre_database_url"
    assert "USER:PASSWORD@HOST" in database_url.read_text()


def test_settings_are_read_from_files_as_kubernetes_lays_them_out(
    tmp_path, monkeypatch
):
    """Each key is a link into a folder that is exchanged as a whole."""
    (tmp_path / "..2026_11_23").mkdir()
    (tmp_path / "..data").symlink_to("..2026_11_23")
    files = {"gyre_redis_url": "redis://of-a-secret", "aws_access_key_id": "k"}
    for name, value in files.items():
        (tmp_path / "..data" / name).write_text(f"{value}\n")
        (tmp_path / name).symlink_to(f"..data/{name}")
    monkeypatch.setenv("GYRE_SECRETS_DIR", str(tmp_path))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    assert load_settings(home=tmp_path / "home").redis_url == "redis://of-a-secret"
    assert os.environ["AWS_ACCESS_KEY_ID"] == "k"


def test_an_update_on_the_page_names_a_container_that_there_is():
    updates = re.findall(r"(statefulset|deployment)/([a-z]+)\s+([a-z]+)=", PAGE)
    assert {name for _, name, _ in updates} == {*PROGRAMS} - {"init"}
    kinds = {"statefulset": "StatefulSet", "deployment": "Deployment"}
    for kind, name, container in updates:
        pod = OBJECTS[kinds[kind], name]["spec"]["template"]["spec"]
        assert container_of(pod)["name"] == container


def test_kserve_knows_every_field_and_serves_as_the_statefulset_does():
    schema = json.loads((HERE / "inferenceservice.schema.json").read_text())
    jsonschema.validate(KSERVE, schema)
    bounds = ("minReplicas", "maxReplicas")
    scaling = {*bounds, "scaleMetric", "scaleTarget"}
    spec = {name: value for name, value in PREDICTOR.items() if name not in scaling}
    validate(pod_of(spec))
    serving = SPECS["serving"]
    for name in ("envFrom", "image", "resources", "volumeMounts"):
        in_pod = sorted(container_of(spec)[name], key=str)
        assert in_pod == sorted(container_of(serving)[name], key=str)
    assert secrets_of(spec) == secrets_of(serving)
    for name in bounds:
        assert PREDICTOR[name] == SCALER[name]


def spark_pod(role):
    """Return the pod that the operator makes of a role; it adds the image."""
    template = SPARK["spec"][f"{role}Spec"]["statefulSetSpec"]["template"]
    spec = json.loads(json.dumps(template["spec"]))
    image = SPARK["spec"]["sparkConf"]["spark.kubernetes.container.image"]
    container_of(spec)["image"] = image
    return spec


def test_sparks_operator_knows_every_field_and_starts_the_image_that_tasks_have():
    schema = json.loads((HERE / "sparkcluster.schema.json").read_text())
    jsonschema.validate(SPARK, schema)
    version = SPARK["spec"]["runtimeVersions"]["sparkVersion"]
    assert f"\npyspark=={version} " in (CLONE / "spark.lock").read_text()
    (tasks,) = read_documents("spark/airflow-values.yaml")
    image = container_of(spark_pod("master"))["image"]
    assert ":".join(tasks.values()) == image


@pytest.mark.parametrize("role", ["master", "worker"])
def test_a_pod_of_spark_may_do_nothing_that_it_need_not(role):
    spec = spark_pod(role)
    validate(pod_of(spec))
    check_restricted(spec)
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    service = SERVICES[f"spark-{role}"]
    assert secrets_of(spec) == {*service.get("secrets", ())}
    env = container_of(spec).get("env", [])
    variables = {each["name"]: each["value"] for each in env}
    of_compose = service.get("environment", {})
    names = [name for name in of_compose if name.startswith("SPARK_")]
    assert variables == {name: str(of_compose[name]) for name in names}


def test_airflows_chart_knows_every_value_and_runs_the_programs_of_compose():
    schema = json.loads((HERE / "airflow-values.schema.json").read_text())
    jsonschema.validate(AIRFLOW, schema)
    task = SPECS["airflow"]
    validate(pod_of(task))
    programs = {
        "apiServer": "airflow-api",
        "scheduler": "scheduler",
        "dagProcessor": "dag-processor",
    }
    for key, name in programs.items():
        program = AIRFLOW[key]
        service = SERVICES[name]
        assert program["args"] == shlex.split(service["command"])
        for probe in ("livenessProbe", "startupProbe"):
            command = program.get(probe, {}).get("command")
            if command is not None:
                assert ["CMD", *command] == service["healthcheck"]["test"]
    grace = task["terminationGracePeriodSeconds"]
    assert f"{grace // 60}m" == SERVICES["worker"]["stop_grace_period"]
    assert secrets_of(task) == secrets_of(SPECS["console"])
    mounts = {each["mountPath"] for each in AIRFLOW["volumeMounts"]}
    (folder,) = mounts - {"/tmp", "/var/lib/gyre"}
    env = {each["name"]: each["value"] for each in container_of(task)["env"]}
    assert env["GYRE_SECRETS_DIR"] == folder
    assert env["GYRE_SERVING_TOKENS_FILE"] == f"{folder}/serving_tokens"
    lock = (CLONE / "deploy" / "gyre.lock").read_text()
    assert f"apache-airflow=={AIRFLOW['airflowVersion']} " in lock
    assert "apache-airflow-providers-cncf-kubernetes==" in lock
