"""The node of a cluster: containerd and runc of Debian, kubelet, kube-proxy, and names.

It needs mounts and processes of its own, as `make kubernetes` makes them.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from tests.conftest import wait_until
from tests.support.kubernetes.cluster import ADDRESS, PODS, Cluster, control_plane

NODE = "node"
PAUSE = "localhost/pause:1"
"""The image of the process that holds a pod's namespaces."""
SYSCTLS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
"""kubelet wants them for the whole machine: it finds them so, and writes nothing."""
CONTAINERD = """
version = 2
root = "{folder}/containerd"
state = "{folder}/containerd.run"
[grpc]
  address = "{folder}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  # A container of a container may not lower its score.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{folder}/network"
"""


def _network(folder: Path) -> dict[str, object]:
    ranges = [[{"subnet": "10.99.0.0/24"}]]
    addresses = {
        "type": "host-local",
        "dataDir": f"{folder}/addresses",
        "ranges": ranges,
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {
        "type": "bridge",
        "bridge": "pods",
        "isGateway": True,
        "hairpinMode": True,
    }
    plugins = [bridge | {"ipam": addresses}, {"type": "loopback"}]
    return {"cniVersion": "0.4.0", "name": "pods", "plugins": plugins}


def _kubelet(folder: Path) -> dict[str, object]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        # The machine may have either.
        "failCgroupV1": False,
        "cgroupDriver": "cgroupfs",
        "containerRuntimeEndpoint": f"unix://{folder}/containerd.sock",
        "authentication": {
            "anonymous": {"enabled": True},
            "webhook": {"enabled": False},
        },
        "authorization": {"mode": "AlwaysAllow"},
        "clusterDNS": [ADDRESS],
        "clusterDomain": "cluster.local",
        "resolvConf": f"{folder}/resolv.conf",
        "failSwapOn": False,
        "maxOpenFiles": 20000,
        "oomScoreAdj": 0,
        "podLogsDir": f"{folder}/pod-logs",
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "1%",
            "imagefs.available": "1%",
            "nodefs.inodesFree": "1%",
        },
    }


def _proxy(cluster: Cluster) -> dict[str, object]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": str(cluster.login("proxy"))},
        "clusterCIDR": PODS,
        "hostnameOverride": NODE,
        "mode": "nftables",
        # Limits of the whole machine stay as they are.
        "conntrack": {"maxPerCore": 0, "min": 0},
        "oomScoreAdj": 0,
    }


@contextmanager
def one_node(folder: Path, images: dict[str, Path]) -> Iterator[Cluster]:
    """A cluster whose node runs pods.

    Args:
        folder: For everything that is written; it must not be on an overlay.
        images: Archives by the name that manifests have; PAUSE is one of them.

    """
    _prepare_machine(folder)
    with control_plane(folder) as cluster:
        _start_containerd(cluster)
        for name, archive in images.items():
            _import(cluster, name, archive)
        _start_kubelet(cluster)
        yield cluster


def _prepare_machine(folder: Path) -> None:
    subprocess.run(["mount", "--make-rshared", "/"], check=True)
    for name, value in SYSCTLS.items():
        file = folder / name.replace("/", ".")
        file.write_text(value)
        subprocess.run(["mount", "--bind", file, f"/proc/sys/{name}"], check=True)


def _start_containerd(cluster: Cluster) -> None:
    folder = cluster.folder
    (folder / "network").mkdir()
    (folder / "network" / "pods.conflist").write_text(json.dumps(_network(folder)))
    config = folder / "containerd.toml"
    config.write_text(CONTAINERD.format(folder=folder, pause=PAUSE))
    cluster.start("containerd", "containerd", f"--config={config}")

    def is_up() -> bool:
        return cluster.attempt(*_ctr(cluster), "version").returncode == 0

    wait_until("containerd", is_up, 60)


def _start_kubelet(cluster: Cluster) -> None:
    folder = cluster.folder
    # Pods have no names but those of the cluster.
    (folder / "resolv.conf").write_text("")
    kubelet = folder / "kubelet.yaml"
    kubelet.write_text(yaml.safe_dump(_kubelet(folder)))
    proxy = folder / "proxy.yaml"
    proxy.write_text(yaml.safe_dump(_proxy(cluster)))
    cluster.start(
        "kubelet",
        "kubelet",
        f"--config={kubelet}",
        f"--kubeconfig={cluster.login('kubelet')}",
        f"--root-dir={folder}/kubelet",
        f"--cert-dir={folder}/kubelet.keys",
        f"--hostname-override={NODE}",
        f"--node-ip={ADDRESS}",
    )
    cluster.start("proxy", "kube-proxy", f"--config={proxy}")
    names = "tests.support.kubernetes.names"
    cluster.start("names", sys.executable, "-m", names, str(cluster.login("admin")))
    wait_until("the node", lambda: _is_ready(cluster), 120)


def _is_ready(cluster: Cluster) -> bool:
    path = '--output=jsonpath={.status.conditions[?(@.type=="Ready")].status}'
    done = cluster.attempt("kubectl", "get", "node", NODE, path)
    return done.stdout == "True"


def _ctr(cluster: Cluster) -> list[str]:
    address = f"{cluster.folder}/containerd.sock"
    return ["ctr", f"--address={address}", "--namespace=k8s.io"]


def _import(cluster: Cluster, name: str, archive: Path) -> None:
    """Have containerd know an image by its name and by its digest."""
    cluster.run(*_ctr(cluster), "images", "import", archive)
    line = next(
        line
        for line in cluster.run(*_ctr(cluster), "images", "list").splitlines()
        if line.startswith(f"{name} ")
    )
    digest = line.split()[2]
    add_name(cluster, name, f"{name.rpartition(':')[0]}@{digest}")
    cluster.digests[name] = digest


def add_name(cluster: Cluster, image: str, name: str) -> None:
    """Give an image that the node has another name."""
    cluster.run(*_ctr(cluster), "images", "tag", image, name)
