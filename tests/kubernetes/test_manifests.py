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
from itertools import chain
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from core.settings import CLONE, in_schema, load_settings
from tests.kubernetes.conftest import run

PAGE = (CLONE / "docs" / "how-to" / "kubernetes.md").read_text()
FOLDER, HERE = CLONE / "deploy" / "kubernetes", Path(__file__).parent
RELEASES = ("1.29", "1.37")
"""Of Kubernetes: the oldest and the newest that the manifests are held against."""
COMPOSE = yaml.safe_load(
    re.sub(
        r"\$\{\w+:-([^}]*)\}", r"\1", (CLONE / "deploy" / "compose.yaml").read_text()
    )
)
SERVICES = COMPOSE["services"]
DIFFERENT = {
    "GYRE_SERVING_URL": "the headless Service stands for every replica there is",
    "GYRE_ENGINE": "the folder `spark` sets it",
    "GYRE_SPARK_MASTER": "the folder `spark` sets it",
    "GYRE_ALERT_URLS": "a key of the Secret, as a pod of a task keeps no file",
    "AIRFLOW__CORE__EXECUTOR": "a pod for each task, by Airflow's chart",
    "AIRFLOW__CELERY__BROKER_URL_CMD": "no Celery",
    "AIRFLOW__CELERY__WORKER_CONCURRENCY": "no Celery",
    "airflow_broker_url": "no Celery",
    "PGDATA": "a volume's own folder may hold lost+found",
    "/health/ready": "a replica has started when it can predict; an update waits for that",
}
SERVED = {"serving": "serving-a"}
PODS = {"Deployment", "StatefulSet", "Job"}


def documents(*paths):
    files = chain.from_iterable(sorted(FOLDER.glob(path)) for path in paths)
    every = (each for file in files for each in yaml.safe_load_all(file.read_text()))
    return [each for each in every if each["kind"] != "Kustomization"]


ALL = documents("base/*.yaml", "mlflow/*.yaml", "overlays/*/stores.yaml")
AIRFLOW = yaml.safe_load((FOLDER / "airflow-values.yaml").read_text())
MLFLOW = yaml.safe_load((FOLDER / "mlflow-values.yaml").read_text())
KSERVE = yaml.safe_load((FOLDER / "kserve" / "inferenceservice.yaml").read_text())
SPARK = yaml.safe_load((FOLDER / "spark" / "sparkcluster.yaml").read_text())
SPARK_POLICIES = documents("spark/network.yaml")
SETTINGS = next(each["data"] for each in ALL if each["kind"] == "ConfigMap")


def known(document):
    for release in RELEASES:
        kubernetes_validate.validate(document, release, strict=True)


def pod_of(spec, name="pod"):
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


def airflow_task():
    """The pod that the chart and the executor make for a task."""
    contexts, workers = AIRFLOW["securityContexts"], AIRFLOW["workers"]
    container = {
        "name": "base",
        "image": AIRFLOW["defaultAirflowRepository"],
        "command": workers["kubernetes"]["command"],
        "env": yaml.safe_load(AIRFLOW["extraEnv"]),
        "envFrom": yaml.safe_load(AIRFLOW["extraEnvFrom"]),
        "volumeMounts": AIRFLOW["volumeMounts"],
        "securityContext": contexts["containers"],
        "resources": workers["resources"],
    }
    return {
        "containers": [container],
        "volumes": AIRFLOW["volumes"],
        "securityContext": contexts["pod"],
        "terminationGracePeriodSeconds": workers["terminationGracePeriodSeconds"],
    }


def specs():
    """Every pod, by the name of its program."""
    found = {
        each["metadata"]["name"]: each["spec"]["template"]["spec"]
        for each in ALL
        if each["kind"] in PODS
    }
    return found | {"kserve": KSERVE["spec"]["predictor"], "airflow": airflow_task()}


def only(spec):
    (container,) = spec["containers"]
    return container


def secrets_of(spec):
    given = [each["secret"] for each in spec["volumes"] if "secret" in each]
    assert {secret["secretName"] for secret in given} <= {"gyre"}
    return {item["key"] for secret in given for item in secret["items"]}


@pytest.mark.parametrize(
    "document",
    [*ALL, *SPARK_POLICIES],
    ids=lambda each: f"{each['kind']} {each['metadata']['name']}",
)
def test_kubernetes_knows_every_field_of_each_object(document):
    known(document)


def test_a_field_that_kubernetes_does_not_know_is_seen():
    wrong = yaml.safe_load(
        yaml.safe_dump(next(e for e in ALL if e["kind"] == "StatefulSet"))
    )
    only(wrong["spec"]["template"]["spec"])["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        known(wrong)


@pytest.mark.nightly
@pytest.mark.parametrize(
    "overlay", ["overlays/dev", "overlays/production", "kserve", "spark"]
)
def test_an_overlay_is_built_and_kubernetes_knows_what_comes_out(kustomize, overlay):
    built = [*yaml.safe_load_all(run([*kustomize, FOLDER / overlay]))]
    served = [each for each in built if each["kind"] == "InferenceService"]
    for document in built:
        if document["kind"] not in {"InferenceService", "SparkCluster"}:
            known(document)
    kinds = {(each["kind"], each["metadata"]["name"]) for each in built}
    of_base = {
        (each["kind"], each["metadata"]["name"])
        for each in documents("base/*", "mlflow/*")
    }
    gone = {
        (kind, "serving") for kind in ("HorizontalPodAutoscaler", "PodDisruptionBudget")
    }
    gone |= {("StatefulSet", "serving")} if served else set()
    is_whole = overlay in {"overlays/production", "spark"}
    assert of_base - kinds == (set() if is_whole else gone)
    spaces = {each["metadata"]["namespace"] for each in built}
    assert spaces == {"gyre-dev" if overlay == "overlays/dev" else "gyre"}
    if overlay == "kserve":
        (predictor,) = [each["spec"]["predictor"] for each in served]
        assert only(predictor)["image"] == "registry.example.com/gyre-serving:0.1.0"
    if overlay == "spark":
        (settings,) = [each["data"] for each in built if each["kind"] == "ConfigMap"]
        assert settings["GYRE_ENGINE"] == "spark"
        name = SPARK["metadata"]["name"]
        assert settings["GYRE_SPARK_MASTER"] == f"spark://{name}-master-svc:7077"
    if overlay == "overlays/production":
        images = {
            only(each["spec"]["template"]["spec"])["image"]
            for each in built
            if each["kind"] in PODS
        }
        assert images == {
            f"registry.example.com/{n}:0.1.0" for n in ("gyre", "gyre-serving")
        }
        (scaler,) = [
            each["spec"] for each in built if each["kind"] == "HorizontalPodAutoscaler"
        ]
        assert (scaler["minReplicas"], scaler["maxReplicas"]) == (3, 12)
        airflow = yaml.safe_load((FOLDER / overlay / "airflow-values.yaml").read_text())
        assert ":".join(airflow.values()) == "registry.example.com/gyre:0.1.0"


@pytest.mark.parametrize(
    "name",
    [
        "serving",
        "console",
        "consumer",
        "init",
        "mlflow",
        "postgres",
        "redis",
        "s3",
        "bucket",
    ],
)
def test_a_program_is_the_one_that_compose_runs(name):
    spec, service = specs()[name], SERVICES[SERVED.get(name, name)]
    container = only(spec)
    assert container["image"] == service["image"]
    command, entrypoint = service.get("command", ""), service.get("entrypoint")
    if isinstance(command, str):
        command = shlex.split(command)
    assert [line.rstrip() for line in container.get("args", [])] == [
        line.rstrip() for line in command
    ]
    assert container.get("command") == entrypoint
    mounts = {each["mountPath"] for each in container["volumeMounts"]} - {
        "/tmp",
        "/run/secrets",
    }
    volumes = {volume.split(":")[1] for volume in service.get("volumes", [])}
    assert mounts - {"/var/run/postgresql"} == (volumes if name != "bucket" else set())
    grace = service.get("stop_grace_period", "30s")
    assert spec.get("terminationGracePeriodSeconds", 30) == int(grace.removesuffix("s"))
    if name == "bucket":  # the template of all programs gives it more than it needs
        assert secrets_of(spec) < {*service["secrets"]}
    else:
        assert {*service["secrets"]} - secrets_of(spec) <= DIFFERENT.keys()
        given_by_compose = {*service["secrets"]} | {
            name.lower() for name in service.get("environment", ())
        }
        assert secrets_of(spec) <= given_by_compose
    env = {each["name"]: each["value"] for each in container.get("env", [])}
    if name in {"postgres", "redis", "s3"}:
        given = service.get("environment", {})
        assert {
            key for key in env.keys() ^ given.keys() if key not in DIFFERENT
        } == set()
        assert given.items() <= env.items()
    else:
        assert container["envFrom"] == [{"configMapRef": {"name": "gyre"}}]
        assert env == {}


def test_variables_are_those_of_compose():
    given = {name: str(value or "") for name, value in COMPOSE["x-environment"].items()}
    differing = {
        name
        for name in given.keys() | SETTINGS.keys()
        if given.get(name) != SETTINGS.get(name)
    }
    assert differing == {
        name for name in DIFFERENT if name.isupper() and name != "PGDATA"
    }
    assert all(isinstance(value, str) for value in SETTINGS.values())


def asked(service):
    """Port and path that a health check of compose asks."""
    test = shlex.join(service["healthcheck"]["test"])
    return re.search(r"127\.0\.0\.1:(\d+)(/[a-z/]*)", test).groups()


@pytest.mark.parametrize("name", ["serving", "kserve", "console", "mlflow"])
def test_probes_and_services_ask_where_compose_does(name):
    program = "serving" if name == "kserve" else name
    container = only(specs()[name])
    port, path = asked(SERVICES[SERVED.get(program, program)])
    (exposed,) = container["ports"]
    assert str(exposed["containerPort"]) == port
    probes = {
        kind: container[f"{kind}Probe"]["httpGet"]
        for kind in ("startup", "readiness", "liveness")
    }
    assert {probe["port"] for probe in probes.values()} <= {
        exposed.get("name"),
        int(port),
    }
    paths = {kind: probe["path"] for kind, probe in probes.items()}
    starts = "/health/ready" if program == "serving" else path
    assert paths == {"startup": starts, "readiness": path, "liveness": path}
    for each in ALL:
        if (
            each["kind"] == "Service"
            and each["spec"]["selector"].get("app.kubernetes.io/name") == name
        ):
            (shown,) = each["spec"]["ports"]
            assert (str(shown["port"]), shown["targetPort"]) == (port, exposed["name"])


def test_every_address_in_the_settings_is_a_service_with_that_port():
    services = {
        each["metadata"]["name"]: each["spec"]["ports"][0]["port"]
        for each in ALL
        if each["kind"] == "Service"
    }
    inner = [SETTINGS[f"GYRE_{name}_URL"] for name in ("MLFLOW", "AIRFLOW", "SERVING")]
    for url in [*inner, SETTINGS["AWS_ENDPOINT_URL"]]:
        host, port = re.fullmatch(r"http://([a-z0-9-]+):(\d+)", url).groups()
        assert services[host] == int(port)


@pytest.mark.parametrize("name", specs())
def test_a_pod_may_do_nothing_that_it_need_not(name):
    spec = specs()[name]
    container = only(spec)
    pod, own = spec["securityContext"], container["securityContext"]
    assert pod["runAsNonRoot"] is True
    assert (
        pod["runAsUser"]
        == pod["fsGroup"]
        == (999 if name in {"postgres", "redis", "s3"} else 1000)
    )
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert own == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    if (
        name != "airflow"
    ):  # of a tag that moves: Kubernetes would ask a registry each time
        assert (
            "/" in container["image"] or container["imagePullPolicy"] == "IfNotPresent"
        )
    assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
    assert "memory" in container["resources"]["limits"]
    mounted = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
    assert {"/tmp"} < mounted.keys()
    if name != "airflow":  # its scheduler starts pods; the chart gives it a token
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False


def test_the_log_of_serving_outlives_its_pod():
    (serving,) = [
        each["spec"]
        for each in ALL
        if each["kind"] == "StatefulSet" and each["metadata"]["name"] == "serving"
    ]
    (claim,) = serving["volumeClaimTemplates"]
    mounts = {
        each["mountPath"]: each["name"]
        for each in only(serving["template"]["spec"])["volumeMounts"]
    }
    assert mounts["/var/lib/gyre"] == claim["metadata"]["name"]
    assert {*serving["persistentVolumeClaimRetentionPolicy"].values()} == {"Retain"}
    assert "replicas" not in serving, "the autoscaler's, which an apply would undo"


def test_every_secret_is_a_file_that_the_script_writes(tmp_path):
    shutil.copy(CLONE / "deploy" / "secrets.sh", tmp_path)
    subprocess.run(["sh", "secrets.sh"], cwd=tmp_path, check=True, capture_output=True)
    written = {file.name for file in (tmp_path / "secrets").iterdir()}
    assert set.union(*map(secrets_of, specs().values())) <= written
    assert secrets_of({"volumes": MLFLOW["extraVolumes"]}) <= written


def test_settings_are_read_from_files_as_kubernetes_lays_them_out(
    tmp_path, monkeypatch
):
    """Each key is a link into a folder that is exchanged as a whole."""
    (tmp_path / "..2026_11_23").mkdir()
    (tmp_path / "..data").symlink_to("..2026_11_23")
    for name, value in {
        "gyre_redis_url": "redis://of-a-secret",
        "aws_access_key_id": "k",
    }.items():
        (tmp_path / "..data" / name).write_text(f"{value}\n")
        (tmp_path / name).symlink_to(f"..data/{name}")
    monkeypatch.setenv("GYRE_SECRETS_DIR", str(tmp_path))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    assert load_settings(home=tmp_path / "home").redis_url == "redis://of-a-secret"
    assert os.environ["AWS_ACCESS_KEY_ID"] == "k"


def test_an_update_on_the_page_names_a_container_that_there_is():
    named = re.findall(r"(statefulset|deployment)/([a-z]+) ([a-z]+)=", PAGE)
    assert {name for _, name, _ in named} == {
        "serving",
        "console",
        "consumer",
        "mlflow",
    }
    for kind, name, container in named:
        (found,) = [
            each
            for each in ALL
            if (each["kind"].lower(), each["metadata"]["name"]) == (kind, name)
        ]
        assert only(found["spec"]["template"]["spec"])["name"] == container


PROXY = {"gyre/proxy": "true"}
LABELS = {
    each["metadata"]["name"]: each["spec"]["template"]["metadata"]["labels"]
    for each in ALL
    if each["kind"] in PODS
} | {
    name: {
        "app.kubernetes.io/part-of": "gyre",
        "tier": "airflow",
        "component": name,
        "release": "airflow",
    }
    for name in ("api-server", "scheduler", "dag-processor", "worker")
}
POLICIES = [each["spec"] for each in ALL if each["kind"] == "NetworkPolicy"]


def selects(selector, labels):
    found = selector.get("matchLabels", {}).items() <= labels.items()
    return found and all(
        labels.get(each["key"]) in each["values"]
        for each in selector.get("matchExpressions", [])
    )


def reaches(caller, target, port):
    """Whether a pod (or a namespace's proxy) may open a connection, as Kubernetes decides."""
    namespace = {
        "proxy": PROXY,
        "prometheus": {"gyre/prometheus": "true"},
        "stranger": {},
    }
    on_target = [
        each for each in POLICIES if selects(each["podSelector"], LABELS[target])
    ]
    assert any("Ingress" in each["policyTypes"] for each in on_target), (
        "nothing denies it"
    )
    for rule in (rule for each in on_target for rule in each.get("ingress", [])):
        if port not in [each["port"] for each in rule["ports"]]:
            continue
        for peer in rule["from"]:
            if caller in namespace:
                if "namespaceSelector" in peer and selects(
                    peer["namespaceSelector"], namespace[caller]
                ):
                    return True
            elif "podSelector" in peer and selects(peer["podSelector"], LABELS[caller]):
                return True
    return False


WHO = {
    ("serving", 8000): {
        "proxy",
        "prometheus",
        "console",
        "worker",
        "scheduler",
        "dag-processor",
        "api-server",
    },
    ("console", 8001): {"proxy", "prometheus"},
    ("mlflow", 5000): {
        "proxy",
        "serving",
        "console",
        "consumer",
        "init",
        "worker",
        "scheduler",
        "dag-processor",
        "api-server",
    },
    ("api-server", 8080): {
        "proxy",
        "console",
        "worker",
        "scheduler",
        "dag-processor",
        "api-server",
    },
    ("scheduler", 8793): set(),
    ("consumer", 8000): set(),
}


@pytest.mark.parametrize(("target", "port"), WHO)
def test_who_reaches_a_program_is_written_down(target, port):
    callers = {*LABELS, "proxy", "prometheus", "stranger"}
    assert {caller for caller in callers if reaches(caller, target, port)} == WHO[
        target, port
    ]


def test_whatever_is_ours_reaches_outwards_by_a_rule_alone():
    ours = [
        labels
        for labels in LABELS.values()
        if labels.get("app.kubernetes.io/part-of") == "gyre"
    ]
    assert len(ours) == len(LABELS)
    for labels in ours:
        on = [each for each in POLICIES if selects(each["podSelector"], labels)]
        assert any(
            "Egress" in each["policyTypes"] and not each.get("egress") for each in on
        )
    ports = {
        port["port"]
        for each in POLICIES
        for rule in each.get("egress", [])
        for port in rule.get("ports", [])
    }
    assert ports == {53, 5353, 5432, 6379, 443, 6443}


def test_kserve_knows_every_field_and_serves_as_the_statefulset_does():
    schema = json.loads((HERE / "inferenceservice.schema.json").read_text())
    jsonschema.validate(KSERVE, schema)
    predictor = KSERVE["spec"]["predictor"]
    assert 1 <= predictor["minReplicas"] < predictor["maxReplicas"]
    scaling = {"minReplicas", "maxReplicas", "scaleMetric", "scaleTarget"}
    spec = {name: value for name, value in predictor.items() if name not in scaling}
    known(pod_of(spec))
    serving = specs()["serving"]
    for name in ("envFrom", "image", "resources", "securityContext", "volumeMounts"):
        assert only(spec)[name] == only(serving)[name]
    assert secrets_of(spec) == secrets_of(serving)
    (scaler,) = [
        each["spec"] for each in ALL if each["kind"] == "HorizontalPodAutoscaler"
    ]
    assert [scaler["minReplicas"], scaler["maxReplicas"]] == [
        predictor["minReplicas"],
        predictor["maxReplicas"],
    ]
    wrong = json.loads(json.dumps(KSERVE))
    wrong["spec"]["predictor"]["minReplica"] = 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, schema)


def spark_pod(role):
    """The pod that the operator makes of a role; it adds the image."""
    template = SPARK["spec"][f"{role}Spec"]["statefulSetSpec"]["template"]
    spec = json.loads(json.dumps(template["spec"]))
    only(spec)["image"] = SPARK["spec"]["sparkConf"]["spark.kubernetes.container.image"]
    return template["metadata"]["labels"], spec


def test_sparks_operator_knows_every_field_and_starts_the_image_that_tasks_have():
    schema = json.loads((HERE / "sparkcluster.schema.json").read_text())
    jsonschema.validate(SPARK, schema)
    lock = (CLONE / "spark.lock").read_text()
    version = SPARK["spec"]["runtimeVersions"]["sparkVersion"]
    assert f"\npyspark=={version} " in lock
    tasks = yaml.safe_load((FOLDER / "spark" / "airflow-values.yaml").read_text())
    image = SPARK["spec"]["sparkConf"]["spark.kubernetes.container.image"]
    assert ":".join(tasks.values()) == image
    wrong = json.loads(json.dumps(SPARK))
    wrong["spec"]["workerSpecs"] = wrong["spec"].pop("workerSpec")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, schema)


@pytest.mark.parametrize("role", ["master", "worker"])
def test_a_pod_of_spark_may_do_nothing_that_it_need_not(role):
    _, spec = spark_pod(role)
    known(pod_of(spec))
    container = only(spec)
    console = specs()["console"]
    for name in ("automountServiceAccountToken", "enableServiceLinks"):
        assert spec[name] is console[name] is False
    assert spec["securityContext"] == console["securityContext"]
    assert container["securityContext"] == only(console)["securityContext"]
    service = SERVICES[f"spark-{role}"]
    assert secrets_of(spec) == {*service.get("secrets", ())}
    variables = {each["name"]: each["value"] for each in container.get("env", [])}
    of_compose = service.get("environment", {})
    assert variables == {
        name: str(value)
        for name, value in of_compose.items()
        if name.startswith("SPARK_")
    }


def test_spark_is_asked_at_the_ports_of_its_options_and_by_tasks_alone():
    lines = (CLONE / "deploy" / "spark" / "spark-defaults.conf").read_text()
    options = dict(re.findall(r"^(spark\S+) (.*)$", lines, re.MULTILINE))
    executor = int(options["spark.blockManager.port"])
    policies = {each["metadata"]["name"]: each["spec"] for each in SPARK_POLICIES}
    of_cluster, of_tasks = policies["spark"]["ingress"]
    (to_driver,) = policies["spark-driver"]["ingress"]
    (cluster,) = of_cluster["from"]
    assert to_driver["from"] == [cluster]
    name = SPARK["metadata"]["name"]
    labels = {"spark.operator/spark-cluster-name": name}
    assert cluster["podSelector"] == {"matchLabels": labels}
    assert policies["spark"]["podSelector"] == cluster["podSelector"]
    assert of_tasks["ports"] == [
        {"port": 7077},
        {"port": executor, "endPort": executor + 16},
    ]
    assert [port["port"] for port in to_driver["ports"]] == [
        int(options["spark.driver.port"]),
        int(options["spark.driver.blockManager.port"]),
    ]
    (task,) = of_tasks["from"]
    callers = [name for name in LABELS if selects(task["podSelector"], LABELS[name])]
    assert callers == ["worker"]
    assert selects(policies["spark-driver"]["podSelector"], LABELS["worker"])
    for role in ("master", "worker"):
        labels, _ = spark_pod(role)
        # What the policies `nobody` and `outwards` select.
        assert labels == {"app.kubernetes.io/part-of": "gyre"}


def test_airflows_chart_knows_every_value_and_runs_the_programs_of_compose():
    schema = json.loads((HERE / "airflow-values.schema.json").read_text())
    jsonschema.validate(AIRFLOW, schema)
    known(pod_of(airflow_task()))
    for key, service in {
        "apiServer": "airflow-api",
        "scheduler": "scheduler",
        "dagProcessor": "dag-processor",
    }.items():
        assert AIRFLOW[key]["args"] == shlex.split(SERVICES[service]["command"])
        if "livenessProbe" in AIRFLOW[key]:
            asks = AIRFLOW[key]["livenessProbe"]["command"]
            assert ["CMD", *asks] == SERVICES[service]["healthcheck"]["test"]
            assert (
                AIRFLOW[key].get("startupProbe", {"command": asks})["command"] == asks
            )
    grace = AIRFLOW["workers"]["terminationGracePeriodSeconds"]
    assert f"{grace // 60}m" == SERVICES["worker"]["stop_grace_period"]
    assert {*SERVICES["worker"]["secrets"]} - secrets_of(
        airflow_task()
    ) <= DIFFERENT.keys()
    mounts = {each["mountPath"] for each in AIRFLOW["volumeMounts"]}
    (folder,) = mounts - {"/tmp", "/var/lib/gyre"}
    env = {each["name"]: each["value"] for each in yaml.safe_load(AIRFLOW["extraEnv"])}
    assert env["GYRE_SECRETS_DIR"] == folder
    assert env["GYRE_SERVING_TOKENS_FILE"] == f"{folder}/serving_tokens"
    lock = (CLONE / "deploy" / "gyre.lock").read_text()
    assert f"apache-airflow=={AIRFLOW['airflowVersion']} " in lock
    assert "apache-airflow-providers-cncf-kubernetes==" in lock
    (service,) = [
        each["spec"]
        for each in ALL
        if each["kind"] == "Service" and each["metadata"]["name"] == "airflow-api"
    ]
    assert selects({"matchLabels": service["selector"]}, LABELS["api-server"])


def test_mlflows_chart_knows_every_value_and_its_secret_is_made_by_the_page(tmp_path):
    jsonschema.validate(
        MLFLOW, json.loads((HERE / "mlflow-values.schema.json").read_text())
    )
    container = {
        "name": "mlflow",
        "env": MLFLOW["env"],
        "envFrom": MLFLOW["envFrom"],
        "volumeMounts": MLFLOW["extraVolumeMounts"],
        "resources": MLFLOW["resources"],
    }
    known(pod_of({"containers": [container], "volumes": MLFLOW["extraVolumes"]}))
    assert {
        "name": MLFLOW["fullnameOverride"],
        "port": MLFLOW["server"]["value_options"]["port"],
    } == {"name": "mlflow", "port": 5000}
    (made,) = re.findall(r"^sed .*mlflow_database_url$", PAGE, re.MULTILINE)
    (tmp_path / "deploy" / "secrets").mkdir(parents=True)
    for given in (
        "postgresql://g:p@h/gyre\n",
        "postgresql://g:p@h/gyre?sslmode=verify-full\n",
    ):
        (tmp_path / "deploy" / "secrets" / "gyre_database_url").write_text(given)
        run(["sh", "-c", made], cwd=tmp_path)
        written = (tmp_path / "deploy" / "secrets" / "mlflow_database_url").read_text()
        assert written == in_schema(given.strip(), "mlflow", "psycopg2")
