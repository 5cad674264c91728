"""A Kubernetes of one node: etcd, API server, controllers and scheduler; `node.py` adds what runs pods.

It needs a network namespace of its own, as `make kubernetes` makes one: addresses and ports are fixed.
"""

import json
import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import running, wait_until
from tests.support.kubernetes.programs import kubectl_and_helm, kubernetes

ADDRESS = "10.88.0.1"
"""Of the node, and of the stores beside the cluster."""
GATEWAY = "10.88.0.254"
"""kubelet wants a default route; nothing answers there."""
SERVICES = "10.96.0.0/16"
PODS = "10.99.0.0/16"
API = f"https://{ADDRESS}:6443"
USERS = {
    "admin": ("admin", "system:masters"),
    "scheduler": ("system:kube-scheduler", ""),
    "controllers": ("system:kube-controller-manager", ""),
    "proxy": ("system:kube-proxy", ""),
    "kubelet": ("system:node:node", "system:nodes"),
}
"""File of a login, its user, its group."""
AUDIT = """
apiVersion: audit.k8s.io/v1
kind: Policy
rules: [{level: Metadata, omitStages: [RequestReceived]}]
"""


class Cluster:
    """Programs of a control plane, and what asks them."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.audit_log = folder / "audit.log"
        self.keys = folder / "keys"
        self.digests: dict[str, str] = {}
        """Of the images that the node has, by name."""
        self._stack = stack
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        programs = f"{kubernetes()}:{kubectl_and_helm()}"
        self.variables = os.environ | {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "KUBECONFIG": str(self.login("admin")),
            # Helm keeps its repositories there.
            "HOME": str(folder),
        }

    def login(self, name: str) -> Path:
        """Return the file that a program logs in with."""
        return self.keys / f"{name}.conf"

    def start(self, name: str, *command: str) -> None:
        """Run a program until the cluster ends; its output is in a file of its name."""
        log = self.folder / f"{name}.log"
        process = running([*command], log, **self.variables)
        self._processes[name] = self._stack.enter_context(process)

    def memory(self, *names: str) -> float:
        """Return the resident memory of programs, in MB."""
        total = 0
        for name in names:
            status = Path(f"/proc/{self._processes[name].pid}/status").read_text()
            total += int(status.partition("VmRSS:")[2].split()[0])
        return total / 1000

    def run(
        self, *command: str | Path, stdin: str | None = None, folder: Path | None = None
    ) -> str:
        """Return what a command prints, such as one of kubectl; it must succeed."""
        done = self.attempt(*command, stdin=stdin, folder=folder)
        assert done.returncode == 0, f"{command}: {done.stdout[-500:]}{done.stderr}"
        return done.stdout

    def attempt(
        self, *command: str | Path, stdin: str | None = None, folder: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command that may fail."""
        return subprocess.run(
            command,
            input=stdin,
            cwd=folder,
            env=self.variables,
            capture_output=True,
            check=False,
            text=True,
        )

    def kubectl(self, *arguments: str | Path, stdin: str | None = None) -> str:
        """Return what kubectl prints, in the namespace `gyre`; it must succeed."""
        return self.run("kubectl", "--namespace=gyre", *arguments, stdin=stdin)

    def get(self, kind: str, name: str = "", **labels: str) -> Any:
        """Return an object of the namespace `gyre`, or the list of those of a kind."""
        selector = ",".join(f"{label}={value}" for label, value in labels.items())
        arguments = ["get", kind, name, f"--selector={selector}"]
        text = self.kubectl(
            *filter(None, arguments[: 3 if name else 4]), "--output=json"
        )
        found = json.loads(text)
        return found if name else found["items"]

    def apply(self, *objects: dict[str, Any]) -> None:
        """Apply objects that a test makes."""
        self.kubectl("apply", "--filename=-", stdin=yaml.safe_dump_all(objects))


@contextmanager
def control_plane(folder: Path) -> Iterator[Cluster]:
    """A cluster without a node: pods are made and not run."""
    with ExitStack() as stack:
        cluster = Cluster(folder, stack)
        _make_network()
        _write_logins(cluster)
        _start_etcd(cluster)
        _start_api_server(cluster)
        _start_controllers(cluster)
        yield cluster


def _make_network() -> None:
    for command in (
        "link set lo up",
        "link add node type bridge",
        f"address add {ADDRESS}/24 dev node",
        "link set node up",
        f"route add default via {GATEWAY} dev node",
    ):
        subprocess.run(["ip", *command.split()], check=True)


def _write_logins(cluster: Cluster) -> None:
    """Write a token for each user; the API server makes its own certificate."""
    cluster.keys.mkdir()
    tokens = []
    for name, (user, group) in USERS.items():
        token = secrets.token_hex(16)
        tokens.append(f'{token},{user},{name},"{group}"\n')
        server = {
            "server": API,
            "certificate-authority": str(cluster.keys / "apiserver.crt"),
        }
        login = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": server}],
            "users": [{"name": name, "user": {"token": token}}],
            "contexts": [
                {"name": "test", "context": {"cluster": "test", "user": name}}
            ],
            "current-context": "test",
        }
        cluster.login(name).write_text(yaml.safe_dump(login))
    (cluster.keys / "tokens").write_text("".join(tokens))
    command = ["openssl", "genrsa", "-out", str(cluster.keys / "accounts.key"), "2048"]
    subprocess.run(command, check=True, capture_output=True)


def _start_etcd(cluster: Cluster) -> None:
    cluster.start("etcd", "etcd", f"--data-dir={cluster.folder}/etcd", "--logger=zap")


def _start_api_server(cluster: Cluster) -> None:
    policy = cluster.folder / "audit.yaml"
    policy.write_text(AUDIT)
    key = cluster.keys / "accounts.key"
    cluster.start(
        "api",
        "kube-apiserver",
        "--etcd-servers=http://127.0.0.1:2379",
        f"--cert-dir={cluster.keys}",
        f"--advertise-address={ADDRESS}",
        f"--token-auth-file={cluster.keys}/tokens",
        "--kubelet-preferred-address-types=InternalIP",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        f"--service-cluster-ip-range={SERVICES}",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={key}",
        f"--service-account-signing-key-file={key}",
        f"--audit-policy-file={policy}",
        f"--audit-log-path={cluster.audit_log}",
    )

    def is_ready() -> bool:
        return cluster.attempt("kubectl", "get", "--raw=/readyz").returncode == 0

    wait_until("the API server", is_ready, 120)


def _start_controllers(cluster: Cluster) -> None:
    cluster.start(
        "controllers",
        "kube-controller-manager",
        f"--kubeconfig={cluster.login('controllers')}",
        "--use-service-account-credentials",
        "--leader-elect=false",
        f"--root-ca-file={cluster.keys}/apiserver.crt",
        f"--service-account-private-key-file={cluster.keys}/accounts.key",
        "--allocate-node-cidrs",
        f"--cluster-cidr={PODS}",
        f"--service-cluster-ip-range={SERVICES}",
    )
    login = f"--kubeconfig={cluster.login('scheduler')}"
    cluster.start("scheduler", "kube-scheduler", login, "--leader-elect=false")
