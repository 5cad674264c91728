"""deploy/kubernetes: what it says is what Kubernetes knows, and what deploy/compose.yaml runs.

No cluster runs it here. Commands, ports, paths and variables are those of deploy/compose.yaml,
which `make containers` runs; where they differ on purpose, DIFFERENT says why.
"""

import json
import re
import shlex
import shutil
import subprocess
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import jsonschema
import pytest
import yaml

from core.project import CLONE
from tests.conftest import new_settings
from tests.kubernetes.conftest import run
from tests.kubernetes.manifests import (
    RESTRICTED_CONTAINER,
    RESTRICTED_POD,
    base,
    container_of,
    copy_with_kserve,
    is_on,
    page_files,
    read_chart_keys,
    read_compose,
    read_documents,
    secrets_of,
    spark_pod,
    task_pod,
    validate,
    validate_pod,
    value_at,
    value_paths,
)

pytestmark = pytest.mark.journey

HERE = Path(__file__).parent
FAST_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Some builds of PyYAML lack the one in C."""
COMPOSE = read_compose()
SERVICES = COMPOSE["services"]
DIFFERENT = {
    "GYRE_ALLOWED_HOSTS": "a Service has a name in its namespace, and longer ones outside of it",
    "GYRE_SERVING_URL": "the headless Service stands for every replica there is",
    "GYRE_ENGINE": "the folder `spark` sets it",
    "GYRE_SPARK_MASTER": "the folder `spark` sets it",
    "GYRE_EVENTS_URL": "the folder `kafka` sets it",
    "GYRE_PREDICTIONS_TOPIC": "the folder `kafka` sets it",
    "GYRE_DECISIONS_TOPIC": "the folder `kafka` sets it",
    "AIRFLOW__CORE__EXECUTOR": "a pod for each task, by Airflow's chart",
    "AIRFLOW__CELERY__BROKER_URL_CMD": "no Celery",
    "AIRFLOW__CELERY__WORKER_CONCURRENCY": "no Celery",
}
BROKER = "airflow_broker_url"
"""Of Celery, so no pod has it."""
PROGRAMS = ("serving", "kserve", "console", "consumer", "init", "mlflow")
SERVED = {"serving": "serving-a", "kserve": "serving-a"}
PODS = {"Deployment", "StatefulSet", "Job"}
BASE = base()
OBJECTS = {(each["kind"], each["metadata"]["name"]): each for each in BASE}
SETTINGS = OBJECTS["ConfigMap", "gyre"]["data"]
SERVING = OBJECTS["StatefulSet", "serving"]["spec"]
SCALER = OBJECTS["HorizontalPodAutoscaler", "serving"]["spec"]
(AIRFLOW,) = read_documents("airflow-values.yaml")
CHART = read_chart_keys()
UNUSED = {"webserver": "of Airflow 2", "workers.celery": "no Celery"}
CHART_CONTAINERS = [
    path.removesuffix(".resources.*")
    for path in CHART
    if path.endswith(".resources.*") and not path.startswith(tuple(UNUSED))
]
(SPARK,) = read_documents("spark/sparkcluster.yaml")
SPARK_POLICIES = read_documents("spark/network.yaml")
(KAFKA,) = read_documents("kafka/kustomization.yaml")
KAFKA_POLICIES = read_documents("kafka/network.yaml")
KSERVE_FILES = page_files("kserve.md")
KSERVE = yaml.safe_load(KSERVE_FILES[0])
PREDICTOR = KSERVE["spec"]["predictor"]
SCALING = {"minReplicas", "maxReplicas", "scaleMetric", "scaleTarget"}
SPECS = {
    each["metadata"]["name"]: each["spec"]["template"]["spec"]
    for each in BASE
    if each["kind"] in PODS
} | {
    "kserve": {key: PREDICTOR[key] for key in PREDICTOR.keys() - SCALING},
    "airflow": task_pod(AIRFLOW),
    "spark-master": spark_pod(SPARK, "master"),
    "spark-worker": spark_pod(SPARK, "worker"),
}
PAGE = (CLONE / "docs" / "how-to" / "kubernetes.md").read_text()


@pytest.mark.parametrize(
    "document",
    [*BASE, *SPARK_POLICIES, *KAFKA_POLICIES],
    ids=lambda each: f"{each['kind']} {each['metadata']['name']}",
)
def test_kubernetes_knows_every_field_of_each_object(document):
    validate(document)


@pytest.fixture(scope="module")
def valid():
    """Texts of the objects that are valid: most are the same in several overlays."""
    return set()


def builder(kustomize, copy, valid):
    """Return what builds an overlay of a copy, each of whose objects is valid."""

    def build(overlay, namespace="gyre"):
        documents = [*yaml.load_all(run([*kustomize, copy / overlay]), FAST_LOADER)]
        for document in documents:
            text = json.dumps(document)
            is_other = document["kind"] in {"InferenceService", "SparkCluster"}
            if not is_other and text not in valid:
                validate(document)
                valid.add(text)
            assert document["metadata"]["namespace"] == namespace
        return {(each["kind"], each["metadata"]["name"]): each for each in documents}

    return build


@pytest.fixture
def build(kustomize, tmp_path, valid):
    """Builds an overlay of a copy, which has the files of the page on KServe."""
    return builder(kustomize, copy_with_kserve(tmp_path), valid)


@pytest.fixture(scope="module")
def built(kustomize, tmp_path_factory, valid):
    """Builds an overlay that no test has changed, once."""
    copy = copy_with_kserve(tmp_path_factory.mktemp("built"))
    return cache(builder(kustomize, copy, valid))


def test_each_overlay_builds_with_its_objects_images_and_settings(built):
    production = built("production")
    assert production.keys() == OBJECTS.keys()
    registry = "registry.example.com"
    specs = [each["spec"] for (kind, _), each in production.items() if kind in PODS]
    images = {container_of(spec["template"]["spec"])["image"] for spec in specs}
    assert images == {f"{registry}/gyre:0.1.0", f"{registry}/gyre-serving:0.1.0"}
    spark = built("spark")
    assert OBJECTS.keys() <= spark.keys()
    settings = spark["ConfigMap", "gyre"]["data"]
    assert settings["GYRE_ENGINE"] == "spark"
    master = f"spark://{SPARK['metadata']['name']}-master-svc:7077"
    assert settings["GYRE_SPARK_MASTER"] == master
    kserve = built("kserve")
    replaced = ("StatefulSet", "HorizontalPodAutoscaler", "PodDisruptionBudget")
    assert OBJECTS.keys() - kserve.keys() == {(kind, "serving") for kind in replaced}
    predictor = kserve["InferenceService", "gyre-serving"]["spec"]["predictor"]
    assert container_of(predictor)["image"] == f"{registry}/gyre-serving:0.1.0"


@pytest.mark.parametrize("overlay", ["production", "spark", "kserve"])
def test_the_lines_of_the_page_add_a_kafka_to_an_overlay(
    built, build, tmp_path, overlay
):
    (lines,) = re.findall(
        r"^```yaml\n(components:.*?)^```", PAGE, re.MULTILINE | re.DOTALL
    )
    assert KAFKA["kind"] == "Component"
    before = built(overlay)
    folder = tmp_path / "deploy" / "kubernetes" / overlay
    with (folder / "kustomization.yaml").open("a") as file:
        file.write(lines)
    after = build(overlay)
    assert after.keys() - before.keys() == {("NetworkPolicy", "kafka")}
    settings = after["ConfigMap", "gyre"]["data"]
    assert settings == before["ConfigMap", "gyre"]["data"] | kafka_settings()
    variables = {"GYRE_EVENTS_URL", "GYRE_PREDICTIONS_TOPIC", "GYRE_DECISIONS_TOPIC"}
    assert kafka_settings().keys() == variables


def test_rights_are_those_of_accounts_in_the_namespace_of_an_overlay(
    built, build, tmp_path
):
    file = tmp_path / "deploy" / "kubernetes" / "production" / "kustomization.yaml"
    text = file.read_text()
    assert "namespace: gyre" in text
    file.write_text(text.replace("namespace: gyre", "namespace: other"))
    overlays = {"gyre": built("production"), "other": build("production", "other")}
    for namespace, objects in overlays.items():
        bindings = [
            each for (kind, _), each in objects.items() if kind == "RoleBinding"
        ]
        assert len(bindings) == 2
        for binding in bindings:
            (subject,) = binding["subjects"]
            assert ("ServiceAccount", subject["name"]) in objects
            assert subject["namespace"] == namespace


def kafka_settings():
    (patch,) = KAFKA["patches"]
    return yaml.safe_load(patch["patch"])["data"]


def test_the_network_lets_pods_reach_the_brokers_that_the_settings_name(tmp_path):
    settings = {
        name.removeprefix("GYRE_").lower(): value
        for name, value in kafka_settings().items()
    }
    address = new_settings(tmp_path, **settings).events_url
    ports = {int(port) for port in re.findall(r":(\d+)", address)}
    (policy,) = KAFKA_POLICIES
    (rule,) = policy["spec"]["egress"]
    assert ports <= {port["port"] for port in rule["ports"]}


def test_the_page_on_kserve_deletes_what_its_overlay_leaves_out(built):
    text = (CLONE / "docs" / "how-to" / "kserve.md").read_text()
    (block,) = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    commands = [shlex.split(line) for line in block.splitlines()]
    verbs = [(set(command) & {"apply", "wait", "delete"}).pop() for command in commands]
    assert verbs == ["apply", "wait", "delete", "delete", "delete"]
    # The autoscaler first: it would start replicas anew.
    deleted = [command[-1] for command in commands if "delete" in command]
    assert deleted[0].startswith("horizontalpodautoscaler/")
    left_out = OBJECTS.keys() - built("kserve").keys()
    assert sorted(deleted) == sorted(
        f"{kind.lower()}/{name}" for kind, name in left_out
    )


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_container_runs_the_program_of_its_compose_service(name):
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
    # Of a tag that moves Kubernetes would ask a registry each time.
    assert container["imagePullPolicy"] == "IfNotPresent"


@pytest.mark.parametrize("name", ["serving", "kserve", "console", "mlflow"])
def test_probes_and_services_use_the_ports_and_paths_of_compose(name):
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


def test_variables_are_those_of_compose_and_addresses_name_services():
    compose = {
        name: "" if value is None else str(value)
        for name, value in COMPOSE["x-environment"].items()
    }
    (production,) = read_documents("production/kustomization.yaml")
    cluster = yaml.safe_load(production["patches"][0]["patch"])["data"]
    assert compose.keys() - SETTINGS.keys() - cluster.keys() <= DIFFERENT.keys()
    assert cluster.keys() <= compose.keys()
    for name, value in SETTINGS.items():
        assert compose[name] == value or name in DIFFERENT
    for name in ("MLFLOW", "AIRFLOW", "SERVING"):
        url = urlsplit(SETTINGS[f"GYRE_{name}_URL"])
        (exposed,) = OBJECTS["Service", url.hostname]["spec"]["ports"]
        assert exposed["port"] == url.port


@pytest.mark.parametrize("name", SPECS)
def test_each_pod_is_valid_and_has_only_the_privileges_that_it_needs(name):
    spec = SPECS[name]
    validate_pod(spec)
    container = container_of(spec)
    assert spec["securityContext"] == RESTRICTED_POD
    assert container["securityContext"] == RESTRICTED_CONTAINER
    assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
    assert "memory" in container["resources"]["limits"]
    assert "/tmp" in {each["mountPath"] for each in container["volumeMounts"]}
    if name != "airflow":  # its scheduler starts pods; the chart gives it a token
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False


def test_the_log_of_serving_outlives_its_pod():
    (claim,) = SERVING["volumeClaimTemplates"]
    mounts = container_of(SPECS["serving"])["volumeMounts"]
    names = {each["mountPath"]: each["name"] for each in mounts}
    assert names["/var/lib/gyre"] == claim["metadata"]["name"]
    assert {*SERVING["persistentVolumeClaimRetentionPolicy"].values()} == {"Retain"}
    assert "replicas" not in SERVING, "the autoscaler's, which an apply would undo"


def test_the_page_writes_a_file_for_every_secret(tmp_path):
    (tmp_path / "deploy").mkdir()
    shutil.copy(CLONE / "deploy" / "secrets.sh", tmp_path / "deploy")
    (block,) = re.findall(r"^```sh\n(mkdir [^`]*)```", PAGE, re.MULTILINE)
    command = ["bash", "-euc", block]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    written = {file.name for file in (tmp_path / "deploy" / "secrets").iterdir()}
    assert set.union(*map(secrets_of, SPECS.values())) <= written
    database_url = tmp_path / "deploy" / "secrets" / "gyre_database_url"
    assert "USER:PASSWORD@HOST" in database_url.read_text()


def test_the_page_puts_what_pods_mount_into_the_secret_and_no_more():
    sources = re.findall(r"--from-file=\S+", PAGE)
    command = ["bash", "-euc", f"printf '%s\\n' {' '.join(sources)}"]
    output = subprocess.check_output(command, text=True)
    names = [Path(source).name for source in output.split()]
    assert sorted(names) == sorted(set.union(*map(secrets_of, SPECS.values())))


def test_secrets_that_are_there_are_kept_and_openssl_is_not_started(tmp_path):
    folder = tmp_path / "secrets"
    folder.mkdir()
    written = ("gyre_database_url", "aws_access_key_id", "aws_secret_access_key")
    for name in written:
        (folder / name).write_text("mine\n")
    script = tmp_path / "secrets.sh"
    shutil.copy(CLONE / "deploy" / "secrets.sh", script)
    done = subprocess.run([script], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    first = {file.name: file.read_text() for file in folder.iterdir()}
    assert {first[name] for name in written} == {"mine\n"}
    assert json.loads(first["s3_config"])
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("cat", "chmod", "cut", "dirname", "mkdir", "mv", "tr"):
        (tools / name).symlink_to(shutil.which(name))
    path = {"PATH": str(tools)}
    done = subprocess.run(
        [script], env=path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert {file.name: file.read_text() for file in folder.iterdir()} == first


@pytest.mark.parametrize(
    ("document", "name"),
    [
        (KSERVE, "inferenceservice"),
        (SPARK, "sparkcluster"),
    ],
    ids=["KServe", "Spark's operator"],
)
def test_other_tools_know_every_field_of_their_files(document, name):
    schema = json.loads((HERE / f"{name}.schema.json").read_text())
    jsonschema.validate(document, schema)


@pytest.mark.parametrize("folder", ["", "production/", "spark/"])
def test_airflows_chart_knows_every_value_and_deprecates_none(folder):
    (values,) = read_documents(f"{folder}airflow-values.yaml")
    assert {*value_paths(values, CHART)} - CHART.keys() == set()


@pytest.mark.parametrize("page", ["kubernetes", "spark"])
def test_the_list_of_values_is_of_the_release_that_a_page_installs(page):
    text = (CLONE / "docs" / "how-to" / f"{page}.md").read_text()
    (release,) = {*re.findall(r"--version '~([\d.]+)'", text)}
    heading = (HERE / "airflow_chart.txt").read_text().splitlines()[0]
    assert heading.startswith(f"# airflow {release}.")


def test_each_container_of_airflows_chart_fits_into_a_quota():
    parts = {part for part in CHART_CONTAINERS if is_on(AIRFLOW, CHART, part)}
    assert {"apiServer", "scheduler", "dagProcessor", "workers.kubernetes"} <= parts
    for part in parts:
        resources = value_at(AIRFLOW, f"{part}.resources", {})
        assert {"cpu", "memory"} <= resources.get("requests", {}).keys(), part
        assert "memory" in resources.get("limits", {}), part


UNUSED_VARIABLES = tuple(
    f"AIRFLOW__{name}__"
    for name in ("CELERY", "ELASTICSEARCH", "OPENSEARCH", "WEBSERVER")
)
"""Of programs that the chart does not run here."""


def test_airflows_chart_makes_no_secret_and_reads_none():
    for name in ("fernetKey", "apiSecretKey", "jwt"):
        assert AIRFLOW[f"{name}SecretName"] == "gyre"
    for name in ("metadata", "brokerUrl"):
        assert AIRFLOW["data"].get(f"{name}SecretName") == "gyre"
    variables = AIRFLOW["enableBuiltInSecretEnvVars"]
    assert not any(variables.values())
    for path in CHART:
        section, _, variable = path.partition(".")
        if section == "enableBuiltInSecretEnvVars" and variable:
            assert variable in variables or variable.startswith(UNUSED_VARIABLES)


def test_tasks_and_the_dag_processor_have_no_token_of_kubernetes():
    workers = AIRFLOW["workers"]
    # Without an account of their own, tasks have that of Celery's workers, with its token.
    account = {"create": True, "automountServiceAccountToken": False}
    assert workers["kubernetes"]["serviceAccount"] == account
    assert workers["celery"]["serviceAccount"] == {"create": False}
    account = AIRFLOW["dagProcessor"]["serviceAccount"]
    assert account["automountServiceAccountToken"] is False


def test_kserve_gives_replicas_the_resources_and_the_number_of_the_statefulset():
    resources = container_of(SPECS["serving"])["resources"]
    assert container_of(PREDICTOR)["resources"] == resources
    for name in ("minReplicas", "maxReplicas"):
        assert PREDICTOR[name] == SCALER[name]


def test_sparks_operator_starts_the_image_of_the_tasks():
    version = SPARK["spec"]["runtimeVersions"]["sparkVersion"]
    assert f"\npyspark=={version} " in (CLONE / "spark.lock").read_text()
    (tasks,) = read_documents("spark/airflow-values.yaml")
    for name in ("spark-master", "spark-worker"):
        spec = SPECS[name]
        assert ":".join(tasks.values()) == container_of(spec)["image"]
        assert secrets_of(spec) == {*SERVICES[name].get("secrets", ())}


def test_airflows_chart_runs_the_programs_of_compose():
    task = SPECS["airflow"]
    for key, name in (
        ("apiServer", "airflow-api"),
        ("scheduler", "scheduler"),
        ("dagProcessor", "dag-processor"),
    ):
        assert AIRFLOW[key]["args"] == shlex.split(SERVICES[name]["command"])
    grace = task["terminationGracePeriodSeconds"]
    assert f"{grace // 60}m" == SERVICES["worker"]["stop_grace_period"]
    assert secrets_of(task) == secrets_of(SPECS["console"])
    lock = (CLONE / "deploy" / "gyre.lock").read_text()
    assert f"apache-airflow=={AIRFLOW['airflowVersion']} " in lock
