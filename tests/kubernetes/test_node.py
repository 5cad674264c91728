"""deploy/kubernetes as a team runs it: docs/how-to/kubernetes.md on a node, command by command.

`make kubernetes`. The tests are one story, and each goes on where the one before it ended.
"""

import json
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event

import httpx
import psutil
import pytest

from tests.conftest import wait_until
from tests.kubernetes.manifests import page_commands
from tests.support.kubernetes.crds import definition
from tests.support.kubernetes.images import archives
from tests.support.kubernetes.node import add_name, one_node
from tests.support.kubernetes.programs import CACHE
from tests.support.kubernetes.team import BEGIN, PAGE, Team, stores

pytestmark = pytest.mark.kubernetes
MODEL = "customer_churn_model"
TRAIN = f"train_{MODEL}"
SERVING = "registry.example.com/gyre-serving"
CLIENTS = 2
PROGRAMS = ("etcd", "api", "controllers", "scheduler")
MINUTE = 60
INFERENCE_SERVICE = ("serving.kserve.io", "v1beta1", "inferenceservices")
SCALING = {"minReplicas", "maxReplicas", "scaleMetric", "scaleTarget"}
TOKENS = {"gyre-airflow-scheduler", "gyre-airflow-api"}
"""Accounts that ask the API server; no other pod has a token."""


@pytest.fixture(scope="module")
def measured():
    """Figures, in seconds unless they say otherwise; `make kubernetes` prints them."""
    figures = {}
    yield figures
    lines = [f"chart of Airflow: {os.environ.get('AIRFLOW_CHART', 'the stand-in')}\n"]
    lines += [f"{value:7.1f}  {step}\n" for step, value in figures.items()]
    (CACHE / "measured.txt").write_text("".join(lines))


@pytest.fixture(scope="module")
def team(tmp_path_factory):
    folder = tmp_path_factory.mktemp("team")
    # The bridge with the stores' address is the cluster's.
    with (
        one_node(tmp_path_factory.mktemp("cluster"), archives()) as cluster,
        stores(folder) as addresses,
    ):
        team = Team(folder, cluster, addresses)
        team.write_secrets()
        team.edit_manifests()
        team.make_volumes()
        try:
            yield team
        finally:
            show_what_failed(cluster)


def show_what_failed(cluster):
    """Print, for a test that failed, pods and the logs of those that are not ready."""
    listed = cluster.attempt("kubectl", "get", "pods", "--all-namespaces").stdout
    sys.stdout.write(listed)
    for pod in cluster.get("pods"):
        name = pod["metadata"]["name"]
        states = pod["status"].get("containerStatuses", ())
        if not all(state["ready"] for state in states):
            log = cluster.attempt("kubectl", "-ngyre", "logs", "--tail=30", name)
            sys.stdout.write(f"== {name}\n{log.stdout}{log.stderr}\n")


@contextmanager
def seconds_of(measured, step):
    began = time.monotonic()
    yield
    measured[step] = time.monotonic() - began


@contextmanager
def asked(team):
    """Ask serving from two clients until the block ends; yields the answers.

    A client of Kubernetes that keeps a connection asks the replica that it has begun with, so
    one keeps it and the other does not.
    """
    answers = []
    end = Event()

    def ask(keeps):
        with team.serving() as kept:
            while not end.is_set():
                client = kept if keeps else team.serving()
                body = {"customer_id": 1}
                try:
                    answers.append(client.post("/predict", json=body))
                except httpx.TransportError as error:
                    answers.append(error)
                if not keeps:
                    client.close()
                time.sleep(0.02)

    with ThreadPoolExecutor(CLIENTS) as threads:
        running = [threads.submit(ask, keeps) for keeps in (True, False)]
        try:
            wait_until("an answer", lambda: len(answers) > 10, 60)
            yield answers
        finally:
            end.set()
        for each in running:
            each.result()


def failed(answers):
    """Return what is not a prediction."""
    return [
        repr(answer) if isinstance(answer, Exception) else answer.text
        for answer in answers
        if isinstance(answer, Exception) or answer.status_code != 200
    ]


def are_complete(team, measured, step, answers):
    """Every request was answered by a prediction, and each is in the log."""
    assert failed(answers) == []
    measured[f"requests during {step}, none failed"] = len(answers)
    ids = {answer.json()["request_id"] for answer in answers}
    wait_until("rows", lambda: ids <= team.logged_requests(), 3 * MINUTE)


def ready(team, **labels):
    """Return the names of the pods that are ready and not to be removed."""
    labels = {f"app.kubernetes.io/{key}": value for key, value in labels.items()}
    return {
        pod["metadata"]["name"]
        for pod in team.cluster.get("pods", **labels)
        if "deletionTimestamp" not in pod["metadata"]
        and any(
            each["type"] == "Ready" and each["status"] == "True"
            for each in pod["status"].get("conditions", ())
        )
    }


def serving_pods(team):
    return ready(team, name="serving")


def scale(team, count):
    team.cluster.kubectl("scale", "statefulset/serving", f"--replicas={count}")
    wait_until(f"{count} replicas", lambda: len(serving_pods(team)) == count, 180)


def test_the_page_leads_from_an_empty_namespace_to_a_logged_prediction(team, measured):
    with seconds_of(measured, "apply to a complete job init"):
        team.install()
    with seconds_of(measured, "job init to the programs of Airflow ready"):
        deployments = ("scheduler", "api-server", "dag-processor")
        for name in deployments:
            team.run(
                f"kubectl --namespace gyre rollout status deployment/airflow-{name} --timeout=10m"
            )
        for name in ("console", "consumer", "mlflow"):
            team.run(
                f"kubectl --namespace gyre rollout status deployment/{name} --timeout=5m"
            )
    airflow, ask = page_commands(PAGE, BEGIN)[2].split(
        "kubectl --namespace gyre port-forward"
    )
    function, ingest, train = airflow.splitlines()
    with seconds_of(measured, "ingest"):
        team.run(f"{function}\n{ingest}")
        has_succeeded(team, "ingest")
    with seconds_of(measured, "training"):
        team.run(f"{function}\n{train}")
        has_succeeded(team, TRAIN)
    answer = team.run(f"kubectl --namespace gyre port-forward{ask}\nkill %1")
    prediction = json.loads(answer[answer.index("{") :])
    assert prediction["model_version"] == "1"
    assert prediction["logged"] is True
    wait_until("a row", lambda: prediction["request_id"] in team.logged_requests(), 120)
    measured["memory of the control plane, MB"] = team.cluster.memory(*PROGRAMS)
    assert team.task_pods() >= 10, "a pod for each task"


def has_succeeded(team, dag):
    ends = {"success", "failed"}
    wait_until(dag, lambda: team.dag_state(dag) in ends, 20 * MINUTE)
    assert team.dag_state(dag) == "success"


def test_replicas_are_added_and_removed_under_load(team, measured):
    with asked(team) as answers:
        with seconds_of(measured, "1 to 3 replicas"):
            scale(team, 3)
        scale(team, 1)
        scale(team, 2)
    are_complete(team, measured, "1 to 3 to 1 to 2 replicas", answers)


def test_serving_is_updated_under_load_by_the_commands_of_the_page(team, measured):
    image = f"{SERVING}@{team.cluster.digests[f'{SERVING}:0.1.0']}"
    add_name(team.cluster, f"{SERVING}:0.1.0", f"{SERVING}:0.2.0")
    update, status, back = page_commands(PAGE, "Update")[0].splitlines()
    with asked(team) as answers:
        team.run(f"{update}\n{status}")
        assert images(team) == {f"{SERVING}:0.2.0"}
        team.run(f"{back}\n{status}")
        assert images(team) == {image}
    are_complete(team, measured, "an update and the way back", answers)


def images(team):
    pods = team.cluster.get("pods", **{"app.kubernetes.io/name": "serving"})
    return {pod["spec"]["containers"][0]["image"] for pod in pods}


def test_an_evicted_replica_is_missed_by_nobody(team, measured):
    names = sorted(serving_pods(team))
    assert len(names) == 2
    with asked(team) as answers:
        assert evict(team, names[0]).returncode == 0
        refused = evict(team, names[1])
        assert "disruption budget" in refused.stderr
        wait_until("the replica", lambda: serving_pods(team) == {*names}, 180)
    are_complete(team, measured, "an eviction", answers)


def evict(team, pod):
    """Ask for an eviction, as `kubectl drain` does for each pod of a node."""
    eviction = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": pod, "namespace": "gyre"},
    }
    path = f"/api/v1/namespaces/gyre/pods/{pod}/eviction"
    command = ["kubectl", "create", f"--raw={path}", "--filename=-"]
    return team.cluster.attempt(*command, stdin=json.dumps(eviction))


def test_rows_of_a_killed_pod_are_sent_by_the_next_one_from_its_volume(team, measured):
    claims = claims_of(team)
    with stopped(team.stores.s3_process):
        with team.serving() as client:
            answers = [
                client.post("/predict", json={"customer_id": 1}) for _ in range(50)
            ]
        processes = serving_processes()
        team.cluster.kubectl("delete", "pod", "--grace-period=0", "--force",
                             "--selector=app.kubernetes.io/name=serving")  # fmt: skip
        wait_until("their end", lambda: not processes & serving_processes(), 60)
    wait_until("replicas", lambda: len(serving_pods(team)) == 2, 300)
    are_complete(
        team, measured, "a hang of S3, before both replicas are killed", answers
    )
    assert claims_of(team) == claims


def serving_processes():
    """Return the processes of all replicas: those of containers are seen from outside."""
    return {
        process
        for process in psutil.process_iter(["cmdline"])
        if (process.info["cmdline"] or [])[1:3] == ["-m", "serving"]
    }


@contextmanager
def stopped(process):
    """A server that takes connections and does not answer."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def claims_of(team):
    """Return the volume of each replica's claim."""
    claims = team.cluster.get("persistentvolumeclaims")
    return {
        claim["metadata"]["name"]: claim["spec"]["volumeName"]
        for claim in claims
        if claim["metadata"]["name"].startswith("home-serving")
    }


def test_a_training_goes_on_without_the_scheduler_that_began_it(team, measured):
    runs = team.dag_runs(TRAIN)
    function = page_commands(PAGE, BEGIN)[2].splitlines()[0]
    conf = """--conf '{"force": true, "reason": "another version"}'"""
    team.run(f"{function}\nairflow dags trigger {TRAIN} {conf}")
    wait_until("a task", lambda: team.dag_state(TRAIN) == "running", 5 * MINUTE)
    wait_until("a pod", lambda: ready(team) & task_pods(team), 5 * MINUTE)
    wait_until("its log", lambda: "gyre" in team.task_log(TRAIN), MINUTE)
    (scheduler,) = team.cluster.get("pods", component="scheduler")
    name = scheduler["metadata"]["name"]
    team.cluster.kubectl("delete", "pod", name, "--grace-period=0", "--force")
    with seconds_of(measured, "a training whose scheduler is killed"):
        has_succeeded(team, TRAIN)
    assert team.dag_runs(TRAIN) == runs + 1
    # No task began a second time.
    assert team.tries(TRAIN) == {1}


def task_pods(team):
    pods = team.cluster.get("pods", component="worker")
    return {pod["metadata"]["name"] for pod in pods}


def test_a_version_is_promoted_while_pods_roll(team, measured):
    versions = team.versions(MODEL)
    assert versions == {"1", "2"}
    with asked(team) as answers:
        team.cluster.kubectl("rollout", "restart", "statefulset/serving")
        serving = answers[-1].json()["model_version"]
        (other,) = versions - {serving}
        team.promote(MODEL, other)
        team.run("kubectl --namespace gyre rollout status statefulset/serving")
        wait_until("the version", lambda: answered_by(answers[-10:]) == {other}, 60)
    assert failed(answers) == []
    assert answered_by(answers) == versions
    are_complete(team, measured, "a promotion while pods roll", answers)


def answered_by(answers):
    return {answer.json()["model_version"] for answer in answers}


def test_kserve_replaces_the_statefulset_by_its_page_under_load(team, measured):
    """The test does what KServe's controller would: a Deployment, and the state of the service."""
    team.cluster.apply(definition("InferenceService", *INFERENCE_SERVICE))
    (commands,) = page_commands("kserve.md")
    with asked(team) as answers, ThreadPoolExecutor(1) as threads:
        page = threads.submit(team.run, commands)
        wait_until("the service", lambda: inference_services(team), MINUTE)
        (service,) = team.cluster.get("inferenceservices")
        team.cluster.apply(deployment_of(service))
        team.run(
            "kubectl --namespace gyre rollout status deployment/gyre-serving-predictor"
        )
        ready_state = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
        team.cluster.kubectl(
            "patch", "inferenceservice/gyre-serving", "--subresource=status",
            "--type=merge", f"--patch={json.dumps(ready_state)}",
        )  # fmt: skip
        page.result()
        wait_until("the old pods", lambda: len(serving_pods(team)) == 2, 180)
    are_complete(team, measured, "the change to KServe", answers)


def inference_services(team):
    done = team.cluster.attempt(
        "kubectl", "-ngyre", "get", "inferenceservices", "-oname"
    )
    return done.stdout.split()


def deployment_of(service):
    predictor = service["spec"]["predictor"]
    labels = service["metadata"]["labels"] | {"app": "isvc.gyre-serving-predictor"}
    metadata = {"name": "gyre-serving-predictor", "namespace": "gyre"}
    pod = {key: predictor[key] for key in predictor.keys() - SCALING}
    selector = {"matchLabels": {"app": labels["app"]}}
    template = {"metadata": {"labels": labels}, "spec": pod}
    spec = {
        "replicas": predictor["minReplicas"],
        "selector": selector,
        "template": template,
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": spec,
    }


def test_accounts_may_do_what_they_have_done_and_nothing_was_refused(team):
    asked_for = {}
    refused = []
    for entry in team.requests_of_accounts():
        account = entry["user"]["username"].rpartition(":")[2]
        place = entry["objectRef"]
        resource = "/".join(filter(None, [place["resource"], place.get("subresource")]))
        asked_for.setdefault(account, set()).add((entry["verb"], resource))
        if entry["responseStatus"]["code"] == 403:
            refused.append((account, entry["verb"], resource))
    assert refused == []
    assert asked_for.keys() <= TOKENS
    assert allowed(team) == asked_for


def allowed(team):
    """Return what each account may do by the Roles of the namespace."""
    roles = {
        each["metadata"]["name"]: each["rules"] for each in team.cluster.get("roles")
    }
    rights = {}
    for binding in team.cluster.get("rolebindings"):
        for subject in binding["subjects"]:
            for rule in roles[binding["roleRef"]["name"]]:
                pairs = {(v, r) for v in rule["verbs"] for r in rule["resources"]}
                rights.setdefault(subject["name"], set()).update(pairs)
    return rights
