"""Archives of the images that the node of `make kubernetes` runs.

python -m tests.support.kubernetes.images, outside the network of the cluster: it has no packages.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

from tests.support.kubernetes.node import PAUSE
from tests.support.kubernetes.programs import CACHE, kubernetes
from tests.support.tools.images import base_image, image_builder, run

FOLDER = CACHE / "images"
REGISTRY = "registry.example.com"
TARGETS = {
    f"{REGISTRY}/gyre:0.1.0": "gyre",
    f"{REGISTRY}/gyre-serving:0.1.0": "serving",
}
"""Names of deploy/kubernetes, and the targets of deploy/Dockerfile."""


def archives() -> dict[str, Path]:
    """Return the archive of each image that the node has, by its name."""
    return {name: FOLDER / f"{_file_name(name)}.tar" for name in (PAUSE, *TARGETS)}


def _file_name(image: str) -> str:
    return image.rpartition("/")[2].replace(":", "-")


def main() -> None:
    """Write the archives."""
    FOLDER.mkdir(exist_ok=True)
    with TemporaryDirectory() as folder, base_image(Path(folder)) as base:
        build = image_builder(base, Path(folder))
        images = {}
        for name, target in TARGETS.items():
            print(f"  building the image {target}", flush=True)
            images[name] = build(target)
        images[PAUSE] = _build_pause(Path(folder))
        for name, file in archives().items():
            print(f"  writing {file.relative_to(CACHE.parent)}", flush=True)
            file.unlink(missing_ok=True)
            run("buildah", "push", images[name], f"docker-archive:{file}:{name}")


def _build_pause(folder: Path) -> str:
    """Return an image of one program that waits, as the pause image of Kubernetes."""
    dockerfile = folder / "Dockerfile"
    dockerfile.write_text(
        'FROM scratch\nCOPY busybox /busybox\nENTRYPOINT ["/busybox", "sleep", "2147483647"]\n'
    )
    run("cp", kubernetes() / "busybox", folder)
    name = "localhost/gyre-pause:test"
    run("buildah", "bud", f"--tag={name}", f"--file={dockerfile}", folder)
    return name


if __name__ == "__main__":
    main()
